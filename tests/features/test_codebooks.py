"""Codebooks of VQ tokenizers: found in their checkpoints, and no code in these is run."""

import argparse
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest
from flowprior.features.codebooks import CODEBOOK_KEY, codebook_table
from flowprior.features.tables import Table

MATRIX = torch.randn(50, 3, generator=rng.generator(0, "matrix"))


class Bomb:
    """Executes a command where it is unpickled: it makes a folder."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def rows(table: Table) -> Tensor:
    """All of a table at once."""
    return table.read(0, table.rows)


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
