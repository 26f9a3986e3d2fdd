"""Files become images in [-1, 1] at one size, or are refused, or replaced and counted."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image, ImageOps

from flowprior.images.decoding import decode
from flowprior.images.digits import Digits
from flowprior.images.folder import ImageFolder
from flowprior.images.opening import open_images
from flowprior.images.shards import WebShards

from ..strangers import CHANGES, FUZZ, changed, frugal, outcome, picture
from .sources import (
    NOISE,
    SIZE,
    SOURCES,
    encoded,
    grey,
    png,
    ramp,
    tree_with_damage,
    value_of,
    write_tar,
    write_tree,
)

pytestmark = pytest.mark.usefixtures("never_unpickled")


@pytest.mark.parametrize(("value", "expected"), [(0, -1.0), (255, 1.0), (51, -0.6)])
@pytest.mark.parametrize("size", [(8, 8), (5, 5), (64, 64), (9, 30), (30, 9), (17, 100)])
def test_an_image_of_one_value_keeps_it_at_any_size(
    value: int, expected: float, size: tuple[int, int]
) -> None:
    """Black is -1 and white is 1, whatever is scaled and cropped."""
    image = decode(png(grey(value, *size)), SIZE, "x.png")
    assert image.shape == (3, SIZE, SIZE)
    torch.testing.assert_close(image, torch.full((3, SIZE, SIZE), expected), rtol=0, atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    """Every pixel comes through; channels come first."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    expected = torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(decode(png(Image.fromarray(pixels)), SIZE, "x.png"), expected)


def test_the_centre_is_kept() -> None:
    """Of a wide image the sides go, of a tall one top and bottom."""
    for width, height in [(3 * SIZE, SIZE), (SIZE, 3 * SIZE)]:
        image = grey(0, width, height)
        image.paste(grey(200), ((width - SIZE) // 2, (height - SIZE) // 2))
        assert value_of(decode(png(image), SIZE, "x.png")) == 200


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "CMYK"])
def test_images_of_any_mode_become_rgb(mode: str) -> None:
    """Grey, transparent, palettes, bits."""
    buffer = io.BytesIO()
    grey(255).convert(mode).save(buffer, "TIFF")
    image = decode(buffer.getvalue(), SIZE, "x")
    torch.testing.assert_close(image, torch.ones(3, SIZE, SIZE), rtol=0, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"not an image", png(NOISE)[:8], png(NOISE)[:300]])
def test_a_broken_image_is_an_error_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    """In a tree by its path, in a shard by the shard and the place in it."""
    tree, shard = tmp_path / "tree", tmp_path / "shard"
    (tree / "ant").mkdir(parents=True)
    (tree / "ant" / "broken.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"ant/broken\.png cannot be decoded as an image"):
        ImageFolder(tree, "train", 0, SIZE).images([0])
    shard.mkdir()
    write_tar(shard, {"broken.png": content, "broken.cls": b"0"})
    with pytest.raises(ValueError, match=r"0000\.tar at byte 512 cannot be decoded as an image"):
        WebShards(shard, "train", 0, SIZE).images([0])


def spoilt_png() -> bytes:
    """A PNG whose first data chunk claims to be shorter than it is, so that its rest looks like a chunk."""
    content = bytearray(png(NOISE))
    place = content.index(b"IDAT")
    content[place - 4 : place] = (10).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("content", [spoilt_png(), b"P6 2x 2 255 ............"], ids=["png", "ppm"])
def test_an_image_spoilt_inside_is_an_error_that_names_the_file(content: bytes) -> None:
    """Whatever PIL raises for it."""
    with pytest.raises(ValueError, match=r"spoilt\.img cannot be decoded as an image"):
        decode(content, SIZE, "spoilt.img")


@pytest.mark.parametrize("source", SOURCES)
def test_a_damaged_image_gives_its_place_to_the_next_of_its_class(
    tmp_path: Path, source: str
) -> None:
    """The label stays right, the others are what they are, one warning tells, and the count is kept."""
    root = tree_with_damage(tmp_path / "root", source)
    images = open_images(source, "train", split_seed=1, size=SIZE, path=str(root), max_corrupt=0.2)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        first = images.images(range(len(images)))
        again = images.images(range(len(images)))
    assert torch.equal(first, again)
    values = [value_of(image) for image in first]
    damaged = [i for i, value in enumerate(values) if values.count(value) > 1]
    assert len(set(values)) == len(images) - 1
    assert len(damaged) == 2
    assert damaged[1] == damaged[0] + 1
    assert images.labels[damaged[0]] == images.labels[damaged[1]] == 0
    assert [int(value >= 10) for value in values] == images.labels.tolist()
    assert len(told) == len(images.corrupt) == 1
    assert "another image of its class takes its place" in str(told[0].message)


@pytest.mark.parametrize("source", SOURCES)
def test_more_damage_than_allowed_is_an_error_that_counts_it(tmp_path: Path, source: str) -> None:
    root = tree_with_damage(tmp_path / "root", source)
    images = open_images(source, "train", split_seed=1, size=SIZE, path=str(root), max_corrupt=0.01)
    with pytest.raises(ValueError, match=r"1 of 16 images are damaged.*images\.max_corrupt 0\.01"):
        images.images(range(len(images)))


def test_a_class_without_a_whole_image_is_an_error(tmp_path: Path) -> None:
    write_tree(tmp_path / "train", ["ant", "bee"], 3)
    write_tree(tmp_path / "val", ["ant", "bee"], 1)
    for file in (tmp_path / "train" / "ant").iterdir():
        file.write_bytes(b"")
    images = ImageFolder(tmp_path, "train", 0, SIZE, max_corrupt=0.9)
    with (
        pytest.warns(UserWarning, match="cannot be decoded"),
        pytest.raises(ValueError, match="no image of class 0 can be decoded"),
    ):
        images.images([0])


def test_an_image_that_went_away_counts_as_damaged(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], 10)
    images = ImageFolder(tmp_path, "train", 0, SIZE, max_corrupt=0.5)
    for file in sorted((tmp_path / "ant").iterdir())[:2]:
        file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images.images(range(len(images)))
    assert len(images.corrupt) in (1, 2)  # one of the two may be held out


