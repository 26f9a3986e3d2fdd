"""The hub's cache as `hf download` leaves it."""

import hashlib
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

COMMIT = "060db6499f32faf8b98477b0a26969ef7d8b9987"


def fill_cache(cache: Path, repository: str, folder: Path, commit: str, ref: str = "main") -> None:
    """Lay out what `hf download` leaves of a folder: blobs named after their content, links, a ref."""
    home = cache / f"models--{repository.replace('/', '--')}"
    snapshot = home / "snapshots" / commit
    for part in (home / "blobs", home / "refs", snapshot):
        part.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    (home / "refs" / ref).write_text(commit)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder
