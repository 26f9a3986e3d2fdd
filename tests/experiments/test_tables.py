"""The paper's tables as experiments: what is listed, what runs, what is kept of it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowprior.config import params
from flowprior.config.params import ParamsError
from flowprior.core.io import ArtifactError, write_json
from flowprior.experiments import results, runner
from flowprior.experiments.listing import experiments, listed, read_listing, resolve

from .closure import ROOT
from .test_pipeline import BIN, clone, environment, run

CODE = "src:stages"
TREE = params.read_yaml(ROOT / "params.yaml")
SMOKE = {
    "preset": "smoke",
    "seeds": [0, 1],
    "tables": {
        "one": {
            "title": "One",
            "rows": {
                "semantic": "prior.source=semantic",
                "lost": "prior.source=file prior.path=/nowhere/features.npy",
                "kl": "align.objective=kl",
            },
        },
        "two": {"title": "Two", "rows": {"again": "prior.source=semantic"}},
    },
    "paper": {},
    "columns": [
        {"metric": "encode_latents.psnr_db", "name": "PSNR", "better": "higher", "digits": 2}
    ],
    "claims": [],
}


def listing_file(path: Path, **changes: Any) -> Path:
    """A listing of the tests."""
    path.write_text(yaml.safe_dump(SMOKE | changes, sort_keys=False), encoding="utf-8")
    return path


# --- the list ---------------------------------------------------------------------------------------


def test_the_committed_list_has_the_rows_of_the_papers_tables() -> None:
    """And those of reviewers: controls, a weight of 1, other objectives."""
    listing = read_listing()
    assert listing.preset == "digits"
    assert len(listing.seeds) >= 3
    assert list(listing.tables["priors"].rows) == [
        *("ae", "kl", "softvq", "low_level", "semantic", "discrete", "textual"),
        *("gaussian", "shuffled"),
    ]
    weights = [row.split("=")[1] for row in listing.tables["weights"].rows.values()]
    assert [float(weight) for weight in weights] == [0.001, 0.005, 0.01, 0.05, 1.0]
    assert len(experiments(listed(listing))) == 24 * len(listing.seeds)


def test_what_a_table_sets_goes_for_its_rows(tmp_path: Path) -> None:
    """A row may set it otherwise."""
    tables = {"one": {"title": "One", "sets": "align.weight=0.5 prior.source=textual"}}
    tables["one"]["rows"] = {"a": "seed=0", "b": "align.weight=0.25"}
    found = listed(read_listing(listing_file(tmp_path / "t.yaml", tables=tables, seeds=[0])), TREE)
    resolved = [one.experiment.resolved for one in found]
    assert [one["train_ae"]["align"]["weight"] for one in resolved] == [0.5, 0.25]
    assert {one["extract_features"]["prior"]["source"] for one in resolved} == {"textual"}


def test_rows_that_set_the_same_are_one_experiment(tmp_path: Path) -> None:
    """Whatever table they stand in, named after the first; what stands in params.yaml already changes nothing."""
    found = listed(read_listing(listing_file(tmp_path / "t.yaml")), TREE)
    names = {(one.table, one.row, one.seed): one.experiment.name for one in found}
    assert names["two", "again", 1] == names["one", "semantic", 1] == "semantic-s1"
    assert [one.name for one in experiments(found)] == [
        *("semantic-s0", "lost-s0", "kl-s0"),
        *("semantic-s1", "lost-s1", "kl-s1"),
    ]


def test_the_key_is_of_what_the_stages_depend_on() -> None:
    """Not of another preset's sizes, nor of the preset's name."""
    plain = resolve(("preset=digits",), TREE)
    assert resolve(("presets.imagenet.train_ae.steps=60000",), TREE) == plain
    renamed = TREE | {"presets": TREE["presets"] | {"mine": TREE["presets"]["digits"]}}
    assert resolve(("preset=mine",), renamed) == plain
    assert resolve(("align.weight=0.05",), TREE) != plain
    assert resolve(("align.weight=1e-2",), TREE) == plain


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"preset": "digts"}, "did you mean 'digits'?"),
        ({"seeds": []}, "seeds"),
        ({"sedes": [0]}, "sedes: unknown key"),
        ({"tables": {"one": {"title": "x", "rows": {"a": "align.wieght=1"}}}}, "one.a: 'align.wieght=1' sets nothing"),
        ({"tables": {"one": {"title": "x", "rows": {"a": "align.weight=much"}}}}, "one.a: align.weight"),
        ({"tables": {"one": {"title": "x", "rows": {"a": "align"}}}}, "one.a: 'align' sets nothing"),
        ({"tables": {"one": {"title": "x", "rows": {"a": "align.weight=[1"}}}}, "is not YAML"),
        (
            {
                "tables": {
                    "one": {"title": "x", "rows": {"a": "align.weight=1.0"}},
                    "two": {"title": "x", "rows": {"a": "align.weight=2.0"}},
                }
            },
            "a-s0 stands for two different experiments",
        ),
        ({"paper": {"three": {"source": "x", "columns": [], "rows": {}}}}, "there is no such table"),
        ({"paper": {"two": {"source": "x", "columns": ["FID"], "rows": {"again": "1 2"}}}}, "not one number"),
        ({"paper": {"two": {"source": "x", "columns": ["FID"], "rows": {"b": "1"}}}}, "names 'b'"),
        (
            {"claims": [{"says": "x", "by": "y", "metric": "a.b", "rows": ["c"], "than": 0.0, "expect": "lower"}]},
            "names 'c', which no table has",
        ),
        (
            {"claims": [{"says": "x", "by": "y", "metric": "a.b", "rows": ["kl"], "expect": "lower"}]},
            "a claim has rows",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_the_list_is_told(
    tmp_path: Path, changes: Mapping[str, Any], said: str
) -> None:
    with pytest.raises(ParamsError, match=re.escape(said)):
        listed(read_listing(listing_file(tmp_path / "t.yaml", **changes)), TREE)


# --- DVCs beside each other -------------------------------------------------------------------------

LEAVING = """#!/bin/sh
name=$5
note() { echo "$1 $name" >> "$STATE/events"; }
note start
echo "Running stage 'extract_features':"
sleep 2
note leave
echo "Running stage 'sample_eval':"
sleep 1
note end
"""
TAKING = """#!/bin/sh
echo "$5" >> "$STATE/started"
if [ "$5" = kl-s0 ]; then touch "$STATE/gone"; exit 0; fi
echo "Reproducing experiment '$5'"
echo "Running stage 'extract_features':"
while [ ! -e "$STATE/gone" ]; do sleep 0.1; done
touch "$STATE/refs/$5"
echo "Reproducing experiment 'kl-s0'"
echo "Running stage 'train_mar':"
touch "$STATE/refs/kl-s0"
"""
"""The first takes the second, which has nothing to do then."""


@pytest.fixture
def two_dvcs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], tuple[runner.Campaign, dict[str, list[str]]]]:
    """Runs semantic-s0, kl-s0 and so on with a script in DVC's place; what is kept of each is which stages it ran."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "refs").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path))
    monkeypatch.setattr(
        runner,
        "dvc_experiments",
        lambda root: {path.name: "revision" for path in (root / "refs").iterdir()},
    )
    kept: dict[str, list[str]] = {}

    def taken(_: Path, __: str, one: Any, ___: Any, ran: list[str]) -> results.Result:
        kept[one.name] = ran
        return a_result(key=one.key, name=one.name)

    monkeypatch.setattr(runner, "taken_from", taken)

    def run_by(script: str, **changes: Any) -> tuple[runner.Campaign, dict[str, list[str]]]:
        dvc = tmp_path / "bin/dvc"
        dvc.write_text(script)
        dvc.chmod(0o755)
        listing = read_listing(listing_file(tmp_path / "t.yaml", **changes))
        work = runner.Campaign(tmp_path, 2, {})
        work.run([one for one in experiments(listed(listing, TREE)) if "lost" not in one.name])
        return work, kept

    return run_by


