"""Files from strangers: they run nothing, hang nothing, and take no more memory than they have bytes."""

import io
import json
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.registry import autoencoder_from
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import build_autoencoder
from flowprior.config import params
from flowprior.core import rng
from flowprior.core.artifacts import MANIFEST, open_artifact, write_manifest
from flowprior.core.io import ArtifactError, load_tensors, read_json, save_tensors, write_json
from flowprior.core.shards import ShardReader
from flowprior.core.tars import MAX_TAR_HEADER_BYTES, tar_members
from flowprior.core.trained import Trained, load_trained, save_trained
from flowprior.data import images as images_module
from flowprior.evaluation.npz import NpzImages
from flowprior.flow.velocity import VelocityMLP
from flowprior.images.decoding import decode
from flowprior.images.shards import WebShards
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.flow_prior import flow_prior as prior_module

from .test_fuzz import no_hang, picture
from .test_shards import KIND, MAKER, SHARD, forge, named, npy, reseal, write

TERABYTE = 2**40


@contextmanager
def frugal(megabytes: float = 4) -> Iterator[None]:
    """Neither hang nor take memory: what Python and numpy ask for, whether it is used or not."""
    tracemalloc.start()
    try:
        with no_hang():
            yield
        assert tracemalloc.get_traced_memory()[1] < megabytes * 2**20
    finally:
        tracemalloc.stop()


def seal(root: Path) -> Path:
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


# --- artifacts ----------------------------------------------------------------------------------------


def test_a_pipe_or_a_device_in_the_place_of_a_file_is_refused(tmp_path: Path) -> None:
    """Reading one would never end."""
    root = seal(tmp_path / "art")
    (root / "a.bin").unlink()
    os.mkfifo(root / "a.bin")
    refuses(root, "a.bin is missing or no regular file")
    (root / "a.bin").unlink()
    (root / "a.bin").symlink_to("/dev/zero")
    refuses(root, "a.bin is missing or no regular file")
    (root / MANIFEST).unlink()
    os.mkfifo(root / MANIFEST)
    refuses(root, f"has no {MANIFEST}")


@pytest.mark.parametrize("read", [read_json, load_tensors, tar_members, NpzImages])
def test_readers_of_one_file_refuse_pipes_and_devices(
    tmp_path: Path, read: Callable[[Path], Any]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("pipe", "zeros"):
        with no_hang(), pytest.raises(ValueError, match=rf"{name}.* not a regular file"):
            read(tmp_path / name)


def test_a_link_to_a_file_is_a_file(tmp_path: Path) -> None:
    """DVC may link its cache instead of copying; the hash vouches for what is at the other end."""
    root = seal(tmp_path / "art")
    (root / "a.bin").rename(tmp_path / "cached")
    (root / "a.bin").symlink_to(tmp_path / "cached")
    assert open_artifact(root, KIND, MAKER).path == root
    (tmp_path / "cached").write_bytes(b"b")
    refuses(root, "a.bin is damaged")


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "", ".", "a.bin/x"])
def test_names_that_no_file_can_have_are_refused(tmp_path: Path, name: str) -> None:
    root = seal(tmp_path / "art")
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
    root = seal(tmp_path / "art")
    (root / MANIFEST).write_text(json.dumps(read_json(root / MANIFEST) | facts))
    refuses(root)


