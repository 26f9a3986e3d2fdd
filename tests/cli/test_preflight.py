"""`flowprior preflight`: a line for each thing that a run needs, and what the exit status says."""

import re
from pathlib import Path

import yaml

from ..images.sources import write_tree
from .conftest import invoke, mistake, output


def configure(root: Path, **sections: dict[str, object]) -> None:
    """Set keys of sections of params.yaml."""
    path = root / "params.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    for name, values in sections.items():
        tree[name] |= values
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")


def test_all_is_there_for_digits(project: Path) -> None:
    lines = output("preflight", "--preset", "smoke").splitlines()
    assert lines[0] == "  ok       images: 1438 train and 359 validation, 10 classes"
    assert lines[1].startswith("  ok       prior semantic: ")
    assert re.fullmatch(r"  ok       disk: \S+ GiB needed, \d+ free", lines[2])
    assert lines[3:] == ["all there for preset smoke"]


def test_what_is_missing_is_named_and_the_status_is_1(project: Path) -> None:
    """Whatever is wrong with one thing, the others are looked at."""
    (project / "plugins/alignment/broken.py").write_text("import nothing_like_it\nmine = 1\n")
    configure(
        project,
        align={"objective": "plugins.alignment.broken:mine"},
        prior={"source": "file", "path": "nowhere.npy"},
    )
    result = invoke("preflight", "--preset", "smoke")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == (
        "  MISSING  align.objective plugins.alignment.broken:mine: No module named 'nothing_like_it'"
    )
    assert lines[1].startswith("  ok       images: ")
    assert lines[2] == "  MISSING  prior file: prior.path 'nowhere.npy' does not exist"
    assert re.fullmatch(r"  ok       disk: at least \S+ GiB needed, \d+ free", lines[3])
    assert lines[4:] == ["2 missing"]


def test_a_mistake_in_the_parameters_is_a_line_and_status_2(project: Path) -> None:
    said = mistake("preflight", "--preset", "smok")
    assert said.startswith("the parameters cannot be used: preset: found 'smok', allowed: ")


def test_images_may_lie_elsewhere(project: Path, tmp_path: Path) -> None:
    """As with `-S images.path`, before anything is run."""
    configure(project, images={"source": "imagefolder"}, prior={"source": "gaussian"})
    configure(project, evaluation={"judge": "none"})
    write_tree(tmp_path / "mine", ["a", "b"], 10)
    result = invoke("preflight", "--preset", "smoke")
    assert "images.source 'imagefolder' needs images.path" in result.stdout
    said = output("preflight", "--preset", "smoke", "--images", str(tmp_path / "mine"))
    assert "images: 16 train and 4 validation, 2 classes" in said
