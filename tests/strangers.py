"""Files from strangers: what is done to bytes and to JSON, and what a reader may do then."""

import copy
import io
import os
import pickle
import signal
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from flowprior.core.io import ArtifactError

FUZZ = settings(
    deadline=None,
    derandomize=True,
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


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


def mended(content: bytes) -> bytes:
    """A tar whose headers have right checksums again, wherever a header is to be expected."""
    out = bytearray(content)
    for at in range(0, len(out) - 511, 512):
        if out[at + 257 : at + 262] == b"ustar":
            out[at + 148 : at + 156] = b" " * 8
            out[at + 148 : at + 156] = b"%06o\0 " % sum(out[at : at + 512])
    return bytes(out)


def picture(kind: str = "PNG") -> bytes:
    """A small image."""
    buffer = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    from PIL import Image

    Image.fromarray(values).save(buffer, kind)
    return buffer.getvalue()


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
