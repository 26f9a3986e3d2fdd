"""The codebook of a VQ tokenizer, from its checkpoint."""

import argparse
import pickle
from pathlib import Path

import torch
from torch import Tensor

from flowprior.core.hub import one_line, tensor_names
from flowprior.core.io import file_digest
from flowprior.features.tables import Table, safetensors_table

CODEBOOK_KEY = "quantize.embedding.weight"
CODEBOOK_SHAPE = (16384, 8)
CHECKPOINT_KEYS = ("ema", "model", "state_dict")
"""Under which a checkpoint of LlamaGen has weights; the averaged ones first, as LlamaGen itself reads them."""


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
        table = safetensors_table(file, CODEBOOK_KEY, {**facts, "key": CODEBOOK_KEY})
    else:
        table = _checkpoint_table(file, facts)
    rows, dim = CODEBOOK_SHAPE
    table.facts["shape"] = f"{table.rows} x {table.dim}, LlamaGen's is {rows} x {dim}"
    return table


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
