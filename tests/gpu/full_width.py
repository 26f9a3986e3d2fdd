"""Some dozen steps of each training stage, and sampling, at full width: images/s, memory, FLOP/s.

    PYTHONPATH=src:stages python tests/gpu/full_width.py --preset imagenet --gpus 8 --compile --out metrics/gpu

Runs the stages themselves on random images and weights, one process each, in a folder of its own. Operations of a step
are those of `stages/plan.py`; they are compared with a large matrix product that is timed in the same process.
"""

import argparse
import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import params

ROOT = Path(__file__).resolve().parents[2]
BEFORE = ("extract_features", "project")
TRAINING = ("train_flow", "train_ae", "train_mar")
STAGES = (*BEFORE, "train_flow", "train_ae", "encode_latents", "train_mar", "sample_eval")
NUM_IMAGES = 512
SAMPLED = 512
"""Images that are sampled at once, on a GPU; twice, and the second time is timed."""


def settings(preset: str, folder: Path, steps: int, gpus: int) -> dict[str, Any]:
    """The shipped parameters of a preset, made to need nothing from outside and to end soon."""
    tree: Any = copy.deepcopy(params.read_yaml(ROOT / "params.yaml"))
    tree["preset"] = preset
    tree["prior"]["source"] = "gaussian"
    tree["evaluation"]["extractor"] = "none"
    scale = tree["presets"][preset]
    if scale["images"]["size"] != params.DIGITS_SIZE:
        tree["images"] |= {"source": "imagefolder", "path": str(folder / "images")}
    scale["extract_features"]["max_vectors"] = min(
        200_000, scale["extract_features"]["max_vectors"]
    )
    scale["train_flow"]["eval_vectors"] = 200
    train_ae = scale["train_ae"]
    train_ae |= {"encoder": None, "eval_steps": steps, "eval_latents": 200}
    train_ae["perceptual"] |= {"pretrained": False, "warmup_steps": 0}
    train_ae["adversarial"] |= {"pretrained": False, "start_step": 0}
    for stage in TRAINING:
        scale[stage] |= {"steps": steps, "log_steps": steps, "checkpoint_steps": 10 * steps}
        scale[stage]["optimizer"]["warmup_steps"] = steps // 10
        if "batch_images" in scale[stage]:
            scale[stage]["batch_images"] //= gpus
    if preset == "imagenet":
        scale["sample_eval"] |= {
            "num_samples": 2 * SAMPLED,
            "batch_images": SAMPLED,
            "precision": "bf16",
        }
    return tree


def write_images(folder: Path, size: int) -> None:
    """Noise, as JPEGs somewhat larger than needed, in ten classes."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(0)
    for index in range(NUM_IMAGES):
        place = folder / f"class{index % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = draw.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size * 9 // 8, size * 9 // 8))
        image.save(place / f"{index}.jpg")


def matmul_flops(precision: str, size: int, repeats: int = 20) -> float:
    """Operations per second of a product of two square matrices, the best of three rounds."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(3):
        _wait()
        clock = time.perf_counter()
        for _ in range(repeats):
            a @ b
        _wait()
        best = max(best, repeats * 2 * size**3 / (time.perf_counter() - clock))
    return best