def test_a_manifest_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Its size is looked at first."""
    root = seal(tmp_path / "art")
    os.truncate(root / MANIFEST, 2**36)
    with frugal():
        refuses(root, f"{MANIFEST} has {2**36} bytes, JSON may have")


@pytest.mark.parametrize("digits", [4301, 10**6])
def test_a_number_of_many_digits_is_not_json(tmp_path: Path, digits: int) -> None:
    """Python refuses to convert it, as a plain ValueError."""
    root = seal(tmp_path / "art")
    (root / MANIFEST).write_text("9" * digits)
    refuses(root, f"{MANIFEST} is not JSON")


@pytest.mark.parametrize("hidden", ["config.json", "toy.safetensors"])
def test_a_file_that_the_manifest_does_not_name_is_not_read(tmp_path: Path, hidden: str) -> None:
    """It was not verified: it may be anything, a pipe too."""
    save_trained(tmp_path / "toy", "toy", torch.nn.Linear(2, 2), {"a": 1}, {"inputs": {}})
    manifest = read_json(tmp_path / "toy" / MANIFEST)
    del manifest["files"][hidden]
    write_json(tmp_path / "toy" / MANIFEST, manifest)
    (tmp_path / "toy" / hidden).unlink()
    os.mkfifo(tmp_path / "toy" / hidden)
    with no_hang(), pytest.raises(ArtifactError, match=f"{hidden} is not among the files"):
        load_trained(tmp_path / "toy", "toy", MAKER)


@pytest.mark.parametrize(
    ("provenance", "config"), [({}, {}), ({"inputs": 1}, {}), ({"inputs": {}}, [])], ids=str
)
def test_a_trained_model_without_inputs_or_config_is_refused(
    tmp_path: Path, provenance: dict[str, Any], config: Any
) -> None:
    save_tensors(tmp_path / "toy.safetensors", {"a": torch.zeros(1)})
    write_json(tmp_path / "config.json", config)
    write_manifest(tmp_path, kind="toy", provenance=provenance)
    with pytest.raises(ArtifactError, match=r"has no inputs in its .* is no object"):
        load_trained(tmp_path, "toy", MAKER)


# --- tars ---------------------------------------------------------------------------------------------


def block(name: str, size: int, kind: bytes = b"0", pax: bool = False) -> bytes:
    """The header of a member; sizes that octal digits cannot hold in GNU's base 256, signed."""
    info = tarfile.TarInfo(name)
    info.type = kind
    raw = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if 0 <= size < 8**11:
        raw[124:136] = b"%011o\0" % size
    else:
        sign = b"\xff" if size < 0 else b"\x80"
        raw[124:136] = sign + (size % 256**11).to_bytes(11, "big")
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw)
    return bytes(raw)


def padded(content: bytes) -> bytes:
    """Content in whole blocks."""
    return content + bytes(-len(content) % 512)


def pax(key: str, value: str) -> bytes:
    """A pax header that sets one thing of the next member."""
    length = len(f" {key}={value}\n") + 2
    record = f"{length} {key}={value}\n".encode()
    assert len(record) == length
    return block("pax", len(record), b"x") + padded(record)


END = bytes(1024)
PLAIN = block("0.cls", 1) + padded(b"0")
TARS = {
    "goes back": (PLAIN + block("x", -1024) + END, "backwards"),
    "goes back by pax": (PLAIN + pax("size", "-1536") + block("x", 0) + END, "backwards"),
    "goes nowhere": (PLAIN + block("x", -512) + END, "backwards"),
    "less than nothing": (PLAIN + block("x", -1) + END, "not one piece"),
    "longer than the file": (PLAIN + block("x", TERABYTE) + bytes(512), "unexpected end"),
    "last longer than the file": (PLAIN + block("x", 2000) + END, "unexpected end"),
    "beyond any file": (PLAIN + block("x", 2**80) + END, "not an uncompressed tar"),
    "name of a terabyte": (PLAIN + block("x", TERABYTE, b"L") + END, f"has {TERABYTE} bytes"),
    "link of a terabyte": (PLAIN + block("x", TERABYTE, b"K") + END, f"has {TERABYTE} bytes"),
    "pax of a terabyte": (PLAIN + block("x", TERABYTE, b"x") + END, f"has {TERABYTE} bytes"),
    "pax of minus one": (PLAIN + block("x", -512, b"x") + END, "has -512 bytes"),
    "many names": (PLAIN + (block("x", 1, b"L") + padded(b"y")) * 3000, "recursion"),
    "sparse by pax": (
        PLAIN + pax("GNU.sparse.size", "1") + block("x", 0) + END,
        "not one piece",
    ),
    "damaged header": (PLAIN + b"\1" + PLAIN[1:] + END, "neither a header nor the end"),
    "cut between members": (PLAIN, "neither a header nor the end"),
    "cut in a header": (PLAIN + PLAIN[:300], "neither a header nor the end"),
}


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_lies_about_its_members_is_refused(tmp_path: Path, name: str) -> None:
    """At once, in little memory, by name, with the reason: as a shard of arrays and as one of images."""
    content, reason = TARS[name]
    (tmp_path / "0.tar").write_bytes(content)
    with frugal(), pytest.raises(ArtifactError, match=reason) as caught:
        tar_members(tmp_path / "0.tar")
    assert "0.tar" in str(caught.value)
    with frugal(), pytest.raises(ValueError, match=r"0\.tar"):
        WebShards(tmp_path, "train", 0, 8)


