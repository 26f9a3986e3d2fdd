"""Train MAR on the latents, normalised by their own mean and standard deviation.

Reads   data/latents/
Writes  data/mar/                       weights (moving average), config with the latents' mean, std
        metrics/train_mar.json          loss on training and held-out latents, seconds, throughput
        metrics/curves/train_mar.csv
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__, every_rank=True)

from pathlib import Path

import torch
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.io import provenance, write_csv, write_json
from flowprior.core.shards import Column, ShardReader
from flowprior.core.trained import save_trained
from flowprior.mar.model import MAR, MARShape, MaskedBatch, draw_masking
from flowprior.ops.machine import usage
from flowprior.training.ahead import Ahead
from flowprior.training.session import Optimizer, Plan, Session

STAGE = "train_mar"
EVAL_MASKINGS = 8
EVAL_IMAGES = 2000


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    scale, config = cfg.scale.train_mar, cfg.tracked(STAGE)
    latents = ShardReader.open(root / "data/latents", "latents", "the stage `encode_latents`")
    train = LabelledLatents(latents, "train")
    shape = MARShape(
        num_tokens=train.latents.shape[2],
        dim=train.latents.shape[3],
        num_classes=latents.manifest["num_classes"],
        width=scale.width,
        encoder_depth=scale.encoder_depth,
        decoder_depth=scale.decoder_depth,
        num_heads=scale.num_heads,
        num_buffer=scale.num_buffer,
        head_width=scale.head_width,
        head_depth=scale.head_depth,
        dropout=scale.dropout,
    )
    with Session(
        STAGE,
        config=config,
        inputs={"latents": latents.digest},
        seed=cfg.seed,
        plan=Plan(**scale.plan),
        root=params.state_root(root),
    ) as session:
        with rng.scoped(cfg.seed, STAGE, "init"):
            mar = MAR(shape)
        optimizer = Optimizer(**scale.optimizer.model_dump(), undecayed=mar.undecayed(scale.decay))
        learner = session.learner("mar", mar, optimizer)
        ratio = scale.mask_ratio_low, scale.mask_ratio_std

        def load(draw: torch.Generator) -> MaskedBatch:
            """Latents, and all that is drawn for a step but dropout."""
            tokens, labels = train.draw(scale.batch_images // scale.accumulate, draw)
            dropped = torch.rand(len(labels), generator=draw) < scale.label_dropout
            labels = labels.masked_fill(dropped, mar.no_class)
            return draw_masking(tokens, labels, scale.head_draws, draw, *ratio)

        ahead = Ahead(session, load, threaded=session.device.type == "cuda")
        for step in session.steps():
            for _ in session.parts():
                batch, _ = ahead(step)
                with session.dropout(step):
                    loss = learner.module(
                        session.share(batch.tokens),
                        session.share(batch.labels),
                        session.share(batch.orders),
                        batch.num_masked,
                        session.share(batch.noise, 1),
                        session.share(batch.t, 1),
                    )
                norm = learner.update(loss)
                session.log(step, loss=loss, grad_norm=norm)
        if session.is_main:
            averaged = learner.averaged
            save_trained(
                root / "data/mar",
                "mar",
                averaged,
                {
                    "shape": shape._asdict(),
                    "latents_mean": latents.manifest["mean"],
                    "latents_std": latents.manifest["std"],
                },
                provenance(config, {"latents": latents.digest}, "torch", "timm"),
            )
            write_csv(root / f"metrics/curves/{STAGE}.csv", session.curves["train"])
            held_out = LabelledLatents(latents, "validation")
            held_out_loss = evaluate(averaged.eval(), held_out, ratio, cfg.seed, session.device)
            metrics = {
                "loss": session.curves["train"][-1]["loss"],
                "held_out_loss": held_out_loss,
                "num_held_out": len(held_out.labels),
                "seed": cfg.seed,
                **usage(session.seconds),
                "images_per_second": scale.steps * scale.batch_images / session.seconds,
            }
            write_json(root / f"metrics/{STAGE}.json", metrics)
            session.tracker.finish(metrics)


class LabelledLatents:
    """One split of the latents with labels, normalised: mean of each dim removed, divided by one standard deviation."""

    def __init__(self, latents: ShardReader, split: str) -> None:
        self.latents: Column = latents.column(split, "latents")
        self.labels = torch.from_numpy(latents.column(split, "labels").read())
        self._mean = torch.tensor(latents.manifest["mean"])
        self._std = float(latents.manifest["std"])

    def rows(self, rows: Tensor, views: Tensor) -> Tensor:
        """Tokens [b, n, d] of the given rows and views (0 the image, 1 its mirror image)."""
        picked = torch.from_numpy(self.latents.gather(rows.numpy())).float()
        return (picked[torch.arange(len(rows)), views] - self._mean) / self._std

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels of random rows and views."""
        rows = torch.randint(len(self.labels), (batch,), generator=generator)
        views = torch.randint(self.latents.shape[1], (batch,), generator=generator)
        return self.rows(rows, views), self.labels[rows]


@torch.no_grad()
def evaluate(
    mar: nn.Module,
    held_out: LabelledLatents,
    ratio: tuple[float, float],
    seed: int,
    device: torch.device,
) -> float:
    """The training loss on held-out latents, without dropout, averaged over a few maskings."""
    some = torch.arange(min(len(held_out.labels), EVAL_IMAGES))
    tokens, labels = held_out.rows(some, torch.zeros_like(some)), held_out.labels[some]
    losses = []
    for index in range(EVAL_MASKINGS):
        draw = rng.generator(seed, STAGE, "eval", index)
        batch = draw_masking(tokens, labels, 1, draw, *ratio)
        on_device = (x.to(device) if isinstance(x, Tensor) else x for x in batch)
        losses.append(float(mar(*on_device)))
    return sum(losses) / len(losses)


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
