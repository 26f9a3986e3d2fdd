"""Some dozen steps of each training stage, and sampling, at full width: images/s, memory, FLOP/s.

    PYTHONPATH=src:stages python tests/gpu/full_width.py --preset imagenet --gpus 8 --out metrics/gpu

Runs the training stages themselves, up to their last step, on images, latents and weights that are random. Operations
of a step are those of `flowprior plan`, and are compared with a large matrix product, timed in the same process.
"""

import argparse
import gc
import importlib
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate.state import AcceleratorState
from PIL import Image

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.config.yaml12 import read_yaml
from flowprior.core import rng
from flowprior.core.artifacts import provenance
from flowprior.core.io import write_json
from flowprior.core.shard_writer import ShardWriter
from flowprior.core.shards import ShardReader
from flowprior.costs import plan
from flowprior.costs.facts import DIGITS, IMAGENET
from flowprior.costs.hardware import H100
from flowprior.costs.sampling import sampling_flops
from flowprior.costs.stages import count
from flowprior.flow.velocity import VelocityMLP
from flowprior.images.config import DIGITS_SIZE
from flowprior.mar.model import MAR
from flowprior.mar.shape import MARShape
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.training.session import Session

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ("train_flow", "train_ae", "train_mar")
SAMPLING = "sample_eval"
CASES = [f"{stage}{way}" for stage in (*TRAINING, SAMPLING) for way in ("", ":compiled")]
NUM_IMAGES = 512
NUM_CLASSES = 10


class _EnoughError(Exception):
    """The steps that were to be timed are done."""


def settings(preset: str, folder: Path, steps: int, gpus: int) -> dict[str, Any]:
    """The shipped parameters of a preset, made to need nothing from outside; of images one GPU's share."""
    tree: Any = read_yaml(ROOT / "params.yaml")
    scale: Any = read_yaml(ROOT / f"presets/{preset}.yaml")
    tree["preset"] = preset
    tree["prior"]["source"] = "gaussian"
    tree["evaluation"]["judge"] = "none"
    if scale["images"]["size"] != DIGITS_SIZE:
        tree["images"] |= {"source": "imagefolder", "path": str(folder / "images")}
    most = min(200_000, scale["extract_features"]["max_vectors"])
    tree["extract_features"]["max_vectors"] = most
    tree["train_ae"] |= {"encoder": None, "eval_steps": steps, "eval_latents": 200}
    tree["train_ae"]["perceptual"] |= {"pretrained": False, "warmup_steps": 0}
    tree["train_ae"]["adversarial"] |= {"pretrained": False, "start_step": 0}
    for stage in TRAINING:
        short = {"steps": steps, "log_steps": steps, "checkpoint_steps": 10 * steps}
        tree[stage] |= short
        tree[stage]["optimizer"]["warmup_steps"] = steps // 10
        if "batch_images" in scale[stage]:
            tree[stage]["batch_images"] = scale[stage]["batch_images"] // gpus
    return tree


