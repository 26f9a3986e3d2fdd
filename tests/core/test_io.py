"""Files are whole or absent; what is not JSON or no tensors is refused by name."""

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import flowprior
from flowprior.core.artifacts import write_manifest
from flowprior.core.io import (
    ArtifactError,
    digest,
    load_tensors,
    read_json,
    save_tensors,
    to_json,
    write_atomic,
    write_json,
)
from flowprior.core.tars import tar_members
from flowprior.evaluation.npz import NpzImages

from ..strangers import CHANGES, EDITS, FUZZ, changed, edited, frugal, no_hang, outcome

pytestmark = pytest.mark.usefixtures("never_unpickled")

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(-1e9, 1e9) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def entries(folder: Path) -> list[str]:
    """Everything in a folder, hidden files too."""
    return sorted(path.name for path in folder.iterdir())


def test_write_atomic_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """The last content wins, parents are made, text is UTF-8, no scratch file remains."""
    path = tmp_path / "new" / "file.txt"
    write_atomic(path, b"old")
    write_atomic(path, "größer")
    assert path.read_bytes() == "größer".encode()
    assert entries(path.parent) == ["file.txt"]


def test_a_failing_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fills up while writing costs neither the old content nor a stray scratch file."""
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert entries(tmp_path) == ["file.txt"]


@settings(deadline=None, derandomize=True)
@given(value=JSON)
def test_json_survives_a_round_trip(value: object) -> None:
    """What is written is read back equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        write_json(path, value)
        assert read_json(path) == value


def test_json_is_stable_text() -> None:
    """Sorted keys, two spaces and a final newline, whatever the order of insertion."""
    assert to_json({"b": 1, "a": [1]}) == '{\n  "a": [\n    1\n  ],\n  "b": 1\n}\n'
    assert to_json({"b": 1, "a": 2}) == to_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_json_refuses_numbers_that_json_does_not_have(tmp_path: Path, value: float) -> None:
    """NaN and infinities are errors in files, digests and manifests, and leave no file behind."""
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": value})
    with pytest.raises(ValueError, match="JSON compliant"):
        digest(value)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_manifest(tmp_path, kind="things", provenance={}, loss=value)
    assert entries(tmp_path) == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\xff", b"[" * 100_000])
def test_a_file_that_is_not_json_is_an_artifact_error(tmp_path: Path, content: bytes) -> None:
    """Empty, cut off, not text, or nested beyond reason: one error, with the path."""
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"x\.json is not JSON"):
        read_json(path)


def test_a_json_file_that_is_absent_is_an_artifact_error(tmp_path: Path) -> None:
    """The message names the path."""
    with pytest.raises(ArtifactError, match=r"x\.json does not exist"):
        read_json(tmp_path / "x.json")


def test_digest_depends_on_the_value_only() -> None:
    """The sha256 of the compact JSON with sorted keys, so that it is the same in every process."""
    expected = hashlib.sha256(b'{"a":[2],"b":1}').hexdigest()
    assert digest({"b": 1, "a": [2]}) == digest({"a": [2], "b": 1}) == expected
    assert digest({"b": 1, "a": [3]}) != expected


