"""Files that are either whole or absent: atomic writes, hashes, manifests, tensors without pickle.

An *artifact* is a directory with a `manifest.json`, written last, that names the size and the
sha256 of every other file in it. Readers accept nothing else: see `open_artifact`.
"""

import hashlib
import json
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from reprlib import repr as brief
from typing import TYPE_CHECKING, Any

from flowprior.core.locks import claim

if TYPE_CHECKING:
    import torch

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
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


def package_versions(*names: str) -> dict[str, str]:
    """Versions of installed packages, without local build tags (`2.15.0+cpu` is `2.15.0`)."""
    found = {}
    for name in names:
        try:
            found[name] = version(name).split("+")[0]
        except PackageNotFoundError:
            found[name] = "absent"
    return found


def provenance(inputs: Mapping[str, str], *packages: str) -> dict[str, object]:
    """What an artifact was made from: the digests of its inputs, and the packages that matter.

    Nothing of the parameters: what they decide is in the bytes, and a new parameter should not change those.
    """
    return {
        "inputs": dict(inputs),
        "packages": package_versions("flowprior", *packages),
    }


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


@contextmanager
def atomic_dir(final: Path) -> Iterator[Path]:
    """Yield a fresh sibling of `final`; it takes the name `final` only if the block succeeds.

    An older `final` is moved aside before and removed after, so a failure leaves it as it was. Under
    DVC one process at a time has `final`, until it ends.

    Raises:
        LeftBehindError: Under DVC: this process was left behind by a DVC that was killed, and the
            stage was started again since.
    """
    final.parent.mkdir(parents=True, exist_ok=True)
    claim(final)
    old = final.with_name(f".{final.name}.old")
    if old.exists() and not final.exists():  # killed between the two renames below
        os.replace(old, final)
    for stale in [old, *final.parent.glob(f".{final.name}.*.tmp")]:
        shutil.rmtree(stale, ignore_errors=True)
    scratch = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    scratch.mkdir()
    try:
        yield scratch
        if final.exists():
            os.replace(final, old)
        os.replace(scratch, final)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_manifest(
    directory: Path, *, kind: str, provenance: Mapping[str, object], **facts: object
) -> None:
    """Seal a directory as an artifact: hash every file in it, then write the manifest.

    Args:
        directory: The artifact; nothing may be added to it afterwards.
        kind: What it is, for instance `targets`.
        provenance: What it was made from (`config`, `inputs`, `packages`); no time, host or
            revision, so that equal inputs give equal bytes.
        facts: Shapes, counts and whatever else a reader needs.
    """
    files = {
        path.relative_to(directory).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path != directory / MANIFEST
    }
    manifest = {
        "schema": SCHEMA_VERSION,
        "kind": kind,
        "files": files,
        "provenance": dict(provenance),
        **facts,
    }
    write_json(directory / MANIFEST, manifest)


class Artifact:
    """A verified artifact directory.

    Attributes:
        path: The directory.
        manifest: Its manifest.
        digest: Sha256 of the manifest, which fixes the bytes of every file.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], digest: str) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names; any other was not verified.

        Raises:
            ArtifactError: The manifest does not name it.
        """
        if name not in self.manifest["files"]:
            raise ArtifactError(f"{self.path / name} is not among the files of its manifest")
        return self.path / name


def open_artifact(path: Path, kind: str, made_by: str) -> Artifact:
    """Read a manifest and check every file that it names.

    Args:
        path: The artifact's directory.
        kind: The kind it must be of.
        made_by: How it is made, for the message, for instance "the stage `project`".

    Raises:
        ArtifactError: It is absent, unfinished, of another kind or schema version, or a file of it
            is missing, truncated or altered. The message names the file and `made_by`.
    """

    def fail(what: str) -> ArtifactError:
        return ArtifactError(
            f"{what}; it is made by {made_by} (under DVC, `dvc checkout` brings back the last good one)"
        )

    path = Path(path)
    if not path.is_dir():
        raise fail(f"{path} does not exist")
    file = path / MANIFEST
    if not file.is_file():
        raise fail(f"{path} has no {MANIFEST}, so it was never finished")
    try:
        manifest = read_json(file)
    except ArtifactError as error:
        raise fail(str(error)) from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA_VERSION:
        found = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise fail(f"{file} has schema version {brief(found)}, this code reads {SCHEMA_VERSION}")
    if manifest.get("kind") != kind:
        raise fail(f"{file} describes {brief(manifest.get('kind'))}, expected {kind!r}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise fail(f"{file} names no files")
    for name, facts in files.items():
        member = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts or not isinstance(facts, dict):
            raise fail(f"{file} names an impossible file {brief(name)}")
        try:
            if not member.is_file():
                raise fail(f"{member} is missing or no regular file")
            if (size := member.stat().st_size) != facts.get("bytes"):
                said = brief(facts.get("bytes"))
                raise fail(f"{member} has {size} bytes, its manifest says {said}")
            if file_digest(member) != facts.get("sha256"):
                raise fail(f"{member} is damaged: its sha256 differs from the manifest's")
        except OSError as error:
            raise fail(f"{brief(str(member))} cannot be read: {error.strerror}") from None
    return Artifact(path, manifest, file_digest(file))


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