@pytest.mark.parametrize(
    ("down", "right", "red", "green"), [(0.0, 0.0, 0, 0), (0.99, 0.0, 0, 20), (0.0, 0.99, 40, 0)]
)
def test_a_crop_lies_where_it_is_drawn(down: float, right: float, red: int, green: int) -> None:
    """Without zoom a 60 x 40 image, cut to 20: all of its short side is 20 pixels, so 1/2 of the levels."""
    crop = torch.tensor([0.0, down, right, 0.0])
    image = (decode(ramp(60, 20), 20, "x", crop) + 1) * 127.5
    assert image[0, 0, 0] == pytest.approx(red, abs=0.6)
    taller = (decode(ramp(20, 40), 20, "x", crop) + 1) * 127.5
    assert taller[1, 0, 0] == pytest.approx(green, abs=0.6)


def test_a_crop_is_between_four_fifths_and_all_of_the_short_side_and_may_be_mirrored() -> None:
    """Seen by how far the levels of a ramp of 100 pixels reach."""
    reach = {}
    for zoom in (0.0, 0.5, 0.999):
        image = (decode(ramp(100, 100), 40, "x", torch.tensor([zoom, 0.0, 0.0, 0.0])) + 1) * 127.5
        reach[zoom] = float(image[0, 0].max() - image[0, 0].min())
    assert reach[0.0] == pytest.approx(97, abs=2)
    assert reach[0.999] == pytest.approx(78, abs=2)
    assert reach[0.0] > reach[0.5] > reach[0.999]
    plain, mirrored = (
        decode(ramp(100, 100), 40, "x", torch.tensor([0.3, 0.2, 0.1, side])) for side in (0.4, 0.6)
    )
    assert torch.equal(plain.flip(-1), mirrored)


def test_a_batch_takes_a_crop_for_each_image(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant"], 1)
    (tmp_path / "ant" / "000.png").write_bytes(ramp(30, 30))
    images = ImageFolder(tmp_path, "train", 0, SIZE)
    crops = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.9, 0.5, 0.9, 0.9]])
    found = images.images([0, 0], crops)
    for image, crop in zip(found, crops, strict=True):
        assert torch.equal(image, decode(ramp(30, 30), SIZE, "x", crop))
    with pytest.raises(ValueError, match="not cropped"):
        Digits("train", 0).images([0, 1], crops)


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


def png_of_zeros(width: int, height: int, *chunks: bytes) -> bytes:
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
        png_of_zeros(60000, 60000),
        png_of_zeros(12000, 12000),
        png_of_zeros(9_000_000, 1),
        png_of_zeros(1, 300_000),
        png_of_zeros(8, 8, chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**8)))),
        png_of_zeros(8, 8, *[chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(10**6)))] * 100),
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
    assert decode(png_of_zeros(3000, 30), 256, "x.png").shape == (3, 256, 256)


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


def colour(mode: str, value: Any, **info: Any) -> bytes:
    """A file of one colour, of a format that can have the mode."""
    kind = {"CMYK": "JPEG", "F": "TIFF"}.get(mode, "PNG")
    return encoded(Image.new(mode, (6, 6), value), kind, **info)


def bytes_of(image: torch.Tensor) -> list[int]:
    """The colour of an image of one."""
    assert float((image - image[:, :1, :1]).abs().max()) < 1e-6
    return [round(float((x + 1) * 127.5)) for x in image[:, 0, 0]]


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    """The same ramp from either: as grey PNG and TIFF."""
    ramp8 = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    expected = decode(encoded(Image.fromarray(ramp8)), 16, "8 bits")
    deep = Image.fromarray(ramp8.astype(np.uint16) * 257)
    for kind in ("PNG", "TIFF"):
        assert torch.equal(decode(encoded(deep, kind), 16, "16 bits"), expected)
    wide = Image.fromarray(ramp8.astype(np.int32) * 257)
    assert torch.equal(decode(encoded(wide, "TIFF"), 16, "32 bits"), expected)


