"""The figures that experiments are compared by, of all stages, in one short file.

Reads   metrics/<stage>.json
Writes  metrics/summary.json   what `dvc metrics diff`, `dvc metrics show` and `dvc exp show` show

The stages' own files have all figures; a name that is not in them (no FID for digits) is left out.
"""

import json
from pathlib import Path

from flowprior.config.schema import STAGES
from flowprior.core.io import write_json
from flowprior.core.root import find_root

SHOWN = {
    "flow_c2st": "train_flow.c2st_accuracy",
    "psnr_db": "encode_latents.psnr_db",
    "rfd_digits": "encode_latents.rfd_digits",
    "rfid": "encode_latents.rfid",
    "std_ratio": "encode_latents.std_ratio_median",
    "latent_recall": "encode_latents.latent_recall",
    "nll_gap_nats": "encode_latents.nll_gap_nats",
    "verdict": "encode_latents.verdict",
    "probe": "encode_latents.linear_probe_accuracy",
    "spearman_r5": "train_ae.spearman_r5",
    "mar_loss": "train_mar.held_out_loss",
    "fd_digits": "sample_eval.fd_digits",
    "fd_digits_guided": "sample_eval.fd_digits_guided",
    "fid": "sample_eval.fid",
    "fid_guided": "sample_eval.fid_guided",
    "agreement": "sample_eval.label_agreement",
    "agreement_guided": "sample_eval.label_agreement_guided",
}
"""Name, and the stage's figure."""
DIGITS = 5


def summary(root: Path) -> dict[str, float | str]:
    """The figures, to five significant digits."""
    found = {}
    for stage in STAGES:
        metrics = json.loads((root / f"metrics/{stage}.json").read_text(encoding="utf-8"))
        found |= {f"{stage}.{name}": value for name, value in metrics.items()}
    return {
        name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
        for name, metric in SHOWN.items()
        if isinstance(value := found.get(metric), int | float | str)
    }


if __name__ == "__main__":
    root = find_root()
    write_json(root / "metrics/summary.json", summary(root))
