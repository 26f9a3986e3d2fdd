"""What is missing, what an edit of the repository makes old, and what may not be run from."""

import shutil
from pathlib import Path

import pytest

from flowprior.config.messages import ParamsError
from flowprior.config.versions import VERSIONS
from flowprior.experiments.results import save
from flowprior.experiments.runner import ExperimentError
from flowprior.experiments.status import check_tree, missing, survey

from .conftest import ROOT, planned, run_git
from .test_results import result_of


def names(root: Path, **options: object) -> list[str]:
    """Of the experiments that are missing."""
    return [one.name for one in missing(root, **options)]  # type: ignore[arg-type]


def test_what_has_no_result_is_missing(repository: Path) -> None:
    """All at first; those with a result of other parameters or versions too, unless they will do."""
    everything = ["semantic-s0", "lost-s0", "kl-s0", "semantic-s1", "lost-s1", "kl-s1"]
    assert names(repository) == everything
    for one in planned(repository):
        if one.name != "kl-s0":
            save(repository, result_of(one))
    assert names(repository) == ["kl-s0"]
    assert names(repository, only="semantic") == []
    tables = (repository / "tables.yaml").read_text()
    (repository / "tables.yaml").write_text(
        tables.replace("prior.source=semantic", "prior.source=textual")
    )
    assert names(repository) == ["semantic-s0", "kl-s0", "semantic-s1"]
    assert names(repository, keep_outdated=True) == ["kl-s0"]
    lines = [one.line.split(maxsplit=1) for one in survey(repository, only="s0")]
    assert lines[0][1].startswith("outdated: extract_features, project, train_flow")
    assert lines[1:] == [["lost-s0", "there"], ["kl-s0", "missing"]]


def test_a_wrong_choice_of_names_is_told(repository: Path) -> None:
    with pytest.raises(ParamsError, match="no regular expression"):
        survey(repository, only="(")
    with pytest.raises(ParamsError, match=r"'x' matches no experiment of tables\.yaml"):
        survey(repository, only="x")


def test_edits_that_leave_behaviour_as_it_is_make_no_result_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log message, a local variable's name, comments of presets; a raised version makes all results old."""
    for name in ("src", "stages", "presets", "metrics/experiments"):
        ignored = shutil.ignore_patterns("__pycache__", "*.safetensors")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("params.yaml", "dvc.yaml", "tables.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    before = [one.is_current for one in survey(tmp_path)]
    for path in [*tmp_path.glob("stages/*.py"), *tmp_path.glob("src/flowprior/*/*.py")]:
        text = path.read_text()
        path.write_text(text.replace("cannot be", "can not be").replace("found", "seen"))
    with (tmp_path / "presets/digits.yaml").open("a") as file:
        file.write("# another word\n")
    assert [one.is_current for one in survey(tmp_path)] == before
    monkeypatch.setitem(VERSIONS, "train_mar", VERSIONS["train_mar"] + 1)
    after = survey(tmp_path)
    assert not any(one.is_current for one in after)
    fresh = [one for one, current in zip(after, before, strict=True) if current]
    assert {tuple(one.outdated) for one in fresh} <= {("train_mar", "sample_eval")}


@pytest.mark.parametrize(
    "file", ["params.yaml", "plugins/alignment/mine.py", "presets/mine.yaml", "src/new.py"]
)
def test_experiments_start_from_what_is_committed(repository: Path, file: str) -> None:
    """Files that are changed or new are named; results of experiments are no reason."""
    check_tree(repository)
    save(repository, result_of(planned(repository)[0]))
    (repository / "notes.txt").write_text("mine\n")
    check_tree(repository)
    path = repository / file
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as opened:
        opened.write("# changed\n")
    with pytest.raises(ExperimentError, match=f"commit or stash first.*: {file}$"):
        check_tree(repository)
    run_git(repository, "add", file)
    run_git(repository, "commit", "-qm", "more")
    check_tree(repository)


def test_experiments_do_not_start_without_a_branch(repository: Path) -> None:
    run_git(repository, "checkout", "-q", "--detach")
    with pytest.raises(ExperimentError, match="git switch <branch>"):
        check_tree(repository)
