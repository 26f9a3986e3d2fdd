"""A tar is listed as tarfile lists it, or refused at once."""

import io
import tarfile
from pathlib import Path

import pytest

from flowprior.core.io import ArtifactError
from flowprior.core.tars import MAX_TAR_HEADER_BYTES, tar_members
from flowprior.images.shards import WebShards

from ..strangers import frugal, no_hang

TERABYTE = 2**40


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
    """The time that Python before 3.11.10 takes for it is quadratic in its length.

    Those pass over it; later ones, and Debian's 3.11.2, have the remedy of CVE-2024-6232 and refuse it.
    """
    digits = b"1" * MAX_TAR_HEADER_BYTES
    (tmp_path / "0.tar").write_bytes(block("x", len(digits), b"x") + digits + PLAIN + END)
    with no_hang():
        try:
            found: object = [info.name for info in tar_members(tmp_path / "0.tar")]
        except ArtifactError as error:
            found = str(error)
    assert found == ["0.cls"] or "invalid header" in str(found)


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