def test_a_header_of_digits_does_not_take_for_ever(tmp_path: Path) -> None:
    """The time that Python before 3.11.10 takes for it is quadratic in its length."""
    digits = b"1" * MAX_TAR_HEADER_BYTES
    (tmp_path / "0.tar").write_bytes(block("x", len(digits), b"x") + digits + PLAIN + END)
    started = time.perf_counter()
    with no_hang():
        assert [info.name for info in tar_members(tmp_path / "0.tar")] == ["0.cls"]
    assert time.perf_counter() - started < 3


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_sound_tars_are_read_as_tarfile_reads_them(tmp_path: Path, kind: int) -> None:
    """Long names, other alphabets, folders and links among them."""
    path = tmp_path / "0.tar"
    names = ["a.png", "d/" * 60 + "b.png", "größe.cls"] + ["ü" * 200] * (
        kind != tarfile.USTAR_FORMAT
    )
    with tarfile.open(path, "w", format=kind) as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(bytes(700)))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    found = tar_members(path)
    assert [info.name for info in found] == [*names, "link"]
    with tarfile.open(path) as tar:
        assert [i.offset_data for i in found] == [i.offset_data for i in tar.getmembers()]


# --- shards of arrays ---------------------------------------------------------------------------------


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """Six rows in blocks of four: two blocks in one shard."""
    return write(tmp_path / "art", [("train", {"x": np.arange(12.0).reshape(6, 2)})])


def column_refused(root: Path, *words: str) -> None:
    """The manifest's hashes are right, yet the column cannot be opened."""
    reader = ShardReader.open(root, KIND, MAKER)
    with frugal(), pytest.raises(ArtifactError) as caught:
        reader.column("train", "x")
    for word in (str(root), *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("shape", [(2**62, 4), (2**32, 2**32), (10**15, 2), (10**12, 10**12)])
def test_rows_that_only_a_header_has_are_refused(artifact: Path, shape: tuple[int, int]) -> None:
    """Header and manifest agree; the product of the shape may be 0 in 64 bits."""
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", npy(np.zeros(0), shape=shape)),
        rows=shape[0],
        fields={"x": {"dtype": "<f8", "shape": [shape[1]]}},
        blocks=[{"shard": SHARD, "key": "000000", "rows": shape[0]}],
    )
    column_refused(artifact, SHARD, "000000.x.npy", "too few or too many")


def test_a_block_that_is_named_a_million_times_is_refused(artifact: Path) -> None:
    """Else a shard of a kilobyte would be a column of a terabyte."""
    block = {"shard": SHARD, "key": "000000", "rows": 4}
    reseal(artifact, blocks=[block] * 1000, rows=4000)
    column_refused(artifact, SHARD, "no member '000000.x.npy'")


def test_rows_that_are_not_the_blocks_are_refused(artifact: Path) -> None:
    reseal(artifact, rows=10**15)
    column_refused(artifact, "holds 6 rows, its manifest says 1000000000000000")