def run_stage(stage: str, folder: Path, matmul_size: int) -> dict[str, Any]:
    """Run one stage in this process; what training or sampling reached, in figures; nothing of the others."""
    import importlib

    import torch

    import costs
    import plan

    cfg = params.load_params(folder / "params.yaml")
    seconds = _timed_steps() if stage in TRAINING else _timed_samples()
    importlib.import_module(stage).main(cfg, folder)
    if not seconds:
        return {}
    scale = getattr(cfg.scale, stage)
    usual = costs.DIGITS if cfg.on_digits else costs.IMAGENET
    row = plan.row(stage, costs.STAGES[stage](cfg, usual), plan.H100)
    # Of sampling, the last batch without guidance and the last with it: together the stage's step.
    step_seconds = sum(values[-1] for values in seconds.values())
    peak = matmul_flops(scale.precision, matmul_size)
    batch = scale.batch_vectors if stage == "train_flow" else scale.batch_images
    gpu = torch.cuda.is_available()
    return {
        "stage": stage,
        "preset": cfg.preset,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "precision": scale.precision,
        "compile": scale.compile,
        "batch": batch,
        "step_seconds": step_seconds,
        **{
            f"{'vectors' if stage == 'train_flow' else 'images'}_per_second{name}": batch
            / values[-1]
            for name, values in seconds.items()
        },
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "step_flops": row.step_flops,
        "flops_per_second": row.step_flops / step_seconds,
        "matmul_flops_per_second": peak,
        "matmul_size": matmul_size,
        "share_of_matmul": row.step_flops / step_seconds / peak,
    }


def _timed_steps() -> dict[str, list[float]]:
    """Of training's last two thirds, the mean seconds of a step, once the stage has run."""
    from flowprior.training.session import Session

    found: dict[str, list[float]] = {}
    plain = Session.steps

    def timed(session: Session) -> Iterator[int]:
        warm = session.plan.num_steps // 3
        for step in plain(session):
            if step == warm:
                _wait()
                clock = time.perf_counter()
            yield step
        _wait()
        found[""] = [(time.perf_counter() - clock) / (session.plan.num_steps - warm)]

    Session.steps = timed  # type: ignore[method-assign]
    return found


def _timed_samples() -> dict[str, list[float]]:
    """Seconds of each batch of samples, without guidance and with it, once the stage has run."""
    from flowprior.sampling import Sampler

    found: dict[str, list[float]] = {}
    plain = Sampler.__call__

    def timed(sampler: Sampler, *args: Any, **settings: Any) -> Any:
        _wait()
        clock = time.perf_counter()
        images = plain(sampler, *args, **settings)
        _wait()
        name = "" if settings["guidance_scale"] == 1 else "_guided"
        found.setdefault(name, []).append(time.perf_counter() - clock)
        return images

    Sampler.__call__ = timed  # type: ignore[method-assign]
    return found


def run_all(
    preset: str,
    folder: Path,
    out: Path,
    *,
    steps: int,
    gpus: int = 1,
    matmul_size: int = 8192,
    compiled: bool = False,
) -> Iterator[Path]:
    """Run the stages one after the other; the files that are written, one for each stage that is timed.

    With `compiled` training runs twice, first without `torch.compile`; sampling once, with it.
    """
    import yaml

    tree = settings(preset, folder, steps, gpus)
    scale = tree["presets"][preset]
    if "imagefolder" in tree["images"]["source"]:
        write_images(folder / "images", scale["images"]["size"])
    for stage in STAGES:
        ways = [False, True] if compiled and stage in TRAINING else [compiled]
        for way in ways:
            if "compile" in scale[stage]:
                scale[stage]["compile"] = way
            text = yaml.safe_dump(tree, sort_keys=False)
            (folder / "params.yaml").write_text(text, encoding="utf-8")
            found = _in_a_process(stage, folder, matmul_size)
            if found:
                path = out / (f"{stage}_compiled.json" if way else f"{stage}.json")
                out.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
                yield path


def _in_a_process(stage: str, folder: Path, matmul_size: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
    command += ["--matmul-size", str(matmul_size)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{stage} failed with exit status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """The whole run, or (for itself) one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument(
        "--gpus", type=int, default=1, help="take one GPU's share of the images of a step"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "metrics/gpu")
    parser.add_argument("--matmul-size", type=int, default=8192)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        print(json.dumps(run_stage(options.stage, options.folder, options.matmul_size)))
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in run_all(
            options.preset,
            Path(folder),
            options.out,
            steps=options.steps,
            gpus=options.gpus,
            matmul_size=options.matmul_size,
            compiled=options.compile,
        ):
            print(path.read_text(encoding="utf-8"), flush=True)


if __name__ == "__main__":
    main()
