"""Readers of files that were tampered with: the same data or the project's own error; no crash, no hang, no pickle."""

import copy
import io
import json
import os
import pickle
import signal
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from flowprior.core.artifacts import MANIFEST, open_artifact, write_manifest
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.core.tars import tar_members
from flowprior.core.trained import load_trained
from flowprior.evaluation.npz import NpzImages, write_npz
from flowprior.images.decoding import decode
from flowprior.images.shards import WebShards
from flowprior.prior.flow_prior import FlowPrior

FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHARD = "train-000000.tar"
MARKER = Path(tempfile.gettempdir()) / f"flowprior-unpickled-{os.getpid()}"


class Bomb:
    """Unpickling it leaves a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Touch the marker on loading."""
        return Path.touch, (MARKER,)


PICKLE = pickle.dumps(Bomb())


class HangError(BaseException):
    """Not an Exception, which readers turn into errors of their own."""


@contextmanager
def no_hang(seconds: float = 5) -> Iterator[None]:
    """Fail what takes longer."""

    def stop(*_: object) -> None:
        raise HangError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def never_unpickled() -> Iterator[None]:
    """No test of this file may execute the pickle."""
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def test_the_pickle_is_armed() -> None:
    """Else its absence would prove nothing."""
    pickle.loads(PICKLE)
    assert MARKER.exists()
    MARKER.unlink()


# --- what is done to bytes and to JSON ----------------------------------------------------------------

SPOT = st.floats(0, 1)
CHUNK = st.binary(max_size=40) | st.sampled_from([PICKLE, bytes(512), b"\xff" * 8, b"9" * 12])
CHANGE = st.one_of(
    st.tuples(st.just("flip"), SPOT, st.integers(1, 255)),
    st.tuples(st.just("cut"), SPOT),
    st.tuples(st.just("insert"), SPOT, CHUNK),
    st.tuples(st.just("overwrite"), SPOT, CHUNK),
    st.tuples(st.just("splice"), SPOT, SPOT, st.integers(1, 600)),
)
CHANGES = st.lists(CHANGE, min_size=1, max_size=4)


def changed(content: bytes, changes: list[Any]) -> bytes:
    """Bytes after flips, cuts, insertions and copies from elsewhere; places are shares of the length."""
    for kind, spot, *rest in changes:
        at = int(spot * max(0, len(content) - 1))
        match kind, rest:
            case "flip", [bits]:
                content = (
                    content[:at] + bytes(b ^ bits for b in content[at : at + 1]) + content[at + 1 :]
                )
            case "cut", []:
                content = content[:at]
            case "insert", [chunk]:
                content = content[:at] + chunk + content[at:]
            case "overwrite", [chunk]:
                content = content[:at] + chunk + content[at + len(chunk) :]
            case "splice", [source, length]:
                start = int(source * len(content))
                content = content[:at] + content[start : start + length] + content[at:]
    return content


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.sampled_from([10**15, 2**62, 2**63, 10**30, -(2**63), 1.5, float("inf"), float("nan")])
    | st.sampled_from(
        ["", "|O", "<f8", "<f4", "(9,)f4", "f4,f4", "V0", "U99999999", "../x", "a\0b", "\ud800"]
    )
    | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=4,
)
EDIT = st.tuples(st.lists(st.integers(0, 50), max_size=6), JSON | st.just("remove"))


def edited(tree: Any, edits: list[Any]) -> Any:
    """JSON with values replaced, removed or copied, wherever the numbers lead."""
    tree = copy.deepcopy(tree)
    for turns, value in edits:
        node, last = tree, None
        for turn in turns or [0]:
            keys: Any = (
                sorted(node)
                if isinstance(node, dict)
                else range(len(node))
                if isinstance(node, list)
                else ()
            )
            if not keys:
                break
            last = (node, keys[turn % len(keys)])
            node = node[last[1]]
        if last is None:
            return value
        if value == "remove":
            del last[0][last[1]]
        else:
            last[0][last[1]] = value
    return tree


EDITS = st.lists(EDIT, min_size=1, max_size=3)


def outcome(read: Callable[[], Any], own: type[Exception] = ArtifactError) -> tuple[Any, str]:
    """What a reader gives, or the message of its own error; any other goes on."""
    with no_hang():
        try:
            return read(), ""
        except own as error:
            return None, str(error)


def same_or_refused(read: Callable[[], Any], original: Any, name: str) -> None:
    """The reader gives what was written, or an error that names the file and does not print all of it."""
    found, message = outcome(read)
    assert name in message if message else found == original
    assert len(message) < 2000