@pytest.mark.parametrize(
    "facts",
    [
        {"rows": None},
        {"rows": "6"},
        {"blocks": {}},
        {"blocks": [7]},
        {"blocks": [{"shard": SHARD, "key": "000000"}]},
        {"blocks": [{"shard": SHARD, "key": "000000", "rows": -4}]},
        {"blocks": [{"shard": [], "key": "000000", "rows": 4}]},
        {"fields": []},
        {"fields": {"x": None}},
        {"fields": {"x": {"dtype": "<f8", "shape": [-2]}}},
        {"fields": {"x": {"dtype": "<f8", "shape": [2.0]}}},
        {"fields": {"x": {"dtype": "<f8", "shape": [1] * 99}}},
        {"fields": {"x": {"dtype": 8, "shape": [2]}}},
    ],
    ids=str,
)
def test_a_split_that_no_writer_describes_so_is_refused(
    artifact: Path, facts: dict[str, Any]
) -> None:
    reseal(artifact, **facts)
    column_refused(artifact, "does not describe split 'train'")
    with pytest.raises(ArtifactError, match="does not describe"):
        ShardReader.open(artifact, KIND, MAKER).rows("train")


@pytest.mark.parametrize(
    "dtype", ["what", "f4,f4", "<f3", "U999999999", "(9,)f8", "V0", "<i" + "9" * 99]
)
def test_types_that_are_not_numbers_are_refused(artifact: Path, dtype: str) -> None:
    reseal(artifact, fields={"x": {"dtype": dtype, "shape": [2]}})
    column_refused(artifact)


@pytest.mark.parametrize("dtype", ["|S8", "|V8", "<U2", "<M8[s]"])
def test_arrays_of_other_things_than_numbers_are_refused(artifact: Path, dtype: str) -> None:
    """Header and manifest agree."""
    content = npy(np.zeros((4, 2)), descr=dtype)
    forge(
        artifact,
        lambda members: named(members, "000000.x.npy", content),
        fields={"x": {"dtype": dtype, "shape": [2]}},
    )
    column_refused(artifact, SHARD, "000000.x.npy", "not numbers")


@pytest.mark.parametrize("header", ["-" * 9000 + "1", "(" * 9000, "[" * 900 + "]" * 900])
def test_a_header_that_is_hard_to_parse_is_refused(artifact: Path, header: str) -> None:
    """It is a Python expression; deep ones overflow the parser."""
    content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + bytes(64)
    forge(artifact, lambda members: named(members, "000000.x.npy", content))
    reader = ShardReader.open(artifact, KIND, MAKER)
    with no_hang(), pytest.raises(ArtifactError, match=r"000000\.x\.npy' is not an \.npy array"):
        reader.column("train", "x")


# --- tensors and models -------------------------------------------------------------------------------


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


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved prior."""
    path = tmp_path_factory.mktemp("hostile") / "prior"
    features = torch.randn(64, 6, generator=rng.generator(0, "hostile"))
    FlowPrior.fit(features, dim=3, steps=1, width=8, depth=1).save(path)
    return path


HUGE = [10**6, 10**9, 10**30]


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", ["dim", "width", "depth"])
def test_a_prior_that_would_take_terabytes_is_refused_before_it_is_built(
    prior: Path, tmp_path: Path, name: str, size: int
) -> None:
    """The sizes are a stranger's, their sum is not the weights'."""
    for file in prior.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", read_json(prior / "config.json") | {name: size})
    write_manifest(tmp_path, kind="flow_prior", provenance={})
    with no_hang(), pytest.raises(ArtifactError, match="does not hold the prior it describes"):
        FlowPrior.load(tmp_path)


def test_sizes_are_tried_without_memory(
    prior: Path, tmp_path: Path, mar: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that memory could hold, and that are wrong, are refused before it is asked for them."""
    devices = []

    class Watched(VelocityMLP):
        def __init__(self, *sizes: Any) -> None:
            devices.append(torch.get_default_device().type)
            super().__init__(*sizes)

    def make(config: dict[str, Any]) -> MAR:
        devices.append(torch.get_default_device().type)
        return mar_from(config)

    for file in prior.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_json(tmp_path / "config.json", read_json(prior / "config.json") | {"width": 9})
    write_manifest(tmp_path, kind="flow_prior", provenance={})
    monkeypatch.setattr(prior_module, "VelocityMLP", Watched)
    with pytest.raises(ArtifactError, match="does not hold the prior it describes"):
        FlowPrior.load(tmp_path)
    with pytest.raises(ArtifactError, match="does not hold the model it describes"):
        with_size(mar, "shape", "width", 20).build(make, Path("mar"))
    assert devices == ["meta", "meta"]


