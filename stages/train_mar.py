"""Train the generator (MAR) on the latents, normalised by their own mean and standard deviation.

Reads   data/latents/
Writes  data/mar/                       weights (moving average), config with the latents' mean, std
        metrics/train_mar.json          loss on training and held-out latents
        metrics/curves/train_mar.csv
"""

from flowprior.config import launch

launch.check_params(__name__, every_rank=True)

from pathlib import Path

import torch

from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core import rng
from flowprior.core.artifacts import digests, provenance
from flowprior.core.io import write_csv
from flowprior.core.root import find_root, state_root
from flowprior.core.shards import ShardReader
from flowprior.core.trained import save_trained
from flowprior.generators.latents import LabelledLatents, held_out_loss
from flowprior.generators.protocol import Batch
from flowprior.generators.registry import build_generator
from flowprior.training.ahead import Ahead
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session

STAGE = "train_mar"


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    settings = cfg.train_mar
    latents = ShardReader.open(root / "data/latents", "latents", "the stage `encode_latents`")
    train = LabelledLatents(latents, "train")
    with Session(
        STAGE, inputs=digests(latents=latents), root=state_root(root), **cfg.session(STAGE)
    ) as session:
        with rng.scoped(cfg.seed, STAGE, "init"):
            model = build_generator(
                cfg.generator.model, train.shape, settings, cfg.generator.options
            )
        undecayed = model.undecayed(settings.decay)
        optimizer = Optimizer(**settings.optimizer.model_dump(), undecayed=undecayed)
        learner = session.learner("generator", model, optimizer)
        batch_images = settings.batch_images // settings.accumulate

        def load(draw: torch.Generator) -> Batch:
            """Latents, and all that is drawn for a step but dropout."""
            tokens, labels = train.draw(batch_images, settings.label_dropout, draw)
            batch: Batch = model.draw_batch(tokens, labels, draw)
            return batch

        ahead = Ahead(session, load, threaded=session.device.type == "cuda")
        for step in session.steps():
            for _ in session.parts():
                batch, _ = ahead(step)
                with session.dropout(step):
                    loss = learner.module(*batch.shared(session.share))
                norm = learner.update(loss)
                session.log(step, loss=loss, grad_norm=norm)
        if session.is_main:
            averaged = learner.averaged
            save_trained(
                root / "data/mar",
                "generator",
                averaged,
                {
                    "model": cfg.generator.model,
                    "sizes": averaged.config,
                    "latents": train.shape._asdict(),
                    "latents_mean": latents.manifest["mean"],
                    "latents_std": latents.manifest["std"],
                    "class_names": latents.manifest.get("class_names"),
                },
                provenance(digests(latents=latents), "torch", "timm"),
            )
            write_csv(root / f"metrics/curves/{STAGE}.csv", session.curves["train"])
            held_out = LabelledLatents(latents, "validation")
            facts = {
                "loss": session.curves["train"][-1]["loss"],
                "held_out_loss": held_out_loss(averaged.eval(), held_out, cfg.seed, session.device),
                "num_held_out": len(held_out.labels),
                "seed": cfg.seed,
            }
            rate = settings.steps * settings.batch_images / session.seconds
            session.report(root, facts, images_per_second=rate)


if __name__ == "__main__":
    main(load_params(), find_root())
