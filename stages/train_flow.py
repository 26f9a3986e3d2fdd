"""Fit the flow prior: a velocity field that carries noise to the projected features.

Reads   data/targets/
Writes  data/flow_prior/            velocity, projection, config
        metrics/train_flow.json     held-out loss, gap to the irreducible loss where known, C2ST, NLL
        metrics/curves/train_flow.csv
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__, every_rank=True)

import math
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.core.io import load_tensors, provenance, read_json, write_csv, write_json
from flowprior.core.shards import Column, ShardReader
from flowprior.flow.losses import flow_matching_loss, grouped_loss
from flowprior.flow.path import group_vectors, stratified_times
from flowprior.flow.velocity import VelocityMLP
from flowprior.ops.machine import usage
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.stats.two_sample import classifier_two_sample
from flowprior.training.session import Optimizer, Plan, Session

STAGE = "train_flow"
EVAL_DRAWS = 16


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    scale, config = cfg.scale.train_flow, cfg.tracked(STAGE)
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    train = targets.column("train", "vectors")
    with Session(
        STAGE,
        config=config,
        inputs={"targets": targets.digest},
        seed=cfg.seed,
        plan=Plan(**scale.plan),
        root=params.state_root(root),
    ) as session:
        with rng.scoped(cfg.seed, STAGE, "init"):
            velocity = VelocityMLP(train.shape[1], scale.width, scale.depth)
        learner = session.learner("velocity", velocity, Optimizer(**scale.optimizer.model_dump()))
        size, groups = (n // scale.accumulate for n in (scale.batch_vectors, scale.time_groups))
        sample = targets_at_hand(train, session.device)
        for step in session.steps():
            for _ in session.parts():
                draw = session.generator("step", step)
                batch = sample(size, draw)
                t = stratified_times(groups, batch, draw)
                data, noise = (
                    session.share(group_vectors(vectors, groups))
                    for vectors in (batch, draw_noise(batch.shape, draw, session.device))
                )
                loss = flow_matching_loss(learner.module, data, noise, session.share(t)).mean()
                norm = learner.update(loss)
                session.log(step, loss=loss, grad_norm=norm)
        if session.is_main:
            prior = FlowPrior(learner.averaged, _projection(targets.path), scale.time_groups)
            prior.to(session.device)
            prior.save(
                root / "data/flow_prior",
                provenance(config, {"targets": targets.digest}, "torch"),
                source=targets.manifest["source"],
            )
            write_csv(root / f"metrics/curves/{STAGE}.csv", session.curves["train"])
            metrics = evaluate(prior, targets, scale.eval_vectors, cfg.seed)
            metrics |= {
                "seed": cfg.seed,
                **usage(session.seconds),
                "vectors_per_second": scale.steps * scale.batch_vectors / session.seconds,
            }
            write_json(root / f"metrics/{STAGE}.json", metrics)
            session.tracker.finish(metrics)


def targets_at_hand(
    targets: Column, device: torch.device
) -> Callable[[int, torch.Generator], Tensor]:
    """`Column.sample` of the targets [N, d], from a GPU's memory where they take up at most a quarter of what is free.

    To gather a step of the paper's size on a CPU takes as long as the step itself on an H100.
    """
    size = math.prod(targets.shape) * targets.dtype.itemsize
    if device.type != "cuda" or 4 * size > torch.cuda.mem_get_info(device)[0]:
        return targets.sample
    held = torch.cat([torch.tensor(block, device=device) for block in targets.blocks()])

    def sample(n: int, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(held), (n,), generator=generator)
        return held[rows.to(device)]

    return sample


def draw_noise(
    shape: torch.Size, draw: torch.Generator, device: torch.device
) -> Float[Tensor, "n d"]:
    """N(0, I) from `draw`, or on a GPU from a generator there that starts from the seed of `draw`."""
    if device.type == "cuda":
        draw = torch.Generator(device).manual_seed(draw.initial_seed())
    return torch.randn(shape, generator=draw, device=device)


def evaluate(
    prior: FlowPrior, targets: ShardReader, num_vectors: int, seed: int
) -> dict[str, float | int | None]:
    """How good the flow is, on targets that it never saw."""
    column = targets.column("validation", "vectors")
    order = torch.randperm(len(column), generator=rng.generator(seed, STAGE, "eval"))
    device = prior.projection.matrix.device
    held_out = _rows(column, order[:num_vectors].sort().values).to(device)
    with torch.no_grad():
        draw = rng.generator(seed, STAGE, "eval-loss")
        tiled = held_out.repeat(EVAL_DRAWS, 1)
        loss = float(grouped_loss(prior.velocity, tiled, prior.time_groups, draw).double().mean())
    floor = targets.manifest["irreducible_loss"]
    samples = prior.sample(len(held_out), rng.generator(seed, STAGE, "samples"))
    return {
        "held_out_loss": loss,
        "irreducible_gap": None if floor is None else loss - floor,
        "c2st_accuracy": classifier_two_sample(samples.cpu().numpy(), held_out.cpu().numpy(), seed),
        "held_out_nll_nats": float(prior.nll(held_out).double().mean()),
        "num_held_out": len(held_out),
    }


def _rows(column: Column, rows: Tensor) -> Tensor:
    return torch.from_numpy(column.gather(rows.numpy()))


def _projection(folder: Path) -> Projection:
    tensors = load_tensors(folder / "projection.safetensors")
    facts = read_json(folder / "projection.json")
    return Projection(tensors["matrix"], float(tensors["scale"]), facts["operator"], facts["seed"])


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