AE = {
    "shape": Shape(8, 1, 2, 4, 3, 16, 1, 2)._asdict(),
    "bottleneck": "softvq",
    "codebooks": Codebooks(2, 8, 0.1)._asdict(),
}
MAR_SHAPE = MARShape(4, 3, 10, 16, 1, 1, 2, 2, 16, 1, 0.1)._asdict()


def mar_from(config: dict[str, Any]) -> MAR:
    """As `Sampler` builds it."""
    return MAR(MARShape(**config["shape"]))


@pytest.fixture(scope="module")
def autoencoder() -> Trained:
    """An autoencoder as `load_trained` gives it."""
    with rng.scoped(0):
        module = build_autoencoder(Shape(**AE["shape"]), "softvq", Codebooks(2, 8, 0.1))
    return Trained(AE, module.state_dict(), "", {})


@pytest.fixture(scope="module")
def mar() -> Trained:
    """A MAR as `load_trained` gives it."""
    with rng.scoped(0):
        module = MAR(MARShape(**MAR_SHAPE))
    return Trained({"shape": MAR_SHAPE}, module.state_dict(), "", {})


def with_size(trained: Trained, part: str, name: str, size: Any) -> Trained:
    """Another size in the config."""
    config = trained.config | {part: trained.config[part] | {name: size}}
    return trained._replace(config=config)


@pytest.mark.parametrize("size", [10**6, 10**12, 10**30, -1, 0, "8", None, [10**12]])
@pytest.mark.parametrize("name", [*Shape._fields[:-1], "what"])
def test_an_autoencoder_that_its_weights_do_not_fill_is_refused(
    autoencoder: Trained, name: str, size: Any
) -> None:
    """Before it takes memory, whatever the config says; ten to the twelfth would be terabytes."""
    wrong = with_size(autoencoder, "shape", name, size)
    with no_hang(), pytest.raises(ArtifactError, match="ae does not hold the model it describes"):
        wrong.build(autoencoder_from, Path("ae"))


@pytest.mark.parametrize(("part", "name"), [("codebooks", "num_codes"), ("codebooks", "what")])
def test_codebooks_that_the_weights_do_not_fill_are_refused(
    autoencoder: Trained, part: str, name: str
) -> None:
    with no_hang(), pytest.raises(ArtifactError, match="does not hold the model"):
        with_size(autoencoder, part, name, 10**12).build(autoencoder_from, Path("ae"))


@pytest.mark.parametrize("size", HUGE)
@pytest.mark.parametrize("name", [n for n in MARShape._fields if n not in ("num_heads", "dropout")])
def test_a_mar_that_its_weights_do_not_fill_is_refused(mar: Trained, name: str, size: int) -> None:
    with no_hang(), pytest.raises(ArtifactError, match="mar does not hold the model it describes"):
        with_size(mar, "shape", name, size).build(mar_from, Path("mar"))


def test_depths_below_the_number_of_weights_are_not_built_to_the_end(mar: Trained) -> None:
    """Modules take memory and time on the meta device too."""
    count = sum(tensor.numel() for tensor in mar.weights.values())
    started = time.perf_counter()
    with pytest.raises(ArtifactError, match="far more than the"):
        with_size(mar, "shape", "encoder_depth", count - 1).build(mar_from, Path("mar"))
    assert time.perf_counter() - started < 2


def test_a_model_of_many_parameters_can_be_built_afterwards(mar: Trained) -> None:
    """The count ends with the check."""
    with pytest.raises(ArtifactError):
        with_size(mar, "shape", "encoder_depth", 999).build(mar_from, Path("mar"))
    assert len(list(MAR(MARShape(**MAR_SHAPE | {"encoder_depth": 40})).parameters())) > 400


