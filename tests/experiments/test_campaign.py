"""Workers and what they do when something goes wrong, with a script in DVC's place."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flowprior.core.root import state_root
from flowprior.experiments import runner
from flowprior.experiments.campaign import run_all, run_one
from flowprior.experiments.collect import collect
from flowprior.experiments.results import load_all, save
from flowprior.experiments.runner import WORKERS, ExperimentError, environment, try_lock
from flowprior.experiments.status import missing

from .conftest import ROOT, planned, run_git
from .test_results import result_of

COMMAND = """
import sys
from pathlib import Path
from flowprior.experiments.campaign import run_all
from flowprior.experiments.status import missing
root = Path.cwd()
try:
    outcome = run_all(root, missing(root, only=sys.argv[1]), workers=2)
except KeyboardInterrupt:
    sys.exit(130)
print(sorted(outcome.done), sorted(outcome.failed), sorted(outcome.elsewhere))
"""
"""What a command does that runs all that is missing, of names that match, with two workers."""


def start(root: Path, only: str = "") -> "subprocess.Popen[str]":
    """The command, at work in a repository."""
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, only],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def events(notes: Path, what: str) -> list[str]:
    """Names of the experiments that something was noted of, in order."""
    file = notes / "events"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line.split()[1] for line in lines if line.split()[0] == what]


def wait_until(
    what: Callable[[], bool], process: "subprocess.Popen[str] | None" = None, seconds: float = 60
) -> None:
    """Until something holds; fails after some seconds, or when the process has ended before."""
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)


def at_work_below(root: Path) -> list[str]:
    """Commands of processes whose working directory is in a folder."""
    commands = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(root):
                commands.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return commands


def clones(root: Path) -> list[Path]:
    """Of workers, that are there."""
    return sorted((root / WORKERS).glob("*/"))


def test_two_workers_run_all_and_one_that_fails_stops_nothing(
    repository: Path, fake_dvc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is named with its reason and its log; results are there and pushed; git is clean but for them."""
    (fake_dvc / "fail-lost-s1").touch()
    outcome = run_all(repository, planned(repository), workers=2)
    names = ["kl-s0", "kl-s1", "lost-s0", "semantic-s0", "semantic-s1"]
    assert sorted(outcome.done) == sorted(load_all(repository)) == names
    log = ".ckpt/tables/lost-s1.log"
    said = f"exit status 1, see {log}: ERROR: failed to reproduce lost-s1"
    assert outcome.failed == {"lost-s1": said}
    assert f"lost-s1: FAILED: {said}" in capsys.readouterr().out
    assert "Running stages" in (repository / log).read_text()
    assert missing(repository) == [one for one in planned(repository) if one.name == "lost-s1"]
    refs = run_git(repository, "for-each-ref", "--format=%(refname:lstrip=4)", "refs/exps").split()
    assert sorted(refs) == names
    assert clones(repository) == []
    assert run_git(repository, "status", "--porcelain", "-uall").splitlines() == [
        f"?? metrics/experiments/{name}.json" for name in names
    ]


def test_a_result_says_what_made_it(repository: Path, fake_dvc: Path) -> None:
    """Parameters, versions, commit, which stages ran and what they cost, apart from the facts."""
    one = next(one for one in planned(repository) if one.name == "kl-s1")
    result = run_one(repository, one)
    assert result == load_all(repository)["kl-s1"]
    assert (result.preset, result.seed) == ("smoke", 1)
    assert result.params == one.params
    assert result.params["train_ae"]["train_ae"]["optimizer"]["warmup_steps"] == 5
    assert result.commit == run_git(repository, "rev-parse", "HEAD").strip()
    assert "extract_features" not in result.ran
    assert len(result.ran) == 6
    assert result.machine == {"cpu": "some", "threads": 1}
    assert result.metrics["train_ae.score"] == 0.5
    assert result.costs == {f"{stage}.seconds": 2.5 for stage in result.ran}
    assert result.resumed == {"train_ae": "0123456789ab"}
    assert result.curves == {"alignment": {"step": [1.0, 2.0], "alignment_loss": [2.5, 1.5]}}
    assert result.sheets["samples"] == b"\x89PNGkl-s1"
    _, _, threads, home = (fake_dvc / "events").read_text().splitlines()[0].split()
    assert (threads, home) == (os.environ.get("OMP_NUM_THREADS", threads), str(repository))