def write_settings(folder: Path, tree: dict[str, Any]) -> Params:
    """A folder that stages can run in; its parameters."""
    for name in ("presets", "dvc.yaml"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    return load_params(folder)


def write_images(folder: Path, size: int) -> None:
    """Noise, as JPEGs somewhat larger than needed, in ten classes."""
    draw = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        place = folder / f"class{index % NUM_CLASSES}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size * 9 // 8, size * 9 // 8))
        image.save(place / f"{index}.jpg")


def make_up(cfg: Params, folder: Path) -> None:
    """What training stages read: targets from the stages before, an untrained flow prior, random latents."""
    for stage in ("extract_features", "project"):
        importlib.import_module(stage).main(cfg, folder)
    scale = cfg.train_flow
    targets = ShardReader.open(folder / "data/targets", "targets", "")
    velocity = VelocityMLP(cfg.project.dim, scale.width, scale.depth)
    prior = FlowPrior(velocity, Projection.load(targets.path), scale.time_groups)
    prior.save(folder / "data/flow_prior", provenance({}), source=targets.manifest["source"])
    shape = (NUM_IMAGES, 2, cfg.train_ae.num_latents, cfg.project.dim)
    latents = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    (folder / "data/latents").mkdir()
    writer = ShardWriter(folder / "data/latents")
    labels = np.arange(NUM_IMAGES) % NUM_CLASSES
    writer.write("train", {"latents": latents, "labels": labels})
    facts: dict[str, object] = {"mean": [0.0] * shape[-1], "std": 1.0, "num_classes": NUM_CLASSES}
    writer.close(kind="latents", provenance=provenance({}), **facts)


def matmul_flops(precision: str, size: int, repeats: int = 20) -> float:
    """Operations per second of a product of two square matrices, the best of three rounds."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=_device(), dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(3):
        _wait()
        clock = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - clock))
    return best


def train(stage: str, cfg: Params, folder: Path) -> dict[str, Any]:
    """Run a training stage up to its last step; seconds of its last two thirds, a step, and of the first step."""
    marks: dict[int, float] = {}
    last = getattr(cfg, stage).steps - 1
    warm = last // 3
    plain = Session.steps

    def timed(session: Session) -> Iterator[int]:
        for step in plain(session):
            if step in (0, 1, warm, last):
                _wait()
                marks[step] = time.perf_counter()
            if step == last:
                raise _EnoughError
            yield step

    Session.steps = timed  # type: ignore[method-assign]
    try:
        importlib.import_module(stage).main(cfg, folder)
    except _EnoughError:
        pass
    finally:
        Session.steps = plain  # type: ignore[method-assign]
    scale = getattr(cfg, stage)
    usual = DIGITS if cfg.on_digits else IMAGENET
    return {
        "precision": scale.precision,
        "batch": scale.batch_vectors if stage == "train_flow" else scale.batch_images,
        "steps_timed": last - warm,
        "seconds": (marks[last] - marks[warm]) / (last - warm),
        "first_seconds": marks[1] - marks[0],
        "flops": plan.row(stage, count(stage, cfg, usual), H100).step_flops,
    }


def sample(cfg: Params, compile: bool) -> dict[str, Any]:
    """Draw a batch of tokens from an untrained MAR, twice: the second is timed, the first compiles."""
    scale = cfg.sample_eval
    shape = MARShape(
        cfg.train_ae.num_latents,
        cfg.project.dim,
        NUM_CLASSES,
        **{name: getattr(cfg.train_mar, name) for name in MARShape._fields[3:]},
    )
    with _device():
        mar = MAR(shape).eval().requires_grad_(False)
    precision = cfg.train_mar.precision
    ready = mar.ready_to_sample(precision, compile)
    labels = torch.arange(scale.batch_images, device=_device()) % NUM_CLASSES
    marks = [time.perf_counter()]
    for _ in range(2):
        with torch.autocast(_device().type, torch.bfloat16, enabled=precision == "bf16"):
            ready.sample(
                labels,
                rng.generator(0, "sample"),
                num_iterations=scale.num_iterations,
                head_steps=scale.head_steps,
                solver=scale.solver,
            )
        _wait()
        marks.append(time.perf_counter())
    with torch.device("meta"):
        empty = MAR(shape).eval()
    flops = sampling_flops(
        empty,
        num_iterations=scale.num_iterations,
        head_steps=scale.head_steps,
        solver=scale.solver,
    )
    return {
        "precision": precision,
        "batch": scale.batch_images,
        "seconds": marks[2] - marks[1],
        "first_seconds": marks[1] - marks[0],
        "flops": flops * scale.batch_images,
    }


def measure(case: str, tree: dict[str, Any], folder: Path, matmul_size: int) -> dict[str, Any]:
    """What a case reached."""
    stage, _, way = case.partition(":")
    tree[stage]["compile"] = bool(way)
    cfg = write_settings(folder, tree)
    gc.collect()
    if gpu := torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    torch._dynamo.reset()
    AcceleratorState._reset_state(True)  # a process that runs one stage has one precision
    found = sample(cfg, bool(way)) if stage == SAMPLING else train(stage, cfg, folder)
    peak = torch.cuda.max_memory_allocated() / 2**30 if gpu else None
    rate = matmul_flops(found["precision"], matmul_size)
    of = "vectors" if stage == "train_flow" else "images"
    return {
        "stage": stage,
        "preset": cfg.preset,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "compile": bool(way),
        "peak_gpu_memory_gib": peak,
        f"{of}_per_second": found["batch"] / found["seconds"],
        "matmul_size": matmul_size,
        "matmul_flops_per_second": rate,
        "share_of_matmul": found["flops"] / found["seconds"] / rate,
        **found,
    }


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """All cases, one after the other; one that fails is reported and left out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--gpus", type=int, default=1, help="take one GPU's share of images")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--out", type=Path, default=ROOT / "metrics/gpu")
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--only", nargs="+", default=CASES, choices=CASES, metavar="CASE")
    options = parser.parse_args()
    failed = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = settings(options.preset, folder, options.steps, options.gpus)
        cfg = write_settings(folder, tree)
        if cfg.images.source == "imagefolder":
            write_images(folder / "images", cfg.images.size)
        make_up(cfg, folder)
        options.out.mkdir(parents=True, exist_ok=True)
        for case in options.only:
            try:
                found = measure(case, tree, folder, options.matmul_size)
            except Exception as error:
                failed.append(case)
                print(f"{case}: {type(error).__name__}: {error}", flush=True)
                continue
            write_json(options.out / f"{case.replace(':', '_')}.json", found)
            print(f"{case}: {json.dumps(found)}", flush=True)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
