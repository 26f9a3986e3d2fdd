"""`flowprior prior`: from a file of features to likelihoods and samples."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from flowprior import FlowPrior
from flowprior.cli.app import main

from .conftest import mistake

X = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`x.npy`, and `prior/` that the command fitted to it."""
    root: Path = tmp_path_factory.mktemp("prior")
    np.save(root / "x.npy", X)
    fit = ["prior", "fit", f"{root}/x.npy", "--out", f"{root}/prior", "--dim", "3", "--steps", "5"]
    main(fit)
    return root


def test_the_fitted_prior_is_that_of_python(folder: Path) -> None:
    theirs, ours = FlowPrior.load(folder / "prior"), FlowPrior.fit(X, 3, steps=5)
    for name, value in ours.velocity.state_dict().items():
        assert torch.equal(theirs.velocity.state_dict()[name], value), name


def test_likelihoods_are_printed_and_written(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For latents with their channels on any axis; the values keep their leading shape."""
    latents = np.random.default_rng(1).normal(size=(4, 3, 2, 2)).astype(np.float32)
    np.save(tmp_path / "y.npy", latents)
    arguments = [f"{folder}/prior", f"{tmp_path}/y.npy", "--channel-dim", "1"]
    main(["prior", "nll", *arguments, "--out", f"{tmp_path}/nll.npy"])
    values = FlowPrior.load(folder / "prior").nll(torch.from_numpy(latents), channel_dim=1)
    assert np.array_equal(np.load(tmp_path / "nll.npy"), values.numpy())
    assert f"{float(values.mean()):.4f} nats" in capsys.readouterr().out


def test_samples_are_the_priors_and_go_through_a_pipe(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "flowprior", "prior"]
    drawn = subprocess.run(
        [*command, "sample", f"{folder}/prior", "--num", "9", "--out", "-"],
        capture_output=True,
        check=True,
    )
    done = subprocess.run(
        [*command, "nll", f"{folder}/prior", "-"],
        input=drawn.stdout,
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().endswith("9 vectors\n")
    main(["prior", "sample", f"{folder}/prior", "--num", "9", "--out", f"{tmp_path}/s.npy"])
    assert (tmp_path / "s.npy").read_bytes() == drawn.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "{root}/none.npy", "--out", "{root}/p"], "none.npy does not exist"),
        (["fit", "{root}/x.npy", "--out", "{root}"], "something other than a flow prior"),
        (
            ["fit", "{root}/x.npy", "--out", "{root}/p", "--dim", "7"],
            "the features have 6 channels and dim is 7",
        ),
        (["fit", "{root}/x.npy", "--out", "{root}/p", "--operator", "pac"], "use one of random"),
        (["nll", "{root}/prior", "{root}/x.npy"], "latents have 6 channels"),
        (["nll", "{root}/none", "{root}/x.npy"], "does not exist"),
        (["nll", "{root}/prior", "{root}/x.npy", "--out", "y.txt"], "name a file"),
        (["sample", "{root}/prior", "--num", "0", "--out", "y.npy"], "whole number of at least 1"),
    ],
)
def test_mistakes_are_told_in_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["prior", *(part.format(root=folder) for part in arguments)])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


def test_a_check_is_printed_written_and_decides_the_exit_status(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As text or JSON, with a page; any layout of the latents."""
    latents = 0.2 * np.random.default_rng(1).normal(size=(50, 3, 2, 2)).astype(np.float32)
    np.save(tmp_path / "y.npy", latents)
    arguments = ["prior", "check", f"{folder}/prior", f"{tmp_path}/y.npy", "--channel-dim", "1"]
    main([*arguments, "--html", f"{tmp_path}/check.html"])
    assert capsys.readouterr().out.startswith("narrow: ")
    assert "narrow" in (tmp_path / "check.html").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--json", "--strict"])
    assert end.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "narrow"
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--html", f"{tmp_path}/none/check.html"])
    assert end.value.code == 2


def test_a_strict_fit_fails_where_it_cannot_be_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", X[:150])
    fit = ["prior", "fit", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/p", "--steps", "5"]
    main([*fit, "--width", "16", "--depth", "1"])
    assert "fewer than 200 vectors" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        main([*fit, "--strict", "--overwrite"])
    assert end.value.code == 1


def test_a_prior_is_replaced_only_if_asked(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X[:100])
    small = ["--steps", "2", "--width", "16", "--depth", "1"]
    fit = ["prior", "fit", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/p", *small]
    main(fit)
    before = (tmp_path / "p" / "manifest.json").read_bytes()
    assert mistake(*fit, "--seed", "1") == (
        f"{tmp_path}/p holds a prior already; --overwrite replaces it"
    )
    assert (tmp_path / "p" / "manifest.json").read_bytes() == before
    main([*fit, "--seed", "1", "--overwrite"])
    assert (tmp_path / "p" / "manifest.json").read_bytes() != before


def test_mistakes_name_the_option_and_channels_may_be_first(tmp_path: Path) -> None:
    """Of features [b, D, h, w], and of latents."""
    small = ["--steps", "2", "--width", "16", "--depth", "1", "--dim", "3"]
    images = np.random.default_rng(0).normal(size=(40, 5, 2, 2)).astype("f4")
    np.save(tmp_path / "x.npy", images)
    fit = ["prior", "fit", f"{tmp_path}/x.npy", "--out", f"{tmp_path}/p", *small]
    assert "look like [b, D, h, w]" in (said := mistake(*fit))
    assert "--channel-dim=1" in said
    assert "Fit with --dim=2" in mistake(*fit, "--channel-dim", "-1")
    main([*fit, "--channel-dim", "1"])
    np.save(tmp_path / "y.npy", images[:, :3])
    said = mistake("prior", "nll", f"{tmp_path}/p", f"{tmp_path}/y.npy")
    assert said.endswith("axis 1 has as many: say --channel-dim=1")
    main(["prior", "nll", f"{tmp_path}/p", f"{tmp_path}/y.npy", "--channel-dim", "1"])
