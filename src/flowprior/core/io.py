"""Files that are either whole or absent: atomic writes, hashes, manifests, tensors without pickle.

An *artifact* is a directory with a `manifest.json`, written last, that names the size and the
sha256 of every other file in it. Readers accept nothing else: see `open_artifact`.
"""

import hashlib
import json
import os
import stat
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
STALE_SECONDS = 600
"""Age at which the scratch of `write_atomic` is that of a killed process: writing a file takes less."""
MAX_JSON_BYTES = 2**26
"""Ten times the largest manifest of the imagenet preset; parsed, JSON takes up to thirty times its size."""


class ArtifactError(ValueError):
    """An artifact is absent, incomplete, damaged or of another kind; the message says how to go on."""


def digest(value: object) -> str:
    """Sha256 of a JSON-able value, the same in every process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Sha256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a file so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for stale in path.parent.glob(f".{path.name}.*.tmp"):
        with suppress(FileNotFoundError):  # another process may be tidying up too
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                stale.unlink()
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with scratch.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk names none
        raise
    finally:
        scratch.unlink(missing_ok=True)


def to_json(value: object) -> str:
    """JSON for people and for `git diff`: sorted keys, two spaces, a final newline, never NaN."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` as JSON, atomically."""
    write_atomic(path, to_json(value))


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ArtifactError: The file is absent, is not JSON or has more than `MAX_JSON_BYTES`.
    """
    if (size := regular_size(path)) > MAX_JSON_BYTES:
        raise ArtifactError(f"{path} has {size} bytes, JSON may have {MAX_JSON_BYTES}")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:  # also a number of more than 4300 digits
        raise ArtifactError(f"{path} is not JSON: {error}") from None


def regular_size(path: Path) -> int:
    """Bytes of a file, or of what a link leads to (DVC may link to its cache); a pipe or a device would block a reader.

    Raises:
        ArtifactError: It is absent or not a regular file.
    """
    try:
        found = path.stat()
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # a name that no file can have
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(f"{path} is not a regular file")
    return found.st_size


def write_csv(path: Path, rows: Sequence[Mapping[str, float | int]]) -> None:
    """Write a curve, atomically: a header and a line for each row, floats in their shortest exact form."""
    columns = list(rows[0]) if rows else []
    lines = [",".join(columns), *(",".join(repr(row[name]) for name in columns) for row in rows)]
    write_atomic(path, "\n".join(lines) + "\n")


def save_tensors(path: Path, tensors: "Mapping[str, torch.Tensor]") -> None:
    """Write tensors as safetensors without metadata (which would change the bytes between runs)."""
    from safetensors.torch import save

    write_atomic(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))


def load_tensors(path: Path) -> "dict[str, torch.Tensor]":
    """Read safetensors to the CPU.

    Raises:
        ArtifactError: The file is absent or is not safetensors.
    """
    from safetensors.torch import load_file

    regular_size(path)
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
        return tensors
    except Exception as error:  # its own, and torch's for shapes and types that torch has not
        raise ArtifactError(f"{path} is not a safetensors file: {error}") from None
