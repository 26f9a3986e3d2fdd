"""What several folders of tests need."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowprior.core import rng

from .strangers import MARKER

HOLDER = """
import fcntl, pathlib, sys
lock = pathlib.Path(sys.argv[1])
lock.parent.mkdir(parents=True, exist_ok=True)
file = lock.open("a+")
fcntl.flock(file, fcntl.LOCK_EX)
file.truncate(0)
file.write("process 123 on elsewhere")
file.flush()
print("held", flush=True)
sys.stdin.readline()
lock.with_name("released").touch()
"""


def pytest_configure() -> None:
    """Ctrl-C works in what tests start, also where the suite itself was started with SIGINT ignored (`&`, nohup)."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What is marked `gpu` is skipped where there is none."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


def write_inception_weights(path: Path, seed: int = 0) -> Path:
    """torch-fidelity's Inception with random weights, in a file of the format of its own."""
    from torch_fidelity import feature_extractor_inceptionv3 as theirs

    class Untrained(theirs.FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:
            """Leave the weights as they are initialised."""

    with rng.scoped(seed, "inception"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "load_state_dict_from_url", lambda *_, **__: {})
        network = Untrained("untrained", ["2048"])
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(
                    module.weight
                )  # else nothing is left of an image at the end
        torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `write_inception_weights`."""
    return write_inception_weights(tmp_path_factory.mktemp("weights") / "inception.pth")


@pytest.fixture
def never_unpickled() -> Iterator[None]:
    """No test that uses it may execute the pickle of `tests/strangers.py`."""
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """Writes `plugins/<room>/own.py` in a repository that is the working directory; it is forgotten after."""
    root = tmp_path / "own"
    root.mkdir()
    for mark in ("dvc.yaml", "params.yaml"):
        (root / mark).touch()
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(room: str, content: str, name: str = "own") -> Path:
        file = root / "plugins" / room / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8")
        return file

    yield write
    for name in [name for name in sys.modules if name.split(".")[0] == "plugins"]:
        del sys.modules[name]


@pytest.fixture
def holder() -> Iterator[Any]:
    """Starts another process that holds a lock until it is sent a line."""
    started = []

    def start(lock: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(lock)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
