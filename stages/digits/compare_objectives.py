"""The pipeline with one objective after another, at the seed and the weight of params.yaml; a table of what each gave.

    python stages/digits/compare_objectives.py              # in the environment, on a clean tree; some minutes

Writes  metrics/objectives.json   {objective: {stage.metric: value}}, the numbers of the README's table

Every run is a `dvc exp run`, so that what has run before is taken from the cache. Afterwards the
workspace is what it was.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "stages")]

from flowprior.io import write_json

OBJECTIVES = ("none", "flow_prior", "dmd", "sliced_w2", "kl")
METRICS = {
    "encode_latents": (
        "psnr_db",
        "latent_std",
        "std_ratio_median",
        "nll_gap_nats",
        "latent_precision",
        "latent_recall",
        "coverage",
        "collapsed",
        "linear_probe_accuracy",
    ),
    "sample_eval": ("fd_digits", "label_agreement", "fd_digits_guided", "label_agreement_guided"),
    "train_ae": ("seconds",),
}


def main() -> None:
    """Run them all."""
    if subprocess.run(["git", "diff", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode:
        raise SystemExit(
            "commit or stash what you changed first: experiments start from a clean tree"
        )
    if subprocess.run(["git", "symbolic-ref", "--quiet", "HEAD"], cwd=ROOT, check=False).returncode:
        raise SystemExit(
            "HEAD is detached, as a `dvc exp run` that was killed leaves it, and what you commit is on no branch: "
            "go back with `git switch <branch>` first"
        )
    table = {}
    for objective in OBJECTIVES:
        subprocess.run(
            ["dvc", "exp", "run", "-S", f"align.objective={objective}"], cwd=ROOT, check=True
        )
        table[objective] = {
            f"{stage}.{name}": json.loads((ROOT / f"metrics/{stage}.json").read_text())[name]
            for stage, names in METRICS.items()
            for name in names
        }
        subprocess.run(["git", "checkout", "--quiet", "."], cwd=ROOT, check=True)
    subprocess.run(["dvc", "checkout", "--quiet", "dvc.yaml"], cwd=ROOT, check=True)
    write_json(ROOT / "metrics/objectives.json", table)


if __name__ == "__main__":
    main()