@pytest.mark.parametrize("value", [70_000, -5])
def test_values_of_no_sixteen_bits_are_refused(value: int) -> None:
    wide = Image.fromarray(np.full((8, 8), value, dtype=np.int32))
    with pytest.raises(ValueError, match=f"values reach from {value} to {value}"):
        decode(encoded(wide, "TIFF"), 8, "x")


def test_fractions_are_refused() -> None:
    with pytest.raises(ValueError, match="fractions of no stated range"):
        decode(colour("F", 0.5), 8, "x")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (colour("RGBA", (200, 10, 10, 0)), [255, 255, 255]),
        (colour("RGBA", (200, 10, 10, 255)), [200, 10, 10]),
        (colour("RGBA", (0, 0, 0, 102)), [153, 153, 153]),
        (colour("LA", (7, 0)), [255, 255, 255]),
        (colour("RGB", (9, 8, 7), transparency=(9, 8, 7)), [255, 255, 255]),
        (colour("RGB", (9, 8, 7), transparency=(1, 1, 1)), [9, 8, 7]),
        (colour("L", 9, transparency=9), [255, 255, 255]),
        (colour("CMYK", (0, 0, 0, 255)), [0, 0, 0]),
        (colour("1", 1), [255, 255, 255]),
    ],
)
def test_what_is_transparent_lies_over_white(content: bytes, expected: list[int]) -> None:
    """Whatever colour stands behind it; of RGBA, of grey with alpha, of one colour that is named transparent."""
    found = bytes_of(decode(content, 6, "x"))
    assert all(abs(a - b) <= 1 for a, b in zip(found, expected, strict=True)), found


def test_transparent_places_of_a_palette_lie_over_white() -> None:
    """Whether one colour is transparent or each has its share."""
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    assert bytes_of(decode(encoded(image), 6, "x")) == [200, 10, 10]
    assert bytes_of(decode(encoded(image, transparency=1), 6, "x")) == [255, 255, 255]
    assert bytes_of(decode(encoded(image, transparency=bytes([255, 0, 255])), 6, "x")) == [255] * 3
    image.putpixel((0, 0), 2)
    assert bytes_of(decode(encoded(image, transparency=2), 6, "x")[:, 1:, 1:]) == [200, 10, 10]


@pytest.mark.parametrize("turn", range(1, 9))
def test_images_stand_as_their_exif_data_say(turn: int) -> None:
    """As PIL itself turns them; damaged data leave the image as it is."""
    pixels = np.zeros((8, 8, 3), dtype=np.uint8)
    pixels[:4, :4] = 255
    pixels[:4, 4:, 0] = 128
    exif = Image.Exif()
    exif[0x0112] = turn
    content = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    with Image.open(io.BytesIO(content)) as opened:
        upright = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    found = decode(content, 8, "x")
    assert np.array_equal(((found + 1) * 127.5).round().numpy().transpose(1, 2, 0), upright)
    assert (turn == 1) == np.array_equal(upright, pixels)


def test_an_image_of_one_pixel_is_one(tmp_path: Path) -> None:
    content = encoded(Image.new("RGB", (1, 1), (1, 2, 3)))
    assert bytes_of(decode(content, 16, "x")) == [1, 2, 3]


def test_grey_images_have_one_channel_where_all_are(tmp_path: Path) -> None:
    """By the training images, or by what is asked for."""
    for name, first in (("grey", "L"), ("mixed", "RGB")):
        (tmp_path / name / "a").mkdir(parents=True)
        for i in range(10):
            Image.new("L" if i else first, (8, 8)).save(tmp_path / name / "a" / f"{i}.png")
    greys = ImageFolder(tmp_path / "grey", "train", 0, 8)
    assert greys.channels == 1
    assert greys.images([0, 1]).shape == (2, 1, 8, 8)
    crops = torch.tensor([[0.5, 0.5, 0.5, 0.9]])
    assert greys.images([0], crops).shape == (1, 1, 8, 8)
    both = [ImageFolder(tmp_path / "mixed", split, 0, 8) for split in ("train", "validation")]
    assert [one.channels for one in both] == [3, 3]
    asked = ImageFolder(tmp_path / "mixed", "train", 0, 8, channels=1)
    assert asked.images([0]).shape == (1, 1, 8, 8)
    assert ImageFolder(tmp_path / "grey", "train", 0, 8, channels=3).digest != greys.digest


def test_a_few_colours_among_many_greys_are_seen(tmp_path: Path) -> None:
    """Also where every second image is in colour, in their order."""
    (tmp_path / "a").mkdir()
    for i in range(400):
        Image.new("RGB" if i % 2 else "L", (2, 2)).save(tmp_path / "a" / f"{i:03d}.png")
    assert ImageFolder(tmp_path, "train", 0, 8).channels == 3
