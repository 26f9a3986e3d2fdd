"""A convolutional autoencoder of one's own on real digits, pulled by nothing, by the paper's loss and by another.

    python examples/own_autoencoder.py                        two minutes; own_autoencoder.png beside this file
    python examples/own_autoencoder.py --all --seeds 5        every objective; prints a table

The latents are pulled towards the distribution of small patches of the images. Needs flowprior[pipeline].
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from flowprior import FlowPrior
from flowprior.alignment.names import OBJECTIVES

DIM, STEPS, BATCH = 8, 800, 64
DENSE = ("flow_prior", "likelihood", "elbo", "sds", "kl")
"""Objectives that look for dense places take the paper's weight, those that compare distributions a larger one."""


def weight_of(objective: str) -> float:
    """Of an objective in the loss."""
    return 0.01 if objective in DENSE else 0.1


class Autoencoder(nn.Module):
    """From 8 x 8 pixels to 2 x 2 latents of `DIM` channels, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(128, DIM, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(DIM, 128, 1),
            nn.SiLU(),
            nn.ConvTranspose2d(128, 64, 2, stride=2),
            nn.SiLU(),
            nn.ConvTranspose2d(64, 1, 2, stride=2),
        )


def digits() -> tuple[Tensor, Tensor]:
    """1437 images to learn from and 360 others, [n, 1, 8, 8] in [0, 1]."""
    images = torch.from_numpy(load_digits().images).float().unsqueeze(1) / 16
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:1437]], images[order[1437:]]


def features_of(images: Tensor) -> Tensor:
    """What the latents should look like: patches of 4 x 4 pixels, [n, 16]."""
    return nn.functional.unfold(images, 4, stride=2).transpose(1, 2).flatten(0, 1)


def train(prior: FlowPrior, objective: str, images: Tensor, seed: int) -> tuple[Autoencoder, float]:
    """The whole loop; the autoencoder, and milliseconds of a processor a step."""
    torch.manual_seed(seed)
    autoencoder = Autoencoder()
    optimizer = torch.optim.AdamW(autoencoder.parameters(), lr=2e-3)
    pull = prior.objective(objective, channel_dim=1, weight=weight_of(objective), seed=seed)
    began = time.process_time()
    for _ in range(STEPS):
        batch = images[torch.randint(len(images), (BATCH,))]
        latents = autoencoder.encoder(batch)
        loss = (autoencoder.decoder(latents) - batch).square().mean() + pull(latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        pull.follow(latents)
    return autoencoder, 1000 * (time.process_time() - began) / STEPS


@torch.no_grad()
def judge(prior: FlowPrior, autoencoder: Autoencoder, images: Tensor) -> dict[str, Any]:
    """Reconstruction of held-out images, and how their latents compare with the targets."""
    latents = autoencoder.encoder(images)
    error = (autoencoder.decoder(latents) - images).square().mean()
    check = prior.check(latents, channel_dim=1)
    names = ("std_ratio", "coverage", "nll_gap_nats")
    found = {name: check.measures[name].value for name in names}
    return {
        "psnr_db": -10 * float(error.log10()),
        "verdict": check.verdict,
        **found,
        "check": check,
    }


def picture(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Latents over targets for each objective, with what the reconstruction costs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.2 * len(found), 3.4), layout="constrained")
    for axis, (name, one) in zip(
        figure.subplots(1, len(found), sharex=True, sharey=True), found.items(), strict=True
    ):
        seen = one["check"].picture
        axis.plot(*seen.targets.T, ".", color="#9aa4af", markersize=3, label="targets")
        axis.plot(*seen.latents.T, ".", color="#c2500a", markersize=3, label="latents")
        axis.set_title(
            f"{name}: {one['verdict']}\n{one['psnr_db']:.1f} dB, spread {one['std_ratio']:.2f}",
            fontsize=10,
        )
        axis.set(xlim=(-6, 6), ylim=(-6, 6), xticks=[], yticks=[])
    axis.legend(frameon=False, fontsize=9)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--all", action="store_true", help="every objective")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"))
    parser.add_argument("--json", type=Path, help="write what was measured")
    asked = parser.parse_args()
    images, held_out = digits()
    fit = {"steps": 1500, "width": 128, "depth": 2}
    prior = FlowPrior.fit(features_of(images), dim=DIM, operator="pca", **fit)
    print(prior.fitted)
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(asked.seeds):
        shown = {}
        for name in OBJECTIVES if asked.all else ("none", "flow_prior", "dmd"):
            autoencoder, cost = train(prior, name, images, seed)
            shown[name] = judge(prior, autoencoder, held_out)
            plain = {key: value for key, value in shown[name].items() if key != "check"}
            row = {
                "objective": name,
                "seed": seed,
                "weight": weight_of(name),
                "ms_a_step": cost,
                **plain,
            }
            rows.setdefault(name, []).append(row)
            print(row, flush=True)
        if not asked.all and not seed:
            picture(shown, asked.out)
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
