"""Fit the flow prior: a velocity field that carries noise to the projected features (Eq. (3), arXiv:2506.05240).

Reads   data/targets/
Writes  data/flow_prior/            velocity, projection, config
        metrics/train_flow.json     held-out loss, gap to the irreducible loss where known, C2ST, NLL
        metrics/curves/train_flow.csv
"""

from flowprior.config import launch

launch.check_params(__name__, every_rank=True)

from pathlib import Path

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core import rng
from flowprior.core.artifacts import digests, provenance
from flowprior.core.io import write_csv
from flowprior.core.root import find_root, state_root
from flowprior.core.shards import ShardReader
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import group_vectors, stratified_times
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.batches import draw_noise, some_targets, targets_at_hand
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.held_out import held_out_metrics
from flowprior.prior.projection import Projection
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session

STAGE = "train_flow"


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    settings = cfg.train_flow
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    train = targets.column("train", "vectors")
    with Session(
        STAGE, inputs=digests(targets=targets), root=state_root(root), **cfg.session(STAGE)
    ) as session:
        with rng.scoped(cfg.seed, STAGE, "init"):
            velocity = VelocityMLP(train.shape[1], settings.width, settings.depth)
        optimizer = Optimizer(**settings.optimizer.model_dump())
        learner = session.learner("velocity", velocity, optimizer)
        batch_vectors = settings.batch_vectors // settings.accumulate
        time_groups = settings.time_groups // settings.accumulate
        sample = targets_at_hand(train, session.device)
        for step in session.steps():
            for _ in session.parts():
                draw = session.generator("step", step)
                vectors = sample(batch_vectors, draw)
                t = stratified_times(time_groups, vectors, draw)
                noise = draw_noise(vectors.shape, draw, session.device)
                data, noise = (
                    session.share(group_vectors(x, time_groups)) for x in (vectors, noise)
                )
                loss = flow_matching_loss(learner.module, data, noise, session.share(t)).mean()
                norm = learner.update(loss)
                session.log(step, loss=loss, grad_norm=norm)
        if session.is_main:
            projection = Projection.load(targets.path)
            kept = some_targets(train, session.generator("kept"))
            prior = FlowPrior(learner.averaged, projection, settings.time_groups, kept)
            prior.to(session.device)
            prior.save(
                root / "data/flow_prior",
                provenance(digests(targets=targets), "torch"),
                source=targets.manifest["source"],
            )
            write_csv(root / f"metrics/curves/{STAGE}.csv", session.curves["train"])
            facts = held_out_metrics(prior, targets, settings.eval_vectors, cfg.seed)
            rate = settings.steps * settings.batch_vectors / session.seconds
            session.report(root, facts | {"seed": cfg.seed}, vectors_per_second=rate)


if __name__ == "__main__":
    main(load_params(), find_root())
