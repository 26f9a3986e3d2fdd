"""References on disk."""

from pathlib import Path

import pytest
from PIL import Image

from .pictures import pictures


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifteen PNGs of the samples' size, in two folders of their own."""
    for index, image in enumerate(pictures(15)):
        file = tmp_path / f"folder/{index // 10}/{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "folder"