def test_none_starts_while_another_is_about_to_leave(
    two_dvcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be taken out of DVC's queue by that one. If nothing comes of it, it is run again, and then named."""
    monkeypatch.setattr(runner, "TRIES", 2)
    work, kept = two_dvcs(LEAVING)
    events = [line.split() for line in (tmp_path / "events").read_text().splitlines()]
    names = ["kl-s0", "kl-s1", "semantic-s0", "semantic-s1"]
    assert sorted(name for what, name in events if what == "start") == sorted(2 * names)
    leaving: set[str] = set()
    for what, name in events:
        assert not (what == "start" and leaving)
        leaving = {"leave": leaving | {name}, "end": leaving - {name}}.get(what, leaving)
    assert sorted(work.failed) == names
    assert kept == {}
    assert capsys.readouterr().out.count("no experiment of DVC came of it") == len(names)


def test_what_another_took_is_kept_and_not_run_again(two_dvcs, tmp_path: Path) -> None:
    """And no stage of it is said to have run for the one that took it."""
    work, kept = two_dvcs(TAKING, seeds=[0])
    assert work.failed == []
    assert kept == {"semantic-s0": ["extract_features"], "kl-s0": []}
    assert sorted((tmp_path / "started").read_text().split()) == ["kl-s0", "semantic-s0"]


# --- what is kept -----------------------------------------------------------------------------------


def a_result(**changes: Any) -> results.Result:
    """A result of the tests."""
    plain = results.Result(
        key="0123456789ab",
        name="semantic-s0",
        seed=0,
        preset="smoke",
        settings=("preset=smoke", "seed=0"),
        code={stage: "1" for stage in params.SCIENCE},
        machine={"cpu": "x", "threads": 1},
        ran=["train_ae"],
        metrics={"encode_latents.psnr_db": 20.0},
        curves={"alignment": {"step": [1.0, 2.0]}},
        sheets={"samples": b"\x89PNG"},
    )
    return plain._replace(**changes)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = results.save(tmp_path, a_result())
    assert path == tmp_path / "metrics/experiments/0123456789ab.json"
    assert results.load(path) == a_result()
    assert results.load_all(tmp_path) == {"0123456789ab": a_result()}


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda kept: kept | {"schema": 2}, "no result of schema 1"),
        (lambda kept: {k: v for k, v in kept.items() if k != "code"}, "lacks code"),
        (lambda kept: kept | {"key": "ba9876543210"}, "holds the result of ba9876543210"),
        (lambda kept: kept | {"sheets": {"samples": "?"}}, "is damaged"),
        (lambda kept: kept | {"sheets": None}, "is damaged"),
        (lambda kept: [kept], "no result of schema 1"),
    ],
)
def test_a_spoiled_result_is_told(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], Any], said: str
) -> None:
    path = results.save(tmp_path, a_result())
    write_json(path, spoil(json.loads(path.read_text())))
    with pytest.raises(ArtifactError, match=re.escape(said)):
        results.load_all(tmp_path)
    path.write_text("{")
    with pytest.raises(ArtifactError, match="not JSON"):
        results.load_all(tmp_path)


