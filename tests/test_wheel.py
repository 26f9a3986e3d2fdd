"""What strangers install: the wheel in an environment of its own, with nothing but the core."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email import message_from_string
from pathlib import Path
from typing import Any

import pytest

from .pipeline.closure import ROOT

pytestmark = pytest.mark.slow

UV = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
NEED_EXTRAS = (
    "alignment/test_fake_flow.py",
    "alignment/test_watch.py",
    "check/test_calibration.py",
    "prior/test_batches.py",
    "prior/test_held_out.py",
)
"""Tests of the core's rooms that are about the pipeline, or about figures in the tree."""
MOST_PACKAGES = 18


def run(*command: str, cwd: Path, code: int = 0, **variables: str) -> str:
    """A command outside of the tree, so that nothing but what is installed is found; what it says."""
    ours = ("PYTHONPATH", "VIRTUAL_ENV", "FLOWPRIOR_URL")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(ours)} | variables
    done = subprocess.run(command, cwd=cwd, env=plain, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`env/` with the wheel and the core's packages, in an empty folder."""
    root: Path = tmp_path_factory.mktemp("wheel")
    shutil.copytree(
        ROOT, root / "tree", ignore=shutil.ignore_patterns(".*", "data", "metrics", "site")
    )
    run(UV, "build", "--quiet", "--out-dir", str(root / "dist"), str(root / "tree"), cwd=root)
    wheel, sdist = sorted(path.name for path in (root / "dist").glob("flowprior-*"))
    assert wheel.endswith(".whl")
    assert sdist.endswith(".tar.gz")
    shutil.rmtree(root / "tree")
    run(UV, "venv", "--quiet", "--python", sys.executable, "env", cwd=root)
    install(root, str(root / "dist" / wheel))
    return root


def install(root: Path, *what: str) -> None:
    """Install into the environment, at the versions that the suite runs with."""
    command = [UV, "pip", "install", "--quiet", "--python", "env/bin/python"]
    run(*command, "--constraint", str(ROOT / "constraints.txt"), *what, cwd=root)


def packages(root: Path) -> set[str]:
    """Names of what is installed."""
    listed = run(UV, "pip", "list", "--python", "env/bin/python", "--format=freeze", cwd=root)
    return set(re.findall(r"^([\w.-]+)==", listed, re.MULTILINE))


@pytest.mark.parametrize("home", ["", "https://example.org/them/flowprior"])
def test_the_packages_page_has_no_link_that_leads_nowhere(home: str, environment: Path) -> None:
    """Neither in the wheel that was built without a home, nor in the sdist built again with one."""
    dist = environment / "dist"
    if home:
        out = environment / "dist_of_them"
        sdist = str(next(dist.glob("*.tar.gz")))
        build = (UV, "build", "--quiet", "--wheel", "--out-dir", str(out), sdist)
        run(*build, cwd=environment, FLOWPRIOR_URL=home)
        dist = out
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        name = next(name for name in wheel.namelist() if name.endswith("/METADATA"))
        page = message_from_string(wheel.read(name).decode())
    assert page["Description-Content-Type"] == "text/markdown"
    addresses = dict(line.split(", ") for line in page.get_all("Project-URL", []))
    assert addresses["Paper"].startswith("https://arxiv.org/abs/")
    assert addresses.get("Source", "") == home
    text = page.get_payload()
    assert text.startswith("# flowprior")
    targets = re.findall(r"\]\(([^)]+)\)", text)
    assert all(target.startswith(("https://", "#")) for target in targets)
    assert ("![" in text) == bool(home)
    if home:
        assert f"]({home}/raw/HEAD/examples/thousand_points.png)" in text
        assert f"]({home}/blob/HEAD/docs/objectives.md)" in text


def test_the_core_is_small(environment: Path, tmp_path: Path) -> None:
    """Beside torch and what torch itself brings."""
    run(UV, "venv", "--quiet", "--python", sys.executable, "env", cwd=tmp_path)
    install(tmp_path, "torch")
    ours = packages(environment) - packages(tmp_path) - {"flowprior"}
    assert len(ours) <= MOST_PACKAGES, sorted(ours)


def test_the_readmes_example_runs(environment: Path) -> None:
    """As it stands there, and afterwards every objective by the same loop."""
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    example = found[1] + (
        "from flowprior.alignment.names import OBJECTIVES\n"
        "for name in OBJECTIVES:\n"
        "    pull = prior.objective(name, weight=0.1)\n"
        "    latents = encoder(images[:64])\n"
        "    (latents.square().mean() + pull(latents)).backward()\n"
        "    pull.follow(latents)\n"
        "prior.save('prior')\n"
        "assert FlowPrior.load('prior').dim == 32\n"
        "print('all of it')\n"
    )
    (environment / "example.py").write_text(example, encoding="utf-8")
    assert "all of it" in run("env/bin/python", "example.py", cwd=environment)


def test_the_command_says_what_is_missing_in_one_line(environment: Path) -> None:
    """Help works; a command of the pipeline names the extra."""
    said = run("env/bin/flowprior", "--help", cwd=environment)
    assert "needs the extra 'pipeline'" in said
    for command in (["config"], ["tables", "--list"], ["plan", "--preset", "digits"]):
        said = run("env/bin/flowprior", *command, cwd=environment, code=2)
        assert len(said.strip().splitlines()) == 1
        assert "pip install 'flowprior[pipeline]'" in said


def test_the_cores_tests_pass_with_the_core_alone(environment: Path) -> None:
    install(environment, "pytest", "pytest-benchmark", "beartype", "hypothesis")
    suite = environment / "suite"
    shutil.copytree(ROOT / "tests", suite / "tests")
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    settings = re.sub(r"^pythonpath = .*$", "", settings, flags=re.MULTILINE)
    (suite / "pyproject.toml").write_text(settings, encoding="utf-8")
    ignored = [f"--ignore=tests/{name}" for name in NEED_EXTRAS]
    rooms = [f"tests/{name}" for name in ("prior", "alignment", "check", "flow")]
    command = ("../env/bin/python", "-m", "pytest", "-q", "-m", "not slow", *rooms, *ignored)
    said = run(*command, cwd=suite)
    assert re.search(r"\d{3} passed", said), said[-1000:]


@pytest.mark.parametrize("name", ["metrics", "hub", "pipeline", "imagenet", "docs", "test"])
def test_extras_are_those_that_messages_name(name: str) -> None:
    """What a message says to install exists, and brings the package that was missing."""
    import tomllib

    from flowprior.core.extras import EXTRAS

    project: Any = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert name in extras
    renamed = {"PIL": "pillow", "yaml": "pyyaml", "skimage": "scikit-image", "faiss": "faiss-cpu"}
    renamed |= {"sklearn": "scikit-learn"}
    for module in EXTRAS.get(name, ()):
        package = renamed.get(module, module).replace("_", "-")
        assert any(line.replace("_", "-").startswith(package) for line in extras[name]), module
