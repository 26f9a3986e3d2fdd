"""Files and artifacts are whole, or absent, or refused with a message that says which and whence."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import flowprior
from flowprior.core import io
from flowprior.core.io import ArtifactError

KIND, MAKER = "things", "the stage `make_things`"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def seal(root: Path) -> Path:
    """An artifact of two files, one of them in a folder."""
    (root / "deep").mkdir(parents=True)
    (root / "a.bin").write_bytes(bytes(range(256)))
    (root / "deep" / "b.txt").write_text("words")
    io.write_manifest(root, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    return root


def entries(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def edit_manifest(root: Path, **changes: object) -> None:
    """Overwrite keys of a manifest, as a vandal or another version would."""
    path = root / io.MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# --- single files -----------------------------------------------------------------------------------


def test_write_atomic_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """The last content wins, parents are made, text is UTF-8, no scratch file remains."""
    path = tmp_path / "new" / "file.txt"
    io.write_atomic(path, b"old")
    io.write_atomic(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert entries(path.parent) == ["file.txt"]


def test_a_failing_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while writing costs neither the old content nor a stray scratch file."""
    path = tmp_path / "file.txt"
    io.write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        io.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["file.txt"]


@settings(deadline=None, derandomize=True)
@given(value=JSON)
def test_json_survives_a_round_trip(value: object) -> None:
    """What is written is read back equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        io.write_json(path, value)
        assert io.read_json(path) == value


def test_json_is_stable_text() -> None:
    """Sorted keys, two spaces and a final newline, whatever the order of insertion."""
    assert io.to_json({"b": 1, "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": 1\n}\n'
    assert io.to_json({"b": 1, "a": 2}) == io.to_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_numbers_that_json_does_not_have(tmp_path: Path, value: float) -> None:
    """NaN and infinities are errors in files, digests and manifests, and leave no file behind."""
    with pytest.raises(ValueError, match="JSON compliant"):
        io.write_json(tmp_path / "x.json", {"loss": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        io.digest(value)
    with pytest.raises(ValueError, match="JSON compliant"):
        io.write_manifest(tmp_path, kind=KIND, provenance={}, loss=value)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000])
def test_a_file_that_is_not_json_is_an_artifact_error(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, not text, or nested beyond reason: one error, with the path."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json is not JSON"):
        io.read_json(path)


def test_a_json_file_that_is_absent_is_an_artifact_error(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(ArtifactError, match=r"x\.json does not exist"):
        io.read_json(tmp_path / "x.json")


def test_digest_depends_on_the_value_only() -> None:
    """The sha256 of the compact JSON with sorted keys, so that it is the same in every process."""
    expected = hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert io.digest({"b": 1, "a": [2]}) == io.digest({"a": [2], "b": 1}) == expected
    assert io.digest({"b": 1, "a": [3]}) != expected


def test_package_versions_carry_no_build_tags() -> None:
    """`2.15.0+cpu` and `2.15.0` are the same version; a missing package is said to be absent."""
    found = io.package_versions("torch", "no-such-package")
    assert found == {"torch": torch.__version__.split("+")[0], "no-such-package": "absent"}


# --- directories ------------------------------------------------------------------------------------


def test_atomic_dir_replaces_the_old_directory_as_a_whole(tmp_path: Path) -> None:
    """Nothing of the old content mixes into the new one, and no scratch remains."""
    final = tmp_path / "deep" / "out"
    for name in ("first", "second"):
        with io.atomic_dir(final) as scratch:
            assert entries(scratch) == []
            (scratch / name).write_text(name)
    assert entries(final) == ["second"]
    assert entries(final.parent) == ["out"]


def test_atomic_dir_shows_nothing_before_the_end(tmp_path: Path) -> None:
    """While the block runs, readers see the old directory or none."""
    final = tmp_path / "out"
    with io.atomic_dir(final) as scratch:
        (scratch / "first").touch()
        assert not final.exists()
    with io.atomic_dir(final) as scratch:
        (scratch / "second").touch()
        assert entries(final) == ["first"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_dir_keeps_the_old_directory_when_the_block_fails(
    tmp_path: Path, error: type[BaseException]
) -> None:
    """A failure, Ctrl-C included, leaves the old output as it was, and no scratch."""
    final = tmp_path / "out"
    with io.atomic_dir(final) as scratch:
        (scratch / "old").touch()

    def fail() -> None:
        with io.atomic_dir(final) as scratch:
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
    with io.atomic_dir(tmp_path / "out"):
        pass
    assert entries(tmp_path) == [".other.0123abcd.tmp", "out"]


# --- artifacts --------------------------------------------------------------------------------------


def test_an_artifact_survives_a_round_trip(tmp_path: Path) -> None:
    """The manifest holds the facts, the size and hash of every file, and is itself fixed by the digest."""
    root = seal(tmp_path / "art")
    artifact = io.open_artifact(root, KIND, MAKER)
    assert artifact.path == root
    assert artifact.manifest["count"] == 2
    assert artifact.manifest["provenance"] == {"config": "c0ffee"}
    assert artifact.manifest["files"] == {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in {"a.bin": bytes(range(256)), "deep/b.txt": b"words"}.items()
    }
    assert artifact.digest == hashlib.sha256((root / io.MANIFEST).read_bytes()).hexdigest()


def test_equal_content_gives_an_equal_digest_and_any_change_another(tmp_path: Path) -> None:
    """A manifest knows no time, host or place: it is a function of files and facts."""
    one = io.open_artifact(seal(tmp_path / "one"), KIND, MAKER)
    two = io.open_artifact(seal(tmp_path / "elsewhere" / "two"), KIND, MAKER)
    assert one.digest == two.digest
    (two.path / "a.bin").write_bytes(bytes(256))
    io.write_manifest(two.path, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    assert io.open_artifact(two.path, KIND, MAKER).digest != one.digest


def test_sealing_twice_does_not_seal_the_manifest(tmp_path: Path) -> None:
    """The manifest never names itself."""
    root = seal(tmp_path / "art")
    before = (root / io.MANIFEST).read_bytes()
    io.write_manifest(root, kind=KIND, provenance={"config": "c0ffee"}, count=2)
    assert (root / io.MANIFEST).read_bytes() == before


def test_a_manifest_in_a_subfolder_is_sealed_like_any_file(tmp_path: Path) -> None:
    """Every other file of an artifact is named by its manifest, an artifact inside it too."""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / io.MANIFEST).write_text("{}")
    io.write_manifest(tmp_path, kind=KIND, provenance={})
    assert "inner/manifest.json" in io.read_json(tmp_path / io.MANIFEST)["files"]


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
        lambda root: edit_manifest(root, schema=io.SCHEMA_VERSION + 1),
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
        io.open_artifact(root, KIND, MAKER)
    assert message in str(caught.value)
    assert str(root) in str(caught.value)
    assert MAKER in str(caught.value)


def test_an_artifact_that_is_absent_or_a_file_is_refused(tmp_path: Path) -> None:
    """The message says who makes it."""
    (tmp_path / "file").touch()
    for name in ("absent", "file"):
        with pytest.raises(ArtifactError, match=rf"{name} does not exist; .*`make_things`"):
            io.open_artifact(tmp_path / name, KIND, MAKER)


@pytest.mark.parametrize("name", ["../secret", "deep/../../secret", "{absolute}"])
def test_a_manifest_cannot_reach_out_of_its_directory(tmp_path: Path, name: str) -> None:
    """Names that leave the directory are refused even where the file exists and its hash is right."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"s")
    name = name.format(absolute=secret)
    root = seal(tmp_path / "art")
    edit_manifest(root, files={name: {"bytes": 1, "sha256": hashlib.sha256(b"s").hexdigest()}})
    with pytest.raises(ArtifactError, match="impossible file"):
        io.open_artifact(root, KIND, MAKER)


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
            io.open_artifact(root, KIND, MAKER)