# --- manifests and JSON -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two arrays in three blocks."""
    root = tmp_path_factory.mktemp("fuzz") / "vectors"
    root.mkdir()
    writer = ShardWriter(root, rows_per_block=3)
    writer.write("train", {"x": np.arange(16.0).reshape(8, 2), "y": np.arange(8)})
    writer.close(kind="vectors", provenance={"inputs": {}})
    return root


def rows_of(root: Path) -> dict[str, Any]:
    """All that is in the shards."""
    reader = ShardReader.open(root, "vectors", "a test")
    rows = {name: reader.column("train", name).read().tolist() for name in ("x", "y")}
    assert reader.rows("train") == len(rows["x"])
    return rows


@contextmanager
def copied(root: Path) -> Iterator[Path]:
    """A copy of an artifact, of links to its files, whose own can be replaced."""
    with tempfile.TemporaryDirectory() as folder:
        other = Path(folder) / "art"
        other.mkdir()
        for file in root.iterdir():
            (other / file.name).symlink_to(file)
        yield other


def replace(path: Path, content: bytes | str) -> None:
    """Write a file where a link may be."""
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


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


# --- shards -------------------------------------------------------------------------------------------


def mended(content: bytes) -> bytes:
    """A tar whose headers have right checksums again, wherever a header is to be expected."""
    out = bytearray(content)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


@FUZZ
@given(changes=CHANGES, mend=st.booleans())
def test_a_tar_of_other_bytes_is_refused_or_holds_numbers(
    vectors: Path, changes: list[Any], mend: bool
) -> None:
    """Sealed again, headers mended or not: numbers may differ (nothing but the seal tells), their form may not."""
    with copied(vectors) as root:
        content = changed((vectors / SHARD).read_bytes(), changes)
        replace(root / SHARD, mended(content) if mend else content)
        manifest = read_json(vectors / MANIFEST)
        write_manifest(root, kind="vectors", provenance={}, splits=manifest["splits"])
        same_or_refused(lambda: len(rows_of(root)["x"]), 8, str(root))


@FUZZ
@given(changes=CHANGES)
def test_a_member_of_other_bytes_is_refused_or_holds_numbers(
    vectors: Path, changes: list[Any]
) -> None:
    """The header of one array is tampered with, in a sound tar."""
    with copied(vectors) as root:
        with tarfile.open(vectors / SHARD) as old:
            members = [(info, old.extractfile(info).read()) for info in old]  # type: ignore[union-attr]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as new:
            for info, content in members:
                if info.name == "000000.x.npy":
                    content = changed(content[:128], changes) + content[128:]
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
        replace(root / SHARD, buffer.getvalue())
        manifest = read_json(vectors / MANIFEST)
        write_manifest(root, kind="vectors", provenance={}, splits=manifest["splits"])
        same_or_refused(lambda: len(rows_of(root)["x"]), 8, str(root))


# --- webdataset shards and images ---------------------------------------------------------------------


def picture(kind: str = "PNG") -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


def web_shard() -> bytes:
    """Four samples of two classes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for index in range(4):
            for name, content in (
                (f"{index}.png", picture()),
                (f"{index}.cls", b"%d" % (index % 2)),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


WEB_SHARD = web_shard()


@FUZZ
@given(changes=CHANGES, mend=st.booleans())
def test_a_web_shard_of_other_bytes_is_refused_or_read(changes: list[Any], mend: bool) -> None:
    """Index and images: an error that names the shard, or samples; never an endless list of them."""
    with tempfile.TemporaryDirectory() as folder:
        content = changed(WEB_SHARD, changes)
        (Path(folder) / "0.tar").write_bytes(mended(content) if mend else content)
        images, message = outcome(lambda: WebShards(Path(folder), "train", 0, 8), ValueError)
        if not message:
            assert len(images) <= len(content) // 1024
            assert images.num_classes <= 10**6
            _, message = outcome(lambda: images.images(range(len(images))), ValueError)
        assert folder in message or "can be decoded" in message or not message


PICTURES = {kind: picture(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM", "GIF", "TIFF")}


@settings(FUZZ, max_examples=500)
@pytest.mark.filterwarnings("ignore")
@given(kind=st.sampled_from(sorted(PICTURES)), changes=CHANGES)
def test_an_image_of_other_bytes_is_an_image_or_refused(kind: str, changes: list[Any]) -> None:
    found, message = outcome(
        lambda: decode(changed(PICTURES[kind], changes), 8, "x.img"), ValueError
    )
    if message:
        assert message.startswith("x.img cannot be decoded as an image")
    else:
        assert found.shape == (3, 8, 8)
        assert found.isfinite().all()


# --- tensors and models -------------------------------------------------------------------------------

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.int64)}


def tensors_of(path: Path) -> dict[str, Any]:
    """Names, types and shapes."""
    return {name: (tensor.dtype, tensor.shape) for name, tensor in load_tensors(path).items()}


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


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prior."""
    path = tmp_path_factory.mktemp("fuzz") / "prior"
    features = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    FlowPrior.fit(features, dim=3, steps=1, width=8, depth=1).save(path)
    return path