def test_the_code_of_a_stage_changes_with_what_it_imports() -> None:
    """Hashes are those of dvc.yaml's files at a commit."""
    code = results.code_of(ROOT, "HEAD")
    assert list(code) == list(params.SCIENCE)
    other = {**code, "train_mar": "0"}
    assert results.older_stages(a_result(code=other), code) == ["train_mar"]
    assert results.older_stages(a_result(code=code), code) == []


def test_a_worker_has_its_share_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads, and a GPU of its own where there are several."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    shares = [runner.environment(number, 2) for number in (0, 1)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["2", "5"]
    assert shares[0]["OMP_NUM_THREADS"] == str(max(1, (os.cpu_count() or 1) // 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert runner.environment(0, 2)["OMP_NUM_THREADS"] == "3"
    assert runner.environment(0, 1)["CUDA_VISIBLE_DEVICES"] == "2,5"


def test_one_gpu_is_one_stages_own(tmp_path: Path) -> None:
    """Two at once have different ones; without GPUs it is python."""
    fake = tmp_path / "bin/nvidia-smi"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'GPU 0: x'\necho 'GPU 1: y'\n")
    fake.chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{fake.parent}:{BIN}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }
    env.pop("CUDA_VISIBLE_DEVICES", None)
    code = "import os, sys; print(os.environ.get('CUDA_VISIBLE_DEVICES'), flush=True); sys.stdin.read()"
    command = [str(ROOT / "stages/tables/one_gpu.sh"), "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    first = subprocess.Popen(command, env=env, **pipes)
    assert first.stdout.readline() == "0\n"
    second = subprocess.Popen(command, env=env, **pipes)
    assert second.stdout.readline() == "1\n"
    third = subprocess.Popen(command, env=env, **pipes)
    first.communicate("")  # the third waits for it, or comes later
    assert third.communicate("")[0] == "0\n"
    second.communicate("")
    fake.unlink()
    alone = subprocess.run(command, env=env, capture_output=True, text=True, input="", check=True)
    assert alone.stdout == "None\n"


# --- the campaign -----------------------------------------------------------------------------------


def tables(
    root: Path, listing: Path, *arguments: str, check: bool = True, **env: str
) -> subprocess.CompletedProcess[str]:
    """The command, in a clone."""
    done = subprocess.run(
        [sys.executable, "stages/tables/campaign.py", "--listing", str(listing), *arguments],
        cwd=root,
        env=environment(PYTHONPATH=CODE, **env),
        capture_output=True,
        text=True,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def kept(root: Path) -> dict[str, results.Result]:
    """Results by name."""
    return {one.name: one for one in results.load_all(root).values()}


def at_work_below(root: Path) -> list[str]:
    """Commands of processes whose working directory is in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(root):
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A clone where the list of the tests was run once, with one row that fails; and what was said."""
    root = clone(tmp_path_factory.mktemp("tables"))
    path = listing_file(tmp_path_factory.mktemp("listing") / "smoke.yaml", seeds=[1])
    done = tables(root, path, "--workers", "2", check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    return root, path, done.stdout + done.stderr


def copy_of(root: Path, folder: Path) -> Path:
    """Of a clone, for a test that changes it."""
    shutil.copytree(root, folder / "clone", symlinks=True)
    return folder / "clone"


@pytest.mark.slow
def test_one_that_fails_stops_nothing_and_is_named(ran: tuple[Path, Path, str]) -> None:
    """With the reason and its log; the others' results are there, made by this code and these parameters."""
    root, _, said = ran
    assert "1 failed: lost-s1" in said
    assert re.search(r"lost-s1: FAILED after .*, see .ckpt/tables/lost-s1.log", said)
    found = kept(root)
    assert sorted(found) == ["kl-s1", "semantic-s1"]
    one = found["kl-s1"]
    assert one.code == results.code_of(root, "HEAD")
    assert (one.seed, one.preset) == (1, "smoke")
    assert one.ran[-4:] == ["train_ae", "encode_latents", "train_mar", "sample_eval"]
    assert one.machine["threads"] == max(1, (os.cpu_count() or 1) // 2)
    assert one.sheets["samples"].startswith(b"\x89PNG")
    assert len(one.curves["alignment"]["alignment_loss"]) == 6
    assert one.metrics["train_ae.peak_memory_mib"] > 100
    assert set(results.dvc_experiments(root)) == set(found)


@pytest.mark.slow
def test_nothing_is_run_twice(ran: tuple[Path, Path, str]) -> None:
    """In no clone that has the results; the workspace is as it was."""
    root, path, _ = ran
    before = {path.name: path.read_bytes() for path in (root / results.FOLDER).iterdir()}
    done = tables(root, path, "--only", "kl|semantic")
    assert "2 of 2 results are there, 0 to run" in done.stdout
    assert before == {path.name: path.read_bytes() for path in (root / results.FOLDER).iterdir()}
    assert run(["git", "status", "--porcelain", "--untracked-files=no"], root) == ""


@pytest.mark.slow
def test_results_that_were_lost_are_taken_from_dvc(ran: tuple[Path, Path, str]) -> None:
    """Without running anything; where they ran is not known then."""
    root, path, _ = ran
    before = kept(root)
    shutil.rmtree(root / results.FOLDER)
    done = tables(root, path, "--collect")
    assert "2 results taken" in done.stdout
    assert kept(root) == {name: one._replace(machine={}, ran=[]) for name, one in before.items()}


@pytest.mark.slow
def test_no_machine_is_named_where_nothing_ran(ran: tuple[Path, Path, str], tmp_path: Path) -> None:
    """All stages came from DVC's cache, which another machine may have filled."""
    root = copy_of(ran[0], tmp_path)
    shutil.rmtree(root / results.FOLDER)
    run(["dvc", "exp", "remove", "kl-s1"], root)
    done = tables(root, ran[1], "--only", "kl-s1", "--workers", "1")
    assert "kl-s1: " in done.stdout
    one = kept(root)["kl-s1"]
    assert (one.ran, one.machine) == ([], {})


@pytest.mark.slow
def test_results_of_older_code_are_recognised_and_made_anew(
    ran: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """Only what stands behind the change; unless they will do. Uncommitted code is refused."""
    root = copy_of(ran[0], tmp_path)
    path = ran[1]
    with (root / "stages/sample_eval.py").open("a") as file:
        file.write("# another word\n")
    refused = tables(root, path, "--only", "kl-s1", check=False)
    assert refused.returncode == 1
    assert "commit or stash first" in refused.stderr
    assert "stages/sample_eval.py" in refused.stderr
    run(["git", "commit", "-qam", "another word"], root)
    assert (
        "there, older code: sample_eval" in tables(root, path, "--list", "--only", "kl-s1").stdout
    )
    will_do = tables(root, path, "--only", "kl-s1", "--keep-older")
    assert "0 to run" in will_do.stdout
    done = tables(root, path, "--only", "kl-s1", "--workers", "1")
    assert "kl-s1: " in done.stdout
    assert kept(root)["kl-s1"].ran == ["sample_eval"]
    assert kept(root)["kl-s1"].code == results.code_of(root, "HEAD")


@pytest.mark.slow
def test_a_campaign_that_is_stopped_leaves_nothing_running_and_goes_on(
    ran: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """From the checkpoints of what was cut off."""
    root = copy_of(ran[0], tmp_path)
    path = listing_file(tmp_path / "one.yaml", seeds=[7])
    command = [sys.executable, "stages/tables/campaign.py", "--listing", str(path)]
    log = root / ".ckpt/tables/kl-s7.log"
    process = subprocess.Popen(
        [*command, "--only", "kl", "--workers", "1"],
        cwd=root,
        env=environment(PYTHONPATH=CODE),
        text=True,
    )
    until = time.monotonic() + 240
    while "Running stage 'train_mar'" not in (log.read_text() if log.exists() else ""):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert at_work_below(root) == []
    assert "kl-s7" not in kept(root)
    done = tables(root, path, "--only", "kl", "--workers", "1")
    assert "1 of 1" in done.stdout
    assert "train_ae" not in kept(root)["kl-s7"].ran  # from the run cache
    assert run(["git", "symbolic-ref", "HEAD"], root).startswith("refs/heads/")


@pytest.mark.slow
def test_machines_exchange_experiments_through_remotes(
    ran: tuple[Path, Path, str], tmp_path: Path
) -> None:
    """A job in a clone of its own pushes to git's and DVC's remotes; a third clone takes the result."""
    root = copy_of(ran[0], tmp_path)
    origin, store = tmp_path / "origin.git", tmp_path / "store"
    run(["dvc", "remote", "add", "-d", "store", str(store)], root)
    run(["git", "commit", "-qam", "a remote"], root)
    run(["git", "clone", "-q", "--bare", str(root), str(origin)], tmp_path)
    run(["git", "remote", "add", "origin", str(origin)], root)
    path = listing_file(tmp_path / "one.yaml", seeds=[5])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = environment(LISTING=str(path), SCRATCH=str(scratch))
    env["SLURM_ARRAY_TASK_ID"] = "3"  # the line of kl
    job = subprocess.run(
        ["stages/tables/job.sh"], cwd=root, env=env, capture_output=True, text=True, check=False
    )
    assert job.returncode == 0, job.stdout + job.stderr
    assert list(scratch.iterdir()) == []

    run(["git", "clone", "-q", str(origin), str(tmp_path / "third")], tmp_path)
    third = tmp_path / "third"
    run(["git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*"], third)
    assert "1 results taken" in tables(third, path, "--collect").stdout
    assert kept(third)["kl-s5"].metrics["encode_latents.psnr_db"] > 0
    run(["git", "checkout", "-q", results.dvc_experiments(third)["kl-s5"]], third)
    run(["dvc", "pull", "-q", "sample_eval"], third)
    assert (third / "data/samples/samples.npz").is_file()