# --- tensors ----------------------------------------------------------------------------------------


def test_tensors_survive_a_round_trip(tmp_path: Path) -> None:
    """Values, dtypes and shapes come back, from views and from tensors that learn."""
    tensors = {
        "view": torch.arange(12.0).view(3, 4).T,
        "learned": torch.randn(2, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    io.save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = io.load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


def test_equal_tensors_give_equal_bytes(tmp_path: Path) -> None:
    """The bytes do not depend on the order of the names nor on the process that writes them."""
    code = (
        "import sys, torch; from pathlib import Path; from flowprior.core.io import save_tensors; "
        "save_tensors(Path(sys.argv[1]), {'b': torch.ones(3), 'a': torch.zeros(2, 2)})"
    )
    source = Path(flowprior.__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "other")],
        check=True,
        env=os.environ | {"PYTHONPATH": str(source), "PYTHONHASHSEED": "12345"},
    )
    io.save_tensors(tmp_path / "one", {"a": torch.zeros(2, 2), "b": torch.ones(3)})
    io.save_tensors(tmp_path / "two", {"b": torch.ones(3), "a": torch.zeros(2, 2)})
    contents = {(tmp_path / name).read_bytes() for name in ("one", "two", "other")}
    assert len(contents) == 1


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_file_that_is_not_safetensors_is_an_artifact_error(tmp_path: Path, cut: int) -> None:
    """Absent, empty or cut off: an error with the path, never a pickle."""
    path = tmp_path / "x.safetensors"
    with pytest.raises(ArtifactError, match="does not exist"):
        io.load_tensors(path)
    io.save_tensors(path, {"a": torch.zeros(4)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"x\.safetensors is not a safetensors file"):
        io.load_tensors(path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """A torch checkpoint under the right name is refused."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        io.load_tensors(tmp_path / "x.safetensors")
