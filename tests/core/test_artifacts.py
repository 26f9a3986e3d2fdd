"""Artifacts are whole, or absent, or refused with a message that says which and whence."""

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flowprior.core.artifacts import (
    MANIFEST,
    SCHEMA_VERSION,
    atomic_dir,
    open_artifact,
    package_versions,
    write_manifest,
)
from flowprior.core.io import ArtifactError, read_json

from ..strangers import (
    CHANGES,
    EDITS,
    FUZZ,
    changed,
    copied,
    edited,
    frugal,
    no_hang,
    replace,
    same_or_refused,
)
from .written import rows_of

pytestmark = pytest.mark.usefixtures("never_unpickled")

KIND, MAKER = "things", "the stage `make_things`"


def seal(root: Path) -> Path:
    """An artifact of two files, one of them in a folder."""
    (root / "deep").mkdir(parents=True)
    (root / "a.bin").write_bytes(bytes(range(256)))
    (root / "deep" / "b.txt").write_text("words")
    write_manifest(root, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    return root


def entries(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(root: Path, **changes: object) -> None:
    """Overwrite keys of a manifest, as a vandal or another version would."""
    path = root / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_package_versions_carry_no_build_tags() -> None:
    """`2.15.0+cpu` and `2.15.0` are the same version; a missing package is said to be absent."""
    found = package_versions("torch", "no-such-package")
    assert found == {"torch": torch.__version__.split("+")[0], "no-such-package": "absent"}


def test_atomic_dir_replaces_the_old_directory_as_a_whole(tmp_path: Path) -> None:
    """Nothing of the old content mixes into the new one, and no scratch remains."""
    final = tmp_path / "deep" / "out"
    for name in ("first", "second"):
        with atomic_dir(final) as scratch:
            assert entries(scratch) == []
            (scratch / name).write_text(name)
    assert entries(final) == ["second"]
    assert entries(final.parent) == ["out"]


def test_atomic_dir_shows_nothing_before_the_end(tmp_path: Path) -> None:
    """While the block runs, readers see the old directory or none."""
    final = tmp_path / "out"
    with atomic_dir(final) as scratch:
        (scratch / "first").touch()
        assert not final.exists()
    with atomic_dir(final) as scratch:
        (scratch / "second").touch()
        assert entries(final) == ["first"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_dir_keeps_the_old_directory_when_the_block_fails(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A failure, Ctrl-C included, leaves the old output as it was, and no scratch."""
    final = tmp_path / "out"
    with atomic_dir(final) as scratch:
        (scratch / "old").touch()

    def fail() -> None:
        with atomic_dir(final) as scratch:
            (scratch / "new").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert entries(final) == ["old"]
    assert entries(tmp_path) == ["out"]


def test_atomic_dir_sweeps_up_after_a_killed_run(tmp_path: Path) -> None:
    """A scratch directory that an earlier process left is removed; those of other outputs are not."""
    (tmp_path / ".out.0123abcd.tmp").mkdir()
    (tmp_path / ".other.0123abcd.tmp").mkdir()
    with atomic_dir(tmp_path / "out"):
        pass
    assert entries(tmp_path) == [".other.0123abcd.tmp", "out"]


def test_an_artifact_survives_a_round_trip(tmp_path: Path) -> None:
    """The manifest holds the facts, the size and hash of every file, and is itself fixed by the digest."""
    root = seal(tmp_path / "art")
    artifact = open_artifact(root, KIND, MAKER)
    assert artifact.path == root
    assert artifact.manifest["count"] == 2
    assert artifact.manifest["provenance"] == {"config": "c0ffee"}
    assert artifact.manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in {"a.bin": bytes(range(256)), "deep/b.txt": b"words"}.items()
    }
    assert artifact.digest == hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()


def test_equal_content_gives_an_equal_digest_and_any_change_another(tmp_path: Path) -> None:
    """A manifest knows no time, host or place: it is a function of files and facts."""
    one = open_artifact(seal(tmp_path / "one"), KIND, MAKER)
    two = open_artifact(seal(tmp_path / "elsewhere" / "two"), KIND, MAKER)
    assert one.digest == two.digest
    (two.path / "a.bin").write_bytes(bytes(256))
    write_manifest(two.path, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    assert open_artifact(two.path, KIND, MAKER).digest != one.digest


def test_sealing_twice_does_not_seal_the_manifest(tmp_path: Path) -> None:
    """The manifest never names itself."""
    root = seal(tmp_path / "art")
    before = (root / MANIFEST).read_bytes()
    write_manifest(root, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    assert (root / MANIFEST).read_bytes() == before


def test_a_manifest_in_a_subfolder_is_sealed_like_any_file(tmp_path: Path) -> None:
    """Every other file of an artifact is named by its manifest, an artifact inside it too."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / MANIFEST).write_text("{}")
    write_manifest(tmp_path, kind=KIND, provenance={})
    assert "inner/manifest.json" in read_json(tmp_path / MANIFEST)["files"]


def flip(root: Path) -> None:
    """Change one bit and not the size."""
    content = bytearray((root / "a.bin").read_bytes())
    content[100] ^= 1
    (root / "a.bin").write_bytes(content)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing file": (lambda root: (root / "a.bin").unlink(), "a.bin is missing"),
    "file became a folder": (
        lambda root: ((root / "a.bin").unlink(), (root / "a.bin").mkdir()),
        "a.bin is missing",
    ),
    "missing file in a folder": (
        lambda root: (root / "deep/b.txt").unlink(),
        "deep/b.txt is missing",
    ),
    "truncated": (
        lambda root: (root / "a.bin").write_bytes(bytes(range(255))),
        "a.bin has 255 bytes",
    ),
    "emptied": (lambda root: (root / "a.bin").write_bytes(b""), "a.bin has 0 bytes"),
    "flipped bit": (flip, "a.bin is damaged"),
    "no manifest": (lambda root: (root / "manifest.json").unlink(), "has no manifest.json"),
    "manifest not JSON": (
        lambda root: (root / "manifest.json").write_text("{half"),
        "manifest.json is not JSON",
    ),
    "manifest a list": (
        lambda root: (root / "manifest.json").write_text("[]"),
        "manifest.json has schema version []",
    ),
    "other kind": (lambda root: edit_manifest(root, kind="toys"), "manifest.json describes 'toys'"),
    "other schema": (
        lambda root: edit_manifest(root, schema=SCHEMA_VERSION + 1),
        "manifest.json has schema version 2",
    ),
    "no schema": (lambda root: edit_manifest(root, schema=None), "schema version None"),
    "no files": (lambda root: edit_manifest(root, files=None), "manifest.json names no files"),
    "files a list": (lambda root: edit_manifest(root, files=["a.bin"]), "names no files"),
    "file without facts": (
        lambda root: edit_manifest(root, files={"a.bin": None}),
        "impossible file 'a.bin'",
    ),
    "file without hash": (
        lambda root: edit_manifest(root, files={"a.bin": {"bytes": 256}}),
        "a.bin is damaged",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_refused_with_the_file_and_its_maker(
    tmp_path: Path, damage: str
) -> None:
    """Each kind of damage is an ArtifactError that names the bad file and what makes it anew."""
    root = seal(tmp_path / "art")
    act, message = DAMAGES[damage]
    act(root)
    with pytest.raises(ArtifactError) as caught:
        open_artifact(root, KIND, MAKER)
    assert message in str(caught.value)
    assert str(root) in str(caught.value)
    assert MAKER in str(caught.value)


def test_an_artifact_that_is_absent_or_a_file_is_refused(tmp_path: Path) -> None:
    """The message says who makes it."""
    (tmp_path / "file").touch()
    for name, what in (("absent", "does not exist"), ("file", "is a file, not a folder")):
        with pytest.raises(ArtifactError, match=rf"{name} {what}; .*`make_things`"):
            open_artifact(tmp_path / name, KIND, MAKER)


@pytest.mark.parametrize("name", ["../secret", "deep/../../secret", "{absolute}"])
def test_a_manifest_cannot_reach_out_of_its_directory(tmp_path: Path, name: str) -> None:
    """Names that leave the directory are refused even where the file exists and its hash is right."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    name = name.format(absolute=secret)
    root = seal(tmp_path / "art")
    edit_manifest(root, files={name: {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}})
    with pytest.raises(ArtifactError, match="impossible file"):
        open_artifact(root, KIND, MAKER)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(position=st.integers(0, 255), change=st.integers(1, 255), cut=st.integers(0, 256))
def test_no_flip_and_no_cut_of_any_size_goes_unnoticed(
    position: int, change: int, cut: int
) -> None:
    """Altering any byte, or keeping any prefix but the whole, is an error."""
    with tempfile.TemporaryDirectory() as folder:
        root = seal(Path(folder) / "art")
        content = bytearray((root / "a.bin").read_bytes())
        content[position] ^= change
        (root / "a.bin").write_bytes(content[:cut])
        with pytest.raises(ArtifactError, match=r"a\.bin"):
            open_artifact(root, KIND, MAKER)


def seal_one(root: Path) -> Path:
    """An artifact of one file."""
    root.mkdir(parents=True)
    (root / "a.bin").write_bytes(b"a")
    write_manifest(root, kind=KIND, provenance={"inputs": {}})
    return root


def refuses(root: Path, *words: str) -> None:
    """The artifact is refused; the message has the words, and who makes it."""
    with no_hang(), pytest.raises(ArtifactError) as caught:
        open_artifact(root, KIND, MAKER)
    for word in (*words, MAKER, "dvc checkout"):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """Reading one would never end."""
    root = seal_one(tmp_path / "art")
    (root / "a.bin").unlink()
    os.mkfifo(root / "a.bin")
    refuses(root, "a.bin is missing or no regular file")
    (root / "a.bin").unlink()
    (root / "a.bin").symlink_to("/dev/zero")
    refuses(root, "a.bin is missing or no regular file")
    (root / MANIFEST).unlink()
    os.mkfifo(root / MANIFEST)
    refuses(root, f"has no {MANIFEST}")


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    """DVC may link its cache instead of copying; the hash vouches for what is at the other end."""
    root = seal_one(tmp_path / "art")
    (root / "a.bin").rename(tmp_path / "cached")
    (root / "a.bin").symlink_to(tmp_path / "cached")
    assert open_artifact(root, KIND, MAKER).path == root
    (tmp_path / "cached").write_bytes(b"b")
    refuses(root, "a.bin is damaged")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "", ".", "a.bin/x"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    root = seal_one(tmp_path / "art")
    facts = read_json(root / MANIFEST) | {"files": {name: {"bytes": 1, "sha256": ""}}}
    (root / MANIFEST).write_text(json.dumps(facts))
    refuses(root)


@pytest.mark.parametrize(
    "facts",
    [
        {"schema": ["x" * 50] * 5000},
        {"kind": "x" * 10**6},
        {"files": {"a.bin": {"bytes": [[0] * 50] * 5000}}},
        {"files": {"a.bin": {"bytes": 10**15, "sha256": "0"}}},
    ],
    ids=["schema", "kind", "bytes", "petabyte"],
)
def test_a_message_does_not_print_what_a_stranger_wrote_at_length(
    tmp_path: Path, facts: dict[str, Any]
) -> None:
    root = seal_one(tmp_path / "art")
    (root / MANIFEST).write_text(json.dumps(read_json(root / MANIFEST) | facts))
    refuses(root)


def test_a_manifest_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Its size is looked at first."""
    root = seal_one(tmp_path / "art")
    os.truncate(root / MANIFEST, 2**36)
    with frugal():
        refuses(root, f"{MANIFEST} has {2**36} bytes, JSON may have")


@pytest.mark.parametrize("digits", [4301, 10**6])
def test_a_number_of_many_digits_is_not_json(tmp_path: Path, digits: int) -> None:
    """Python refuses to convert it, as a plain ValueError."""
    root = seal_one(tmp_path / "art")
    (root / MANIFEST).write_text("9" * digits)
    refuses(root, f"{MANIFEST} is not JSON")


@FUZZ
@given(changes=CHANGES)
def test_a_manifest_of_other_bytes_is_refused_or_says_the_same(
    vectors: Path, changes: list[Any]
) -> None:
    with copied(vectors) as root:
        replace(root / MANIFEST, changed((vectors / MANIFEST).read_bytes(), changes))
        same_or_refused(lambda: rows_of(root), rows_of(vectors), str(root))


@FUZZ
@given(edits=EDITS)
@example(edits=[([5, 0, 2], 10**15)])
def test_a_manifest_of_other_values_is_refused_or_says_the_same(
    vectors: Path, edits: list[Any]
) -> None:
    """Any value for any other: types, sizes and names that no writer has."""
    with copied(vectors) as root:
        tree = edited(read_json(vectors / MANIFEST), edits)
        replace(root / MANIFEST, json.dumps(tree))
        same_or_refused(lambda: rows_of(root), rows_of(vectors), str(root))


def test_an_unchanged_artifact_is_read(vectors: Path) -> None:
    """What the tests above start from is sound."""
    assert rows_of(vectors)["y"] == list(range(8))
    assert open_artifact(vectors, "vectors", "a test").digest
