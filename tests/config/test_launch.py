"""Scripts stop with a readable message, before any work."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flowprior.config.schema import STAGES

from .committed import ROOT, setting, tree


def run_script(root: Path, code: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
    """Python in a repository, with few variables; torch cannot be imported there."""
    (root / "poison/torch").mkdir(parents=True, exist_ok=True)
    (root / "poison/torch/__init__.py").write_text("raise SystemExit('torch was imported')\n")
    path = {"PYTHONPATH": f"{root / 'poison'}:{ROOT / 'src'}", "PATH": "/usr/bin:/bin"}
    return subprocess.run(
        [sys.executable, *code],
        cwd=root,
        env=path | variables,
        capture_output=True,
        text=True,
        check=False,
    )


RUN_ALL = """
import io, json, runpy, sys
from contextlib import redirect_stderr
from flowprior.config.schema import STAGES

said = {}
for stage in STAGES:
    with redirect_stderr(io.StringIO()) as shown:
        try:
            runpy.run_path(f"{sys.argv[1]}/stages/{stage}.py", run_name="__main__")
            code = 0
        except SystemExit as stop:
            code = stop.code
    said[stage] = [code, shown.getvalue()]
print(json.dumps(said))
"""


def test_every_stage_tells_a_typo_before_torch_is_imported_and_touches_nothing(root: Path) -> None:
    """Also where the mistake is in another stage's section; no output of an earlier run is lost."""
    wrong = setting("sample_eval.temprature", 1.0)
    (root / "params.yaml").write_text(yaml.safe_dump(wrong))
    (root / "data").mkdir()
    (root / "data/kept").write_text("kept")
    done = run_script(root, ["-c", RUN_ALL, str(ROOT)])
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert list(said) == list(STAGES)
    for code, message in said.values():
        assert code == 2, message
        assert "sample_eval.temprature: unknown key" in message
        assert "did you mean 'temperature'?" in message
    assert [path.name for path in (root / "data").iterdir()] == ["kept"]


def test_a_script_that_is_stopped_shows_no_traceback(root: Path) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(setting("align.weight", -1.0)))
    done = run_script(root, [str(ROOT / "stages/train_ae.py")])
    assert done.returncode == 2
    assert done.stderr.startswith("the parameters cannot be used:\nalign.weight: found -1.0")
    assert "Traceback" not in done.stderr


def test_under_dvc_the_message_says_how_the_outputs_come_back(root: Path) -> None:
    """DVC has removed them by then."""
    (root / "params.yaml").write_text(yaml.safe_dump(setting("align.weight", -1.0)))
    done = run_script(root, [str(ROOT / "stages/train_ae.py")], DVC_STAGE="train_ae")
    assert done.returncode == 2
    assert "align.weight: found -1.0" in done.stderr
    assert "dvc checkout" in done.stderr
    by_hand = run_script(root, [str(ROOT / "stages/train_ae.py")])
    assert "dvc checkout" not in by_hand.stderr


def test_a_launch_that_does_not_go_with_the_batches_stops_the_first_stage(root: Path) -> None:
    done = run_script(root, [str(ROOT / "stages/extract_features.py")], WORLD_SIZE="7")
    assert done.returncode == 2
    assert "train_mar.batch_images: 256 in 1 part cannot be shared by 7 ranks" in done.stderr


CHECK = "from flowprior.config import launch; launch.check_params('__main__', {}); print('on')"


@pytest.mark.parametrize(
    ("every_rank", "rank", "goes_on"),
    [(False, "0", True), (False, "1", False), (True, "0", True), (True, "1", True)],
)
def test_ranks_beyond_the_first_leave_where_a_stage_has_no_use_for_them(
    root: Path, every_rank: bool, rank: str, goes_on: bool
) -> None:
    done = run_script(root, ["-c", CHECK.format(every_rank)], RANK=rank, WORLD_SIZE="2")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "on\n" * goes_on


def test_what_is_allowed_but_may_not_be_meant_is_noted_by_the_first_rank(root: Path) -> None:
    (root / "params.yaml").write_text(yaml.safe_dump(tree(train_ae__steps=10)))
    for rank in ("0", "1"):
        done = run_script(root, ["-c", CHECK.format(True)], RANK=rank, WORLD_SIZE="2")
        assert done.returncode == 0, done.stderr
        assert ("note: train_ae: all 10 steps lie in the warm-up" in done.stderr) == (rank == "0")


def test_an_imported_stage_checks_nothing(root: Path) -> None:
    (root / "params.yaml").write_text("nonsense: [")
    done = run_script(root, ["-c", CHECK.format(True).replace("__main__", "stages.train_ae")])
    assert done.stdout == "on\n"