def test_tensors_survive_a_round_trip(tmp_path: Path) -> None:
    """Values, dtypes and shapes come back, from views and from tensors that learn."""
    tensors = {
        "view": torch.arange(12.0).view(3, 4).T,
        "learned": torch.randn(2, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(2.0, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
    }
    save_tensors(tmp_path / "x.safetensors", tensors)
    loaded = load_tensors(tmp_path / "x.safetensors")
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
    save_tensors(tmp_path / "one", {"a": torch.zeros(2, 2), "b": torch.ones(3)})
    save_tensors(tmp_path / "two", {"b": torch.ones(3), "a": torch.zeros(2, 2)})
    contents = {(tmp_path / name).read_bytes() for name in ("one", "two", "other")}
    assert len(contents) == 1


@pytest.mark.parametrize("cut", [0, 4, 20, -1])
def test_a_file_that_is_not_safetensors_is_an_artifact_error(tmp_path: Path, cut: int) -> None:
    """Absent, empty or cut off: an error with the path, never a pickle."""
    path = tmp_path / "x.safetensors"
    with pytest.raises(ArtifactError, match="does not exist"):
        load_tensors(path)
    save_tensors(path, {"a": torch.zeros(4)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArtifactError, match=r"x\.safetensors is not a safetensors file"):
        load_tensors(path)


def test_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """A torch checkpoint under the right name is refused."""
    torch.save({"a": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ArtifactError, match="not a safetensors file"):
        load_tensors(tmp_path / "x.safetensors")


TERABYTE = 2**40


@pytest.mark.parametrize("read", [read_json, load_tensors, tar_members, NpzImages])
def test_readers_of_one_file_refuse_pipes_and_devices(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with no_hang(), pytest.raises(ValueError, match=rf"{name}.* not a regular file"):
            read(tmp_path / name)


def safetensors(header: dict[str, Any] | int, content: bytes = b"") -> bytes:
    """A file with the given header, or of a header of the given length."""
    if isinstance(header, int):
        return struct.pack("<Q", header) + b"{}"
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content


def tensor(dtype: str, shape: list[int], stop: int) -> dict[str, Any]:
    """What a header says of one."""
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, stop]}}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(2**60),
        safetensors(2**64 - 1),
        safetensors(tensor("F32", [2**38], TERABYTE)),
        safetensors(tensor("F32", [2**62, 4], 0)),
        safetensors(tensor("WHAT", [8], 4), bytes(4)),
        b"\x80\x04\x95" + bytes(40),
    ],
    ids=["header", "longest header", "terabyte", "product", "type", "pickle"],
)
def test_tensors_that_only_a_header_has_are_refused(tmp_path: Path, content: bytes) -> None:
    """At once: sizes are compared with the file's."""
    (tmp_path / "x.safetensors").write_bytes(content)
    with frugal(), pytest.raises(ArtifactError, match=r"x\.safetensors is not a safetensors file"):
        load_tensors(tmp_path / "x.safetensors")


@FUZZ
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet='{}[]",:0123456789eE+-.\\u', max_size=60).map(str.encode)
)
@example(content=b"9" * 5000)
@example(content=b'{"a":' * 5000)
def test_json_is_read_or_refused(content: bytes) -> None:
    """Numbers of more digits than Python takes, and any nesting, among the rest."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.json"
        path.write_bytes(content)
        _, message = outcome(lambda: read_json(path))
        assert "x.json is not JSON" in message or not message


TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int64)}


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of two."""
    path = tmp_path_factory.mktemp("fuzz") / "x.safetensors"
    save_tensors(path, TENSORS)
    return path


@FUZZ
@given(changes=CHANGES)
def test_tensors_of_other_bytes_are_read_or_refused(tensors: Path, changes: list[Any]) -> None:
    """A changed header may tell of other tensors; they lie within the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(changed(tensors.read_bytes(), changes))
        found, message = outcome(lambda: load_tensors(path))
        assert "x.safetensors is not a safetensors file" in message or not message
        assert sum(tensor.nbytes for tensor in (found or {}).values()) <= path.stat().st_size


@FUZZ
@given(edits=EDITS)
@example(edits=[([0, 2], [2**40])])
@example(edits=[([0, 0], [0, 2**62])])
@example(edits=[([0, 1], "F4")])
@example(edits=[([0, 1], "F8_E8M0")])
def test_a_header_of_tensors_with_other_values_is_refused_or_says_the_same(
    tensors: Path, edits: list[Any]
) -> None:
    content = tensors.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.dumps(edited(json.loads(content[8 : 8 + length]), edits)).encode()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        found, message = outcome(lambda: load_tensors(path))
        assert "x.safetensors is not a safetensors file" in message or not message
        assert sum(tensor.nbytes for tensor in (found or {}).values()) <= path.stat().st_size


def test_an_unchanged_file_of_tensors_is_read(tensors: Path) -> None:
    """What the tests above start from is sound."""
    assert {name: tensor.shape for name, tensor in load_tensors(tensors).items()} == {
        name: tensor.shape for name, tensor in TENSORS.items()
    }
