"""Webdataset shards of images, sound and not."""

import io
import json
import os
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from flowprior.images.listing import MAX_IMAGE_BYTES
from flowprior.images.opening import open_both_splits
from flowprior.images.shards import WebShards, expand

from ..strangers import CHANGES, FUZZ, changed, frugal, mended, outcome, picture
from .sources import SIZE, grey, open_both, png, values, write_tar

pytestmark = pytest.mark.usefixtures("never_unpickled")


def test_a_folder_without_shards_is_an_error(tmp_path: Path) -> None:
    """The message names it."""
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no \.tar shards"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("text", [b"", b"a\0b", b"x" * 201, b"two\nlines"])
def test_a_class_that_is_no_name_is_an_error(tmp_path: Path, text: bytes) -> None:
    """The message names shard, sample and what was found."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    with pytest.raises(ValueError, match=r"0000\.tar: sample 'a' has the class \".*\", no name"):
        WebShards(tmp_path, "train", 0, SIZE)


@pytest.mark.parametrize("text", [b"3", b" 3\n", b"003"])
def test_a_class_may_have_space_around_it(tmp_path: Path, text: bytes) -> None:
    """As text editors leave it."""
    write_tar(tmp_path, {"a.png": png(grey(0)), "a.cls": text})
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert images.labels.tolist() == [0]
    assert images.class_names == ("3",)


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (["1", "2", "10"], ("1", "2", "10")),  # from 1, with holes, in the order of numbers
        (["151", "9", "151"], ("9", "151")),
        (["dog", "ant", "Ankle boot"], ("Ankle boot", "ant", "dog")),
        (["2", "b", "10"], ("10", "2", "b")),
    ],
)
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_classes_are_those_that_have_images(
    tmp_path: Path, classes: list[str], names: tuple[str, ...], kind: str
) -> None:
    members = {}
    for number, label in enumerate(classes):
        members[f"{number}.png"] = png(grey(number))
        told = label if kind == "cls" else json.dumps({"label": label, "caption": "a thing"})
        members[f"{number}.{kind}"] = told.encode()
    images = WebShards(write_tar(tmp_path, members), "train", 0, SIZE)
    assert images.class_names == names
    assert images.num_classes == len(names)
    assert [names[label] for label in images.labels] == classes


def test_a_file_may_name_the_classes_in_their_order(tmp_path: Path) -> None:
    """Those without an image are left out; a number without a name is an error."""
    members = {}
    for number, label in enumerate((3, 0, 3)):
        members |= {f"{number}.png": png(grey(number)), f"{number}.cls": str(label).encode()}
    write_tar(tmp_path, members)
    names = tmp_path / "classes.json"
    names.write_text('["zebra", "yak", "wolf", "ant"]', encoding="utf-8")
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert images.class_names == ("zebra", "ant")
    assert images.labels.tolist() == [1, 0, 1]
    names.write_text('["1", "2", "3", "0"]', encoding="utf-8")  # numbers, not names
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert [images.class_names[label] for label in images.labels] == ["0", "1", "0"]
    names.write_text('["zebra", "yak"]', encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.json has 2 names, none for the class '3'"):
        WebShards(tmp_path, "train", 0, SIZE)
    for wrong in ('["a", "a"]', '{"a": 1}', "[1, 2]", '["a", ""]'):
        names.write_text(wrong, encoding="utf-8")
        with pytest.raises(ValueError, match="must list the classes' names, each once"):
            WebShards(tmp_path, "train", 0, SIZE)


def test_samples_without_a_class_are_of_one(tmp_path: Path) -> None:
    """All of them; some is an error that names the first."""
    members = {f"{i}.png": png(grey(i)) for i in range(5)}
    write_tar(tmp_path, {**members, "0.json": b"{}", "1.json": b"[]", "2.txt": b"a cat"})
    images = WebShards(tmp_path, "train", 0, SIZE)
    assert (images.class_names, len(images)) == (("all",), 4)
    write_tar(tmp_path, {**members, "3.cls": b"1"})
    with pytest.raises(ValueError, match=r"4 of 5 samples have no class, among them 0000\.tar/0"):
        WebShards(tmp_path, "train", 0, SIZE)
    write_tar(tmp_path, {**members, "3.json": b"{"})
    with pytest.raises(ValueError, match=r"the \.json of sample '3' is not JSON"):
        WebShards(tmp_path, "train", 0, SIZE)


def test_samples_without_an_image_are_passed_over_with_a_word(tmp_path: Path) -> None:
    members = {"a.png": png(grey(0)), "a.cls": b"1", "b.cls": b"1", "c.mp4": b"", "c.cls": b"2"}
    write_tar(tmp_path, members)
    with pytest.warns(UserWarning, match=r"passed over 1 samples without an image \(\.cls \.mp4\)"):
        images = WebShards(tmp_path, "train", 0, SIZE)
    assert len(images) == 1
    assert sum(images.passed_over.values()) == 2


def named(root: Path, *names: str) -> Path:
    """Shards of five images each, by their names; grey values go on from one to the next."""
    root.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        members = {}
        for i in range(5):
            value = 10 * number + i
            members |= {f"{value:03d}.png": png(grey(value)), f"{value:03d}.cls": b"0"}
        write_tar(root, members)
        (root / "0000.tar").rename(root / name)
    return root


@pytest.mark.parametrize(
    "names",
    [
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train_00.tar", "val_00.tar"),
        ("Training-0.tar", "TEST-0.tar"),
    ],
)
def test_shards_that_name_their_split_are_split(tmp_path: Path, names: tuple[str, str]) -> None:
    both = open_both("webdataset", named(tmp_path, *names))
    assert values(both["train"]) == [0, 1, 2, 3, 4]
    assert values(both["validation"]) == [10, 11, 12, 13, 14]


def test_a_test_set_beside_a_validation_set_is_passed_over(tmp_path: Path) -> None:
    named(tmp_path, "train-0.tar", "test-0.tar", "val-0.tar")
    with pytest.warns(UserWarning, match="passed over 1 shards of test"):
        both = open_both("webdataset", tmp_path)
    assert values(both["validation"]) == [20, 21, 22, 23, 24]


def test_held_out_shards_beside_others_are_not_mixed_with_them(tmp_path: Path) -> None:
    named(tmp_path, "0000.tar", "validation-0.tar")
    with pytest.raises(
        ValueError, match=r"validation-0\.tar, which is held out by its name, beside"
    ):
        WebShards(tmp_path, "train", 0, SIZE)


def test_a_word_within_a_word_is_no_split(tmp_path: Path) -> None:
    """`trainstation`, `interval`: all are shards of one set."""
    assert (
        len(WebShards(named(tmp_path, "trainstations-0.tar", "interval-1.tar"), "train", 0, 8)) == 8
    )


def test_patterns(tmp_path: Path) -> None:
    named(tmp_path, "a-0008.tar", "a-0009.tar", "a-0010.tar", "b-1.tar")

    def opened(**patterns: str) -> list[list[int]]:
        settings = {"split_seed": 0, "size": SIZE, "path": str(tmp_path), **patterns}
        return [
            sorted(values(one)) for one in open_both_splits({"source": "webdataset", **settings})
        ]

    train, held_out = opened(shards="a-{0009..0010}.tar")
    assert sorted(train + held_out) == [10, 11, 12, 13, 14, 20, 21, 22, 23, 24]
    train, held_out = opened(shards="a-*.tar", held_out="{b}-1.tar")
    assert len(train) == 15
    assert held_out == [30, 31, 32, 33, 34]
    with pytest.raises(ValueError, match=r"1 of 4 shards are absent, among them .*a-0011\.tar"):
        opened(shards="a-{0008..0011}.tar")
    with pytest.raises(ValueError, match="runs backwards"):
        expand("a-{5..2}.tar")
    assert expand("{a,b}-{08..10}.tar")[:4] == ["a-08.tar", "a-09.tar", "a-10.tar", "b-08.tar"]


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


def test_a_class_of_a_billion_is_a_name(tmp_path: Path) -> None:
    """MAR has a row of its table for each class that there is."""
    images = WebShards(shard(tmp_path, a__png=b"", a__cls=b"999999999"), "train", 0, 8)
    assert images.num_classes == 1


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


def test_hidden_shards_are_none(tmp_path: Path) -> None:
    """MacOS leaves `._a.tar` beside `a.tar`."""
    named(tmp_path, "a.tar")
    (tmp_path / "._a.tar").write_bytes(b"attributes")
    assert len(WebShards(tmp_path, "train", 0, SIZE)) == 4


def test_a_json_of_a_stranger_cannot_overflow(tmp_path: Path) -> None:
    members = {"a.png": png(grey(0)), "a.json": b"[" * 60_000}
    with pytest.raises(ValueError, match=r"the \.json of sample 'a' is not JSON"):
        WebShards(write_tar(tmp_path, members), "train", 0, SIZE)
