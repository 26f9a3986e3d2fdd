"""Webdataset shards of images, sound and not."""

import io
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from flowprior.images.decoding import MAX_IMAGE_BYTES
from flowprior.images.shards import WebShards

from ..strangers import CHANGES, FUZZ, changed, frugal, mended, outcome, picture
from .sources import SIZE, grey, png, write_tar

pytestmark = pytest.mark.usefixtures("never_unpickled")


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no \.tar shards"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("text", [b"cat", b"", b"-1", b"1.0", b"1 2", b"9999999999", b"\xff"])
def test_a_class_that_is_no_number_is_an_error(tmp_path: Path, text: bytes) -> None:
    """The message names shard, sample and what was found."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    with pytest.raises(
        ValueError, match=r"0000\.tar: sample 'a' has the class \".*\", not a number"
    ):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("text", [b"3", b" 3\n", b"003"])
def test_a_class_may_have_space_around_it(tmp_path: Path, text: bytes) -> None:
    """As text editors leave it."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert images.labels.tolist() == [3]
    assert images.num_classes == 4


@pytest.mark.parametrize("extension", ["png", "cls"])
def test_a_sample_without_image_or_class_is_an_error(tmp_path: Path, extension: str) -> None:
    """The message names shard and sample."""
    members = {"a.png": png(grey(0)), "a.cls": b"1", "b.json": b"{}"}
    members[f"b.{extension}"] = members[f"a.{extension}"]
    write_tar(tmp_path, members)
    with pytest.raises(ValueError, match=r"0000\.tar: sample 'b' lacks an image or a \.cls member"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("keep", [0, 100, 600, 1400])
def test_a_truncated_shard_is_an_error(tmp_path: Path, keep: int) -> None:
    """It is not read up to where it ends."""
    write_tar(
        tmp_path, {"a.png": png(grey(0)), "a.cls": b"1", "b.png": png(grey(1)), "b.cls": b"1"}
    )
    path = tmp_path / "0000.tar"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"0000\.tar"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("folder", ["./", "v1.0/"])
def test_samples_may_lie_in_folders_of_a_shard(tmp_path: Path, folder: str) -> None:
    """`tar -C folder .` prefixes every name with `./`; webdataset takes the key up to the name's first dot."""
    members: dict[str, bytes] = {}
    for i in range(5):
        members |= {f"{folder}{i}.png": png(grey(i)), f"{folder}{i}.cls": b"0"}
    write_tar(tmp_path, members)
    assert len(list(webdataset.WebDataset(str(tmp_path / "0000.tar"), shardshuffle=False))) == 5
    assert len(WebShards(tmp_path, "train", 0, SIZE)) == 4


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
    assert MAX_IMAGE_BYTES < 2**33


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