@settings(FUZZ, max_examples=100)
@given(edits=EDITS)
def test_a_prior_of_other_settings_is_refused_or_loaded(prior: Path, edits: list[Any]) -> None:
    """Sizes of a billion, of other types, or none."""
    with copied(prior) as root:
        replace(root / "config.json", json.dumps(edited(read_json(prior / "config.json"), edits)))
        write_manifest(root, kind="flow_prior", provenance={})
        same_or_refused(lambda: FlowPrior.load(root).dim, 3, str(root))


@settings(FUZZ, max_examples=100)
@given(edits=EDITS)
def test_a_trained_model_of_other_facts_is_refused_or_loaded(
    edits: list[Any],
) -> None:
    """Whatever its manifest says."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save_tensors(root / "toy.safetensors", TENSORS)
        write_json(root / "config.json", {"shape": {"width": 3}})
        write_manifest(root, kind="toy", provenance={"inputs": {"x": "y"}})
        (root / MANIFEST).write_text(json.dumps(edited(read_json(root / MANIFEST), edits)))
        same_or_refused(
            lambda: load_trained(root, "toy", "a test").weights.keys(), TENSORS.keys(), folder
        )


# --- npz ----------------------------------------------------------------------------------------------


@settings(FUZZ, max_examples=300)
@given(changes=CHANGES, compressed=st.booleans())
def test_an_npz_of_other_bytes_is_read_or_refused(changes: list[Any], compressed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        pictures = torch.arange(5 * 4 * 4).view(5, 1, 4, 4).to(torch.uint8)
        write_npz(path, [pictures], torch.arange(5))
        if compressed:
            np.savez_compressed(path, **np.load(path))
        path.write_bytes(changed(path.read_bytes(), changes))
        found, message = outcome(lambda: list(NpzImages(path).pieces(2)), ValueError)
        assert "x.npz" in message or not message
        assert sum(piece.numel() for piece in found or []) <= path.stat().st_size * 1100


@FUZZ
@given(
    header=st.text(alphabet="{}()[]'\":,<|0123456789-+ uidescrfortanshpTFle_", max_size=80),
    pad=st.integers(0, 64),
)
@example(header="-" * 9000 + "1", pad=0)
@example(header="(" * 9000, pad=0)
@example(header="[" * 150 + "]" * 150, pad=0)
@example(
    header="{'descr':'|u1','fortran_order':False,'shape':(1000000000000,60000,60000,3)}", pad=9
)
@example(header="{'descr':'|u1','fortran_order':False,'shape':(1000000000000,0,4,3)}", pad=9)
@example(header="{'descr':'|u1','fortran_order':False,'shape':(1000000000000,1,1,3)}", pad=9)
@example(header="{'descr':'|u1','fortran_order':False,'shape':(-1,1,1,3)}", pad=9)
@example(header="{'descr':'|u1','fortran_order':False,'shape':(-1,-1,1,3)}", pad=9)
@example(header="{'descr':'|O','fortran_order':False,'shape':(1,1,1,3)}", pad=9)
def test_a_header_of_an_npz_is_one_or_refused(header: str, pad: int) -> None:
    """It is a Python expression; whatever parsing it provokes, and whatever shape it promises."""
    text = header.encode("latin1") + b" " * pad + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + PICKLE
    with tempfile.TemporaryDirectory() as folder, no_hang():
        path = Path(folder) / "x.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("arr_0.npy", member)
        with pytest.raises(ValueError, match=r"x\.npz"):
            list(NpzImages(path).pieces(4))


def test_an_unchanged_artifact_is_read(vectors: Path, tensors: Path, prior: Path) -> None:
    """What the tests above start from is sound."""
    assert rows_of(vectors)["y"] == list(range(8))
    assert tensors_of(tensors)["a"] == (torch.float32, (2, 3))
    assert FlowPrior.load(prior).dim == 3
    assert open_artifact(vectors, "vectors", "a test").digest
    assert tar_members(vectors / SHARD)[0].name == "000000.x.npy"
