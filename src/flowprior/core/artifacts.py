"""Artifacts: folders under a manifest that is written last, and readers that accept nothing else."""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from reprlib import repr as brief
from typing import Any

from flowprior.core.io import ArtifactError, file_digest, read_json, write_json
from flowprior.core.locks import claim

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


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


def new_folder(path: str | Path) -> Path:
    """A folder that may be written: one that does not exist, or is empty.

    Raises:
        ValueError: There is something.
    """
    folder = Path(path).expanduser().resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{path} exists already; name a folder that does not, or an empty one")
    return folder


def digests(**parts: Any) -> dict[str, str]:
    """The `digest` of each part by its name; parts that are None are left out."""
    return {name: part.digest for name, part in parts.items() if part is not None}


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
        raise fail(f"{path} {'is a file, not a folder' if path.is_file() else 'does not exist'}")
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