def test_what_is_built_is_what_was_saved(autoencoder: Trained, mar: Trained) -> None:
    """To the bit, on the CPU, frozen; and torch's stream moves as if it had been built once."""
    for trained, make in ((autoencoder, autoencoder_from), (mar, mar_from)):
        torch.manual_seed(0)
        built = trained.build(make, Path("x"))
        after = torch.get_rng_state()
        torch.manual_seed(0)
        once = trained.into(make(trained.config), Path("x"))
        assert torch.equal(torch.get_rng_state(), after)
        assert built.state_dict().keys() == once.state_dict().keys()
        for name, value in built.state_dict().items():
            assert value.device.type == "cpu"
            assert torch.equal(value, trained.weights[name])
        assert not any(p.requires_grad for p in built.parameters())
        assert not built.training


# --- npz ----------------------------------------------------------------------------------------------


def npz(
    path: Path, header: str, body: bytes = b"", version: int = 1, compressed: bool = False
) -> Path:
    """A file with one array of the given header."""
    text = header.encode()
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else 0) as archive:
        archive.writestr("arr_0.npy", b"\x93NUMPY" + bytes([version, 0]) + length + text + body)
    return path


def shaped(*shape: int) -> str:
    """A header of bytes of the given shape."""
    return str({"descr": "|u1", "fortran_order": False, "shape": shape}) + "\n"


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ((10**12, 8, 8, 3), "ends before image"),
        ((10**12, 0, 8, 3), "has the shape"),
        ((-1, 8, 8, 3), "has the shape"),
        ((-1, -8, 8, 3), "has the shape"),
        ((1, 60000, 60000, 3), "has the shape"),
        ((10**30, 8, 8, 3), "ends before image"),
    ],
    ids=str,
)
def test_images_that_only_a_header_has_are_refused(
    tmp_path: Path, shape: tuple[int, ...], reason: str
) -> None:
    """A terabyte, an endless number of images of nothing, less than none, one of ten gigabytes."""
    path = npz(tmp_path / "x.npz", shaped(*shape), bytes(192))
    with frugal(), pytest.raises(ValueError, match=rf"x\.npz.*{reason}"):
        NpzImages(path)


def test_a_header_that_is_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    """Fifty megabytes of spaces in fifty kilobytes; version 2 allows for four gigabytes."""
    path = npz(tmp_path / "x.npz", " " * 5 * 10**7, version=2, compressed=True)
    assert path.stat().st_size < 10**5
    with frugal(), pytest.raises(ValueError, match=r"x\.npz is not an \.npz with arr_0"):
        NpzImages(path)


def test_images_that_compress_well_are_read_in_pieces(tmp_path: Path) -> None:
    """A thousand to one is a bomb only where all of it is asked for."""
    path = npz(tmp_path / "x.npz", shaped(5000, 64, 64, 3), bytes(5000 * 64 * 64 * 3), 1, True)
    assert path.stat().st_size < 10**5
    with frugal(16):
        assert sum(len(piece) for piece in NpzImages(path).pieces(64)) == 5000


# --- images -------------------------------------------------------------------------------------------

EPS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/x) deletefile\n%%EOF\n"
)


