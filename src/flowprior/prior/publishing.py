"""A prior on the hub: its files and the page that tells what it is."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flowprior.core import rng
from flowprior.core.artifacts import package_versions
from flowprior.core.sharing import CARD, model_card, push
from flowprior.prior.files import save_prior
from flowprior.prior.fit_report import FitReport
from flowprior.prior.flow_prior import FlowPrior

ABOUT = """A frozen flow from N(0, I) to features, made by flowprior. Its flow-matching loss pulls the latents of an
autoencoder towards them, and it tells how far latents are from them
([arXiv:2506.05240](https://arxiv.org/abs/2506.05240))."""
USAGE = """from flowprior import FlowPrior

prior = FlowPrior.from_pretrained({name!r})
loss = reconstruction + 0.01 * prior.alignment_loss(latents)  # latents [..., {dim}]
prior.check(latents)  # good, narrow, shifted, ..."""

FEWEST, SAMPLES = 100, 1000
"""Targets that `check` needs, and samples that it is asked about."""


def push_prior(
    prior: FlowPrior,
    repo_id: str,
    source: str,
    license: str | None,
    with_targets: bool,
    options: dict[str, Any],
) -> str:
    """Save it, describe it, and push both; see `FlowPrior.push_to_hub`."""
    targets = prior.targets if with_targets else None
    with TemporaryDirectory() as scratch:
        saved = Path(scratch) / "prior"
        made_of = {"packages": package_versions("torch", "flowprior"), "source": source}
        save_prior(
            saved,
            prior.velocity,
            prior.projection,
            prior.time_groups,
            targets,
            prior.fitted,
            made_of,
            {},
        )
        files: dict[str, Path | bytes] = {file.name: file for file in saved.iterdir()}
        files[CARD] = prior_card(prior, repo_id, source, license, with_targets)
        return push(files, repo_id, **options)


def prior_card(
    prior: FlowPrior, repo_id: str, source: str, license: str | None, with_targets: bool
) -> bytes:
    """The page of a prior.

    Args:
        prior: What it tells of.
        repo_id: Where it will be.
        source: What its targets are.
        license: The hub's word for it.
        with_targets: Whether the targets come along.
    """
    kept = 0 if prior.targets is None or not with_targets else len(prior.targets)
    packages = package_versions("flowprior", "torch")
    return model_card(
        repo_id.rpartition("/")[2],
        ABOUT,
        {
            "fitted to": source,
            "projection": f"{prior.projection.operator}, {prior.projection.in_dim} to {prior.dim} channels",
            **_fit_facts(prior),
            "targets that come along": f"{kept}, [{kept}, {prior.dim}]" if kept else "none",
            "made with": ", ".join(f"{name} {version}" for name, version in packages.items()),
        },
        USAGE.format(name=repo_id, dim=prior.dim),
        license,
        ("flow-matching", "latent-space"),
    )


def _fit_facts(prior: FlowPrior) -> dict[str, object]:
    """How well the flow fits: by held-out targets, or, of one that `fit` did not measure, by `check` of its samples."""
    fit: FitReport | None = prior.fitted
    if fit is None:
        if prior.targets is None or len(prior.targets) < FEWEST:
            return {"fit": "not measured"}
        found = prior.check(prior.sample(SAMPLES, rng.generator(0, "card")))
        why = f": {found.findings[0]}" if found.findings else ""
        return {"samples beside the targets": f"**{found.verdict}**{why}"}
    return {
        "fit": f"**{fit.verdict}**" + (f": {fit.advice}" if fit.advice else ""),
        "samples against targets": f"a classifier is right in {fit.c2st_accuracy:.1%} (50% by guessing, "
        f"± {2 * fit.c2st_sd:.1%})",
        "held-out loss": f"{fit.held_out_loss:.4f}; no flow is below {fit.floor_loss:.4f}, "
        f"a Gaussian's is {fit.gaussian_loss:.4f}",
        "held-out negative log-density": f"{fit.nll_nats:.3f} nats, a Gaussian's {fit.gaussian_nll_nats:.3f}",
        "held-out targets": fit.num_held_out,
    }
