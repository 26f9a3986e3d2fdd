"""What the stages cost that train the generator and draw from it: train_mar, sample_eval."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowprior.config.schema import Params
from flowprior.core import rng
from flowprior.costs import networks
from flowprior.costs.facts import Facts
from flowprior.costs.flops import META, Cost, measure
from flowprior.costs.hardware import Precision
from flowprior.costs.sampling import sampling_flops
from flowprior.costs.work import (
    UncountedError,
    Work,
    counting_plugin,
    file_bytes,
    forward_flops,
    in_parts,
)
from flowprior.mar.masking import draw_num_masked
from flowprior.mar.model import MAR

DRAWS = 8
"""Batches of a generator other than MAR, over which the operations of its step are averaged."""


def train_mar(cfg: Params, facts: Facts) -> Work:
    """Work of train_mar: steps on latents and labels.

    Raises:
        UncountedError: The generator is a plugin that does not run on the meta device.
    """
    settings = cfg.train_mar
    model = networks.generator(cfg, facts.num_classes)
    batch = settings.batch_images // settings.accumulate
    if isinstance(model, MAR):
        cost = _masked_step(model, batch, settings.precision)
    else:
        with counting_plugin("generator.model", cfg.generator.model):
            cost = _drawn_step(model, cfg, batch)
    return Work(
        *file_bytes({"mar": model}, model),
        {"mar": model},
        num_steps=settings.steps,
        batch=settings.batch_images,
        cost=in_parts(cost, settings.accumulate),
        precision=settings.precision,
    )


def sample_eval(cfg: Params, facts: Facts) -> Work:
    """Work of sample_eval: images without guidance and as many with it."""
    settings = cfg.sample_eval
    frozen: dict[str, Any] = {}
    uncounted: list[str] = []
    decoded, drawn = 0, [0, 0]
    try:
        model = frozen["mar"] = networks.generator(cfg, facts.num_classes).eval()
        with counting_plugin("generator.model", cfg.generator.model):
            drawn = [_drawing(model, cfg, scale) for scale in (1.0, cfg.guidance.scale)]
    except UncountedError as error:
        uncounted.append(str(error))
    latents = networks.latents(cfg, 1)
    try:
        autoencoder = networks.trainee(cfg, facts.channels, None).autoencoder
        frozen["autoencoder"] = autoencoder
        with networks.autoencoder_plugin(cfg):
            decoded = forward_flops(lambda: autoencoder.decode(latents))
    except UncountedError as error:
        uncounted.append(str(error))
    plain, guided = (decoded + flops for flops in drawn)
    return Work(
        2 * settings.num_samples * facts.channels * cfg.images.size**2,
        frozen=frozen,
        num_steps=settings.num_samples / settings.batch_images,
        batch=settings.batch_images,
        cost=Cost((plain + guided) * settings.batch_images, 0),
        precision=settings.precision,
        parts={"without guidance": plain, "with guidance": guided},
        uncounted=tuple(uncounted),
    )


def _masked_step(mar: MAR, batch: int, precision: Precision) -> Cost:
    """A step of MAR: operations at the mean number of masked tokens, memory of the fewest or of all, what is more."""
    n, dim, masking = mar.shape.num_tokens, mar.shape.dim, mar.masking
    tokens = torch.empty(batch, n, dim, device=META)
    labels = torch.zeros(batch, dtype=torch.long, device=META)
    orders = torch.zeros(batch, n, dtype=torch.long, device=META)

    def step(masked: int) -> Cost:
        noise = torch.empty(masking.num_draws, batch, masked, dim, device=META)
        return measure(lambda: mar(tokens, labels, orders, masked, noise, noise[..., 0]), precision)

    least = max(1, math.ceil(n * masking.ratio_low))
    few, all_of_them = step(least), step(n)
    share = (_mean_masked(n, masking.ratio_low, masking.ratio_std) - least) / max(1, n - least)
    return Cost(
        round(few.flops + share * (all_of_them.flops - few.flops)),
        max(few.kept_bytes, all_of_them.kept_bytes),
    )


def _drawn_step(model: Any, cfg: Params, batch: int) -> Cost:
    """A step of any generator: the mean over a few batches as it draws them, memory in the dearest."""
    tokens = torch.zeros(batch, cfg.train_ae.num_latents, cfg.project.dim)
    labels = torch.zeros(batch, dtype=torch.long)

    def there(part: Tensor, dim: int) -> Tensor:
        return part.to(META)

    costs = []
    for index in range(DRAWS):
        drawn = model.draw_batch(tokens, labels, rng.generator(0, "plan", index)).shared(there)
        costs.append(measure(partial(model, *drawn), cfg.train_mar.precision))
    flops = sum(cost.flops for cost in costs)
    return Cost(round(flops / DRAWS), max(cost.kept_bytes for cost in costs))


def _drawing(model: Any, cfg: Params, scale: float) -> int:
    """Operations of drawing the latents of one image, at a scale of guidance."""
    settings, guidance = cfg.sample_eval, cfg.guidance
    if isinstance(model, MAR):
        return sampling_flops(
            model,
            num_iterations=settings.num_iterations,
            head_steps=settings.head_steps,
            final_head_steps=settings.final_head_steps,
            solver=settings.solver,
            guided=scale != 1,
            guidance_interval=(guidance.low, guidance.high),
        )
    label = torch.zeros(1, dtype=torch.long, device=META)
    return forward_flops(
        lambda: model.sample(
            label,
            rng.generator(0, "plan"),
            num_iterations=settings.num_iterations,
            head_steps=settings.head_steps,
            final_head_steps=settings.final_head_steps,
            solver=settings.solver,
            churn=settings.churn,
            guidance_scale=scale,
            guidance_schedule=guidance.schedule,
            guidance_interval=(guidance.low, guidance.high),
            temperature=settings.temperature,
        )
    )


def _mean_masked(n: int, low: float, std: float, draws: int = 1000) -> float:
    """The mean of a step's number of masked tokens."""
    generator = rng.generator(0, "plan")
    return sum(draw_num_masked(n, generator, low, std) for _ in range(draws)) / draws