def test_an_old_result_is_there_until_the_new_one_is(repository: Path, fake_dvc: Path) -> None:
    """A run that fails leaves it."""
    one = planned(repository)[0]
    old = result_of(one, metrics={"train_ae.score": 0.1})
    save(repository, old)
    (fake_dvc / f"fail-{one.name}").touch()
    with pytest.raises(ExperimentError, match="failed to reproduce"):
        run_one(repository, one)
    assert load_all(repository)[one.name] == old
    (fake_dvc / f"fail-{one.name}").unlink()
    assert run_one(repository, one).metrics["train_ae.score"] == 0.5
    assert load_all(repository)[one.name].metrics["train_ae.score"] == 0.5


def test_what_ran_with_other_parameters_is_no_result(repository: Path, fake_dvc: Path) -> None:
    """Such as what is committed meanwhile."""
    one = planned(repository)[0]
    params = repository / "params.yaml"
    params.write_text(params.read_text().replace("weight: 0.01", "weight: 0.02"))
    run_git(repository, "commit", "-qam", "another weight")
    outcome = run_all(repository, [one], workers=1)
    assert "other parameters, versions, plugins or images" in outcome.failed[one.name]
    assert load_all(repository) == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_is_stopped_leaves_nothing_running_and_goes_on(
    repository: Path, fake_dvc: Path, number: signal.Signals
) -> None:
    (fake_dvc / "hang").touch()
    process = start(repository)
    wait_until(lambda: len(events(fake_dvc, "start")) == 2, process)
    if number == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        number = signal.SIGTERM  # a shell that ignores Ctrl-C starts commands that do
    process.send_signal(number)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130, said
    assert "stopping" in said
    assert at_work_below(repository / WORKERS) == []
    assert clones(repository) == []
    assert load_all(repository) == {}
    (fake_dvc / "hang").unlink()
    again = start(repository)
    said = again.communicate(timeout=60)[0]
    assert again.returncode == 0, said
    assert missing(repository) == []


def test_the_clone_of_a_killed_worker_is_replaced(repository: Path, fake_dvc: Path) -> None:
    """Whatever state it is in; but for one whose DVC is still running, which another command leaves alone."""
    (fake_dvc / "hang").touch()
    process = start(repository)
    wait_until(lambda: len(events(fake_dvc, "start")) == 2, process)
    process.kill()
    process.communicate()
    orphans = set(events(fake_dvc, "start"))
    assert len(at_work_below(repository / WORKERS)) >= 2
    assert len(clones(repository)) == 2
    (clones(repository)[0] / ".git/index.lock").touch()

    alone = next(one for one in planned(repository) if one.name in orphans)
    with pytest.raises(ExperimentError, match="another process is running it"):
        run_one(repository, alone)
    assert len(clones(repository)) == 2
    assert events(fake_dvc, "start").count(alone.name) == 1

    (fake_dvc / "hang").unlink()
    wait_until(lambda: at_work_below(repository / WORKERS) == [])
    outcome = run_all(repository, missing(repository), workers=1, say=lambda line: None)
    assert len(outcome.done) == 6
    assert clones(repository) == []


def test_what_a_killed_dvc_left_running_is_ended(repository: Path, fake_dvc: Path) -> None:
    """And the experiment has failed; the next one is run in a new clone."""
    (fake_dvc / "hang").touch()
    process = start(repository)
    wait_until(lambda: len(events(fake_dvc, "start")) == 2, process)
    for child in Path("/proc").glob("[0-9]*"):
        try:
            if (child / "cwd").readlink().is_relative_to(repository / WORKERS):
                os.kill(int(child.name), signal.SIGKILL)
        except OSError:
            continue
    (fake_dvc / "hang").unlink()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert said.count("FAILED: exit status -9") == 2
    assert len(load_all(repository)) == 4


