"""Some hundred steps of each training stage at full width, random images and weights: images/s, memory, FLOP/s.

    PYTHONPATH=src:stages python tests/gpu/full_width.py --preset imagenet --steps 300 --out metrics/gpu

Runs the stages themselves, one process each, in a folder of its own. Operations of a step are those of
`stages/plan.py`; they are compared with a large matrix product that is timed in the same process.
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
STAGES = (*BEFORE, "train_flow", "train_ae", "encode_latents", "train_mar")
NUM_IMAGES = 512


def settings(preset: str, folder: Path, steps: int, images_per_step: int | None) -> dict[str, Any]:
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
        if images_per_step and "batch_images" in scale[stage]:
            scale[stage]["batch_images"] = images_per_step
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
    """Run one stage in this process; what a training stage reached, in figures; nothing of the others."""
    import importlib

    import torch

    import costs
    import plan
    from flowprior.training.session import Session

    cfg = params.load_params(folder / "params.yaml")
    marks: list[float] = []
    plain = Session.steps

    def timed(session: Session) -> Iterator[int]:
        for step in plain(session):
            if step == session.plan.num_steps // 3:  # warm by now
                _wait()
                marks.append(time.perf_counter())
            yield step
        _wait()
        marks.append(time.perf_counter())

    Session.steps = timed  # type: ignore[method-assign]
    importlib.import_module(stage).main(cfg, folder)
    if stage not in TRAINING:
        return {}
    scale = getattr(cfg.scale, stage)
    steps = scale.steps - scale.steps // 3
    usual = costs.DIGITS if cfg.on_digits else costs.IMAGENET
    row = plan.row(stage, costs.STAGES[stage](cfg, usual), plan.H100)
    per_second = steps / (marks[1] - marks[0])
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
        "steps_timed": steps,
        "vectors_per_second" if stage == "train_flow" else "images_per_second": batch * per_second,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if gpu else None,
        "step_flops": row.step_flops,
        "flops_per_second": row.step_flops * per_second,
        "matmul_flops_per_second": peak,
        "matmul_size": matmul_size,
        "share_of_matmul": row.step_flops * per_second / peak,
    }


def run_all(
    preset: str,
    folder: Path,
    out: Path,
    *,
    steps: int,
    images_per_step: int | None = None,
    matmul_size: int = 8192,
    compiled: bool = False,
) -> list[Path]:
    """Run the stages one after the other; the files that were written, one for each training stage."""
    import yaml

    tree = settings(preset, folder, steps, images_per_step)
    scale = tree["presets"][preset]
    for stage in TRAINING:
        scale[stage]["compile"] = compiled
    (folder / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    if "imagefolder" in tree["images"]["source"]:
        write_images(folder / "images", scale["images"]["size"])
    written = []
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
        done = subprocess.run(
            [*command, "--matmul-size", str(matmul_size)],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"{stage} failed with exit status {done.returncode}")
        found = json.loads(done.stdout.splitlines()[-1])
        if found:
            name = f"{stage}_compiled.json" if compiled else f"{stage}.json"
            out.mkdir(parents=True, exist_ok=True)
            (out / name).write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
            written.append(out / name)
    return written


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def main() -> None:
    """The whole run, or (for itself) one stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--preset", default="imagenet")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--images-per-step", type=int, help="of one device; default: the preset's")
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
            images_per_step=options.images_per_step,
            matmul_size=options.matmul_size,
            compiled=options.compile,
        ):
            print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
