"""The repository is found from any of its folders."""

from pathlib import Path

import pytest

from flowprior.core.root import find_root, state_root


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder with the two files that mark a repository, and folders below it."""
    root = tmp_path.resolve() / "repository"
    (root / "stages/toy").mkdir(parents=True)
    for mark in ("dvc.yaml", "params.yaml"):
        (root / mark).touch()
    return root


@pytest.mark.parametrize("below", [".", "stages", "stages/toy"])
def test_the_root_is_the_nearest_folder_upwards_with_both_files(
    repository: Path, below: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "stages/toy/params.yaml").touch()  # one of them is not enough
    assert find_root(repository / below) == repository
    monkeypatch.chdir(repository / below)
    assert find_root() == repository


def test_a_repository_within_a_repository_is_its_own(repository: Path) -> None:
    for mark in ("dvc.yaml", "params.yaml"):
        (repository / "stages" / mark).touch()
    assert find_root(repository / "stages/toy") == repository / "stages"


def test_outside_any_repository_it_is_the_working_directory_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_root() == tmp_path.resolve()


def test_state_lives_in_the_repository_also_of_a_copy_and_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("FLOWPRIOR_HOME", "DVC_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    assert state_root(tmp_path) == tmp_path
    monkeypatch.setenv("DVC_ROOT", "/repository")
    assert state_root(tmp_path) == Path("/repository")
    monkeypatch.setenv("FLOWPRIOR_HOME", "/home/of/workers")
    assert state_root(tmp_path) == Path("/home/of/workers")