def test_two_commands_do_not_run_the_same(repository: Path, fake_dvc: Path) -> None:
    """Each experiment starts once, whichever command gets it; what one did meanwhile, the other need not."""
    (fake_dvc / "hang").touch()
    both = [start(repository)]
    wait_until(lambda: len(events(fake_dvc, "start")) == 2, both[0])
    both.append(start(repository))
    wait_until(lambda: len(events(fake_dvc, "start")) == 4, both[1])
    (fake_dvc / "hang").unlink()
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sorted(events(fake_dvc, "start")) == sorted(one.name for one in planned(repository))
    assert said[1].count("another process is running it") >= 2
    assert missing(repository) == []


def test_results_that_were_lost_are_taken_from_dvc(repository: Path, fake_dvc: Path) -> None:
    """Without running anything; where they ran and what they cost is not known then."""
    everything = planned(repository)
    run_all(repository, everything[:3], workers=2, say=lambda line: None)
    before = load_all(repository)
    for name in before:
        (repository / f"metrics/experiments/{name}.json").unlink()
    started = events(fake_dvc, "start")
    assert collect(repository, everything) == [one.name for one in everything[:3]]
    assert events(fake_dvc, "start") == started
    assert load_all(repository) == {
        name: one._replace(machine={}, ran=[], resumed={}, costs={}) for name, one in before.items()
    }


def test_what_dvc_has_of_other_parameters_is_not_taken(repository: Path, fake_dvc: Path) -> None:
    """It says so, and takes the others."""
    everything = planned(repository)
    run_all(repository, everything[:2], workers=1, say=lambda line: None)
    tables = repository / "tables.yaml"
    tables.write_text(tables.read_text().replace("prior.source=semantic", "prior.source=textual"))
    for path in (repository / "metrics/experiments").iterdir():
        path.unlink()
    said: list[str] = []
    assert collect(repository, planned(repository), say=said.append) == ["lost-s0"]
    assert len(said) == 1
    assert "semantic-s0: not taken: semantic-s0: what ran there has other parameters" in said[0]


# --- the pieces -------------------------------------------------------------------------------------


def test_checkpoints_and_tracking_of_a_clone_go_to_its_repository(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DVC says that the clone is its repository; FLOWPRIOR_HOME knows better."""
    for name in ("DVC_ROOT", "FLOWPRIOR_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert state_root(Path("/clone")) == Path("/clone")
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert state_root(Path("/clone")) == Path("/repository")
    monkeypatch.setenv("FLOWPRIOR_HOME", "/home")
    assert state_root(Path("/clone")) == Path("/home")


def test_a_worker_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, and a GPU of its own where there are several."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("FLOWPRIOR_HOME", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    shares = [environment(Path("/home"), number, 2) for number in (0, 1)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5"]
    assert shares[0]["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))
    assert shares[0]["FLOWPRIOR_HOME"] == "/home"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("FLOWPRIOR_HOME", "/shared")
    alone = environment(Path("/home"), 0, 1)
    assert (alone["OMP_NUM_THREADS"], alone["CUDA_VISIBLE_DEVICES"]) == ("3", "2,5")
    assert alone["FLOWPRIOR_HOME"] == "/shared"


def test_a_locked_file_is_one_processs_own(tmp_path: Path) -> None:
    first = try_lock(tmp_path / "locks/one")
    assert first is not None
    assert try_lock(tmp_path / "locks/one") is None
    first.close()
    assert try_lock(tmp_path / "locks/one") is not None


def test_without_dvc_it_says_so(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "tools", lambda: {"PATH": "/nowhere"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ExperimentError, match="no command dvc"):
        runner.cache_folder(repository)


def test_the_script_in_dvcs_place_writes_json(repository: Path, fake_dvc: Path) -> None:
    """Its stages are those of the pipeline."""
    run_one(repository, planned(repository)[0])
    kept = json.loads((repository / "metrics/experiments/semantic-s0.json").read_text())
    assert {key.split(".")[0] for key in kept["metrics"]} == set(kept["params"])
