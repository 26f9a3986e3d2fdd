"""Images as others' evaluators read them: numpy is the reference, memory is bounded, bad files are named."""

import io
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.npz import NpzImages, write_npz

from ..strangers import CHANGES, FUZZ, PICKLE, changed, frugal, no_hang, outcome

pytestmark = pytest.mark.usefixtures("never_unpickled")


def images(n: int, channels: int = 3, size: int = 4) -> Tensor:
    """Fixed random bytes."""
    draw = rng.generator(0, "npz")
    return torch.randint(256, (n, channels, size, size), generator=draw).to(torch.uint8)


def read(path: Path, batch: int) -> Tensor:
    """All images of a file."""
    return torch.cat(list(NpzImages(path).pieces(batch)))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_file_is_the_one_that_numpy_writes(tmp_path: Path, channels: int) -> None:
    """Byte by byte, whatever the pieces: what reads numpy's files reads these."""
    pictures, labels = images(7, channels), torch.arange(7)
    buffer = io.BytesIO()
    np.savez(buffer, arr_0=pictures.permute(0, 2, 3, 1).numpy(), labels=labels.numpy())
    for size in (3, 7):
        write_npz(tmp_path / "x.npz", pictures.split(size), labels)
        assert (tmp_path / "x.npz").read_bytes() == buffer.getvalue()


@pytest.mark.parametrize("batch", [1, 3, 7, 100])
def test_what_is_written_is_read_in_pieces_of_any_size(tmp_path: Path, batch: int) -> None:
    pictures = images(7)
    write_npz(tmp_path / "x.npz", pictures.split(2), torch.arange(7))
    found = NpzImages(tmp_path / "x.npz")
    assert (len(found), found.size, found.channels) == (7, [4, 4], 3)
    assert max(len(piece) for piece in found.pieces(batch)) == min(batch, 7)
    assert torch.equal(read(tmp_path / "x.npz", batch), pictures)


def test_a_compressed_file_is_read_too(tmp_path: Path) -> None:
    pictures = images(5)
    np.savez_compressed(tmp_path / "x.npz", arr_0=pictures.permute(0, 2, 3, 1).numpy())
    assert torch.equal(read(tmp_path / "x.npz", 2), pictures)


def test_pieces_are_on_disk_before_the_next_is_asked_for(tmp_path: Path) -> None:
    """So that 50 000 images need the memory of a batch."""
    path, piece = tmp_path / "x.npz", images(16, size=64)
    sizes = []

    def pieces() -> Iterator[Tensor]:
        for _ in range(8):
            sizes.append(path.stat().st_size)
            yield piece

    write_npz(path, pieces(), torch.arange(128))
    one = piece.numel()
    # Python's buffer of the file may hold back some kilobytes.
    assert all(size >= index * one - 2**17 for index, size in enumerate(sizes))


def test_images_and_labels_must_be_equally_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="6 images for 7 labels"):
        write_npz(tmp_path / "x.npz", [images(6)], torch.arange(7))


def test_images_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="followed by"):
        write_npz(tmp_path / "x.npz", [images(1), images(1, size=5)], torch.arange(2))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 4, 4, 3), dtype=np.float32),
        np.zeros((2, 4, 4), dtype=np.uint8),
        np.zeros((2, 3, 4, 4), dtype=np.uint8),
        np.asfortranarray(np.zeros((2, 4, 4, 3), dtype=np.uint8)),
    ],
    ids=["floats", "no channels", "channels first", "fortran"],
)
def test_other_arrays_are_refused(tmp_path: Path, array: np.ndarray) -> None:
    np.savez(tmp_path / "x.npz", arr_0=array)
    with pytest.raises(ValueError, match=r"arr_0 must be uint8 \[n, h, w, 1 or 3\]"):
        NpzImages(tmp_path / "x.npz")


def test_files_without_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", mu=np.zeros(3))
    for name in ("text", "other", "absent"):
        with pytest.raises(ValueError, match=f"{name}.npz is not an .npz with arr_0"):
            NpzImages(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("count", [50, 500])
def test_a_damaged_file_is_named(tmp_path: Path, count: int) -> None:
    """A small one is noticed when it is opened, a large one at its end."""
    path = tmp_path / "x.npz"
    write_npz(path, [images(count)], torch.arange(count))
    content = bytearray(path.read_bytes())
    content[1000] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x\.npz is .*Bad CRC"):
        read(path, 7)


def test_a_file_with_fewer_images_than_it_says_is_named(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, images(5).permute(0, 2, 3, 1).numpy())
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-10])
    with pytest.raises(ValueError, match="ends before image 5 of 5"):
        read(tmp_path / "x.npz", 2)


def npz_of(
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
    path = npz_of(tmp_path / "x.npz", shaped(*shape), bytes(192))
    with frugal(), pytest.raises(ValueError, match=rf"x\.npz.*{reason}"):
        NpzImages(path)


def test_a_header_that_is_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    """Fifty megabytes of spaces in fifty kilobytes; version 2 allows for four gigabytes."""
    path = npz_of(tmp_path / "x.npz", " " * 5 * 10**7, version=2, compressed=True)
    assert path.stat().st_size < 10**5
    with frugal(), pytest.raises(ValueError, match=r"x\.npz is not an \.npz with arr_0"):
        NpzImages(path)


def test_images_that_compress_well_are_read_in_pieces(tmp_path: Path) -> None:
    """A thousand to one is a bomb only where all of it is asked for."""
    path = npz_of(tmp_path / "x.npz", shaped(5000, 64, 64, 3), bytes(5000 * 64 * 64 * 3), 1, True)
    assert path.stat().st_size < 10**5
    with frugal(16):
        assert sum(len(piece) for piece in NpzImages(path).pieces(64)) == 5000


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