def test_postscript_is_not_handed_to_ghostscript(monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL does that for any file that begins like it, whatever its name."""
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: started.append(1))
    with pytest.raises(Exception):  # noqa: B017, PT011 - the stand-in gives no image
        Image.open(io.BytesIO(EPS)).load()
    assert started.pop()
    with pytest.raises(ValueError, match=r"x\.jpg cannot be decoded as an image"):
        decode(EPS, 8, "x.jpg")
    assert not started


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + check


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A grey PNG of zeros, which compress a thousand to one."""
    start = b"\x89PNG\r\n\x1a\n" + chunk(
        b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    )
    rows = zlib.compress(bytes((width + 1) * height if width * height < 10**7 else 100))
    return start + b"".join(chunks) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def jpeg(width: int, height: int) -> bytes:
    """A small JPEG whose header promises another size."""
    content = bytearray(picture("JPEG"))
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "content",
    [
        jpeg(60000, 60000),
        jpeg(12000, 12000),
        png(60000, 60000),
        png(12000, 12000),
        png(9_000_000, 1),
        png(1, 300_000),
        png(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8)))),
        png(8, 8, *[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**6)))] * 100),
    ],
    ids=["jpeg", "smaller jpeg", "png", "smaller png", "row", "column", "text", "texts"],
)
def test_an_image_of_a_few_bytes_takes_little_memory(content: bytes) -> None:
    """Ten gigapixels; a row, which scaled to a height of 256 would be as large; texts of a hundred megabytes."""
    assert len(content) < 10**6
    with frugal(80), pytest.raises(ValueError, match=r"x\.png cannot be decoded as an image"):
        decode(content, 256, "x.png")


def test_a_row_that_stays_small_is_an_image() -> None:
    """Panoramas are not bombs."""
    assert decode(png(3000, 30), 256, "x.png").shape == (3, 256, 256)


def shard(root: Path, **members: bytes) -> Path:
    """A webdataset shard; double underscores are dots."""
    with tarfile.open(root / "0.tar", "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("__", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return root


def test_a_class_of_a_billion_is_refused(tmp_path: Path) -> None:
    """MAR has a row of its table for each class up to the largest."""
    with pytest.raises(ValueError, match='class "999999999", not a number below 1 000 000'):
        WebShards(shard(tmp_path, a__png=b"", a__cls=b"999999999"), "train", 0, 8)


def test_a_class_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """Of a member that is to be a number, a few bytes are read."""
    (tmp_path / "0.tar").write_bytes(block("a.png", 0) + block("a.cls", 2**33))
    os.truncate(tmp_path / "0.tar", 2**33 + 4096)
    with frugal(), pytest.raises(ValueError, match="has the class"):
        WebShards(tmp_path, "train", 0, 8)


def test_an_image_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    """It counts as damaged."""
    header = block("a.cls", 1) + padded(b"0") + block("a.png", 2**33)
    (tmp_path / "0.tar").write_bytes(header)
    os.truncate(tmp_path / "0.tar", 2**33 + 8192)
    images = WebShards(tmp_path, "train", 0, 8)
    with frugal(), pytest.raises(ValueError, match=f"an image of {2**33} bytes"):
        images.images([0])
    assert images_module.MAX_IMAGE_BYTES < 2**33


def test_members_with_paths_out_of_the_folder_are_names_and_no_more(tmp_path: Path) -> None:
    """Nothing is unpacked: `..` and `/` are keys, links and devices are no samples."""
    (tmp_path / "in").mkdir()
    before = sorted(tmp_path.rglob("*"))
    with tarfile.open(tmp_path / "in" / "0.tar", "w") as tar:
        for key in ("../../x", "/etc/x"):
            for name, content in ((f"{key}.png", picture()), (f"{key}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("../y.png")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    images = WebShards(tmp_path / "in", "train", 0, 8)
    assert images.images(range(len(images))).shape[1:] == (3, 8, 8)
    assert sorted(tmp_path.rglob("*")) == [*before, tmp_path / "in" / "0.tar"]


# --- parameters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "seed: !!python/object/new:os.system ['touch {marker}']",
        "seed: !!python/name:os.system",
        "!!python/object/apply:subprocess.check_output [['touch', '{marker}']]",
    ],
)
def test_a_tag_in_the_parameters_runs_nothing(tmp_path: Path, text: str) -> None:
    """Tags are not known, but for YAML's own."""
    marker = tmp_path / "marker"
    (tmp_path / "params.yaml").write_text(text.format(marker=marker))
    with pytest.raises(params.ParamsError, match="is not YAML: could not determine a constructor"):
        params.load_params(tmp_path / "params.yaml")
    assert not marker.exists()
