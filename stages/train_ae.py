"""Train the autoencoder while its latents are pulled towards the prior.

Reads   images, data/targets/, data/flow_prior/
Writes  data/autoencoder/               weights (moving average), config
        metrics/train_ae.json           losses; how L_align follows mean log r_k (Fig. 4) over training
        metrics/curves/train_ae.csv, metrics/curves/alignment.csv
        metrics/curves/gan.csv          health of the adversarial game; empty where there is none
        metrics/figures/alignment.png
"""

from flowprior.config import params
from flowprior.config.params import Params

params.check(__name__, every_rank=True)

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flowprior.alignment.fake_flow import FakeFlow
from flowprior.alignment.registry import build_objective
from flowprior.autoencoder.representation import RepresentationHead
from flowprior.autoencoder.softvq import Codebooks
from flowprior.autoencoder.softvq_terms import SoftVQTerms, Teacher, Trainee
from flowprior.autoencoder.vit import Autoencoder, Shape, build_autoencoder
from flowprior.core import rng
from flowprior.core.device import start_accelerator
from flowprior.core.io import file_digest, provenance, write_csv, write_json
from flowprior.core.rng import Draw
from flowprior.core.shards import ShardReader
from flowprior.core.trained import save_trained
from flowprior.encoders.networks import patch_tokens, trained_transformer
from flowprior.encoders.shipped import DIGITS_DIR, load_digits_network
from flowprior.figures.plots import alignment_figure, save_figure
from flowprior.images.sets import SPLITS, ImageSet, batches, check_images, open_images
from flowprior.ops.machine import usage
from flowprior.prior.flow_prior import FlowPrior
from flowprior.reconstruction.terms import AdversarialTerm, ImageLosses, PerceptualTerm
from flowprior.stats.correlation import correlations
from flowprior.stats.neighbours import NeighbourIndex
from flowprior.training.ahead import Ahead
from flowprior.training.session import Optimizer, Plan, Session

STAGE = "train_ae"
HEADLINE = ("held_out_alignment_loss", "spearman_r5")
NEIGHBOURS = (1, 5, 10)
EVAL_DRAWS = 8
EVAL_BATCH = 512


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    scale, config = cfg.scale.train_ae, cfg.tracked(STAGE)
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    prior = FlowPrior.load(root / "data/flow_prior")
    train, held_out = (open_images(split=split, **cfg.image_source) for split in SPLITS)
    for images, split in ((train, "train"), (held_out, "validation")):
        made_from = targets.manifest["source"].get(f"{split}_images")
        check_images(images, made_from, root / "data/targets", "extract_features")
    shape = shape_of(cfg, train.images([0]).shape[1], prior.dim)
    teacher = open_teacher(cfg, start_accelerator(scale.precision).device)
    encoder = None
    if scale.encoder is not None:
        encoder = trained_transformer(scale.encoder, shape.image_size, shape.patch_size)
    inputs = {
        "images": train.digest,
        "held_out_images": held_out.digest,
        "targets": targets.digest,
        "flow_prior": prior.digest,
        **({} if encoder is None else {"encoder": encoder.digest}),
        **({} if teacher is None else {"teacher": teacher.digest}),
    }
    with Session(
        STAGE,
        config=config,
        inputs=inputs,
        seed=cfg.seed,
        plan=Plan(**scale.plan),
        root=params.state_root(root),
    ) as session:
        with rng.scoped(cfg.seed, STAGE, "init"):
            trainee = build_trainee(cfg, shape, teacher)
        autoencoder = trainee.autoencoder
        if encoder is not None:
            encoder.into(autoencoder.encoder.vit)
        autoencoder.checkpoint_gradients(scale.gradient_checkpointing)
        last_layer = autoencoder.decoder.output.weight
        optimizer = Optimizer(**scale.optimizer.model_dump(), undecayed=trainee.undecayed)
        learner = session.learner("autoencoder", trainee, optimizer)
        softvq = SoftVQTerms(scale.softvq.entropy_weight, scale.softvq.representation_weight)
        judges = ImageLosses(
            session,
            PerceptualTerm(**scale.perceptual.model_dump()),
            AdversarialTerm(**scale.adversarial.model_dump()),
        )
        prior.to(session.device)
        objective = build_objective(
            cfg.align.objective,
            prior,
            targets.column("train", "vectors").sample,
            num_draws=cfg.align.num_draws,
            t_max=cfg.align.t_max,
        )
        fake_flow = FakeFlow(
            session, objective, num_updates=cfg.align.fake_updates, lr=cfg.align.fake_lr
        )
        watch = AlignmentWatch(prior, targets, cfg.seed) if session.is_main else None
        rows_watched = _some_rows(len(held_out), scale.eval_latents // scale.num_latents, cfg.seed)
        batch = scale.batch_images // scale.accumulate
        cropped = scale.augment == "crop_flip"

        def load(draw: torch.Generator) -> Tensor:
            """This rank's images of a batch."""
            rows = torch.randint(len(train), (batch,), generator=draw)
            crops = session.share(torch.rand(batch, 4, generator=draw)).cpu() if cropped else None
            return train.images(session.share(rows).cpu(), crops)

        ahead = Ahead(session, load, threaded=not cfg.on_digits)
        for step in session.steps():
            for _ in session.parts():
                images, draw = ahead(step)
                images = images.to(session.device)
                noise = torch.randn(batch, shape.num_latents, shape.latent_dim, generator=draw)
                with session.autocast(), torch.no_grad():
                    features = None if teacher is None else teacher.features(images)
                restored, codes, disagreement = learner.module(
                    images, session.share(noise), features
                )
                randomness = Draw(draw, batch, session.share, session.gather)
                judged, parts = judges(images, restored, step, randomness, last_layer)
                with session.autocast():
                    alignment = objective(codes, randomness)
                extra, of_softvq = softvq(codes, disagreement, randomness)
                loss = judged + cfg.align.weight * alignment + extra
                norm = learner.update(loss)
                followed = fake_flow.follow(codes, step, randomness)
                judges.follow(images, restored, step, randomness)
                session.log(
                    step,
                    loss=loss,
                    **parts,
                    alignment=alignment,
                    grad_norm=norm,
                    **followed,
                    **of_softvq,
                )
            if watch is not None and (step + 1) % scale.eval_steps == 0:
                averaged = learner.averaged.autoencoder
                latents = _latents(averaged, held_out, rows_watched, session.device)
                session.record("alignment", step + 1, watch(latents))
        if session.is_main:
            save_trained(
                root / "data/autoencoder",
                "autoencoder",
                learner.averaged.autoencoder,
                {
                    "shape": shape._asdict(),
                    "bottleneck": cfg.autoencoder.bottleneck,
                    "codebooks": _codebooks(cfg)._asdict(),
                },
                provenance(config, inputs, "torch", "timm"),
            )
            curves = session.curves
            write_csv(root / f"metrics/curves/{STAGE}.csv", curves["train"])
            write_csv(root / "metrics/curves/alignment.csv", curves.get("alignment", []))
            write_csv(root / "metrics/curves/gan.csv", curves.get("gan", []))
            metrics = summarise(curves, cfg.seed) | {
                "num_latents": len(rows_watched) * shape.num_latents,
                "seed": cfg.seed,
                **usage(session.seconds),
                "images_per_second": scale.steps * scale.batch_images / session.seconds,
            }
            write_json(root / f"metrics/{STAGE}.json", metrics)
            figure = root / "metrics/figures/alignment.png"
            save_figure(_figure(curves.get("alignment", []), metrics), figure)
            session.tracker.finish(metrics, [figure], headline=HEADLINE)


def shape_of(cfg: Params, channels: int, latent_dim: int) -> Shape:
    """Sizes of the autoencoder."""
    scale = cfg.scale.train_ae
    return Shape(
        image_size=cfg.scale.images.size,
        channels=channels,
        patch_size=scale.patch_size,
        num_latents=scale.num_latents,
        latent_dim=latent_dim,
        width=scale.width,
        depth=scale.depth,
        num_heads=scale.num_heads,
        layer_scale=scale.layer_scale,
    )


def build_trainee(cfg: Params, shape: Shape, teacher: Teacher | None) -> Trainee:
    """The autoencoder, and the head that predicts the teacher's features; reads torch's global stream."""
    autoencoder = build_autoencoder(shape, cfg.autoencoder.bottleneck, _codebooks(cfg))
    if teacher is None:
        return Trainee(autoencoder, None)
    width = cfg.scale.train_ae.softvq.representation_width
    return Trainee(autoencoder, RepresentationHead(shape.latent_dim, width, teacher.dim))


def _codebooks(cfg: Params) -> Codebooks:
    softvq = cfg.scale.train_ae.softvq
    return Codebooks(softvq.num_codebooks, softvq.num_codes, softvq.temperature)


def open_teacher(cfg: Params, device: torch.device) -> Teacher | None:
    """The network whose features SoftVQ's latents should predict; None where they should not."""
    softvq = cfg.scale.train_ae.softvq
    if cfg.autoencoder.bottleneck != "softvq" or not softvq.representation_weight:
        return None
    if cfg.on_digits:
        network = load_digits_network("semantic").to(device)
        return Teacher(
            network.features, network.width, file_digest(DIGITS_DIR / "semantic.safetensors")
        )
    with rng.scoped(cfg.seed, STAGE, "teacher"):
        encoder = patch_tokens(
            softvq.representation_model,
            size=cfg.scale.images.size,
            patch_size=cfg.scale.train_ae.patch_size,
            device=device,
            pretrained=softvq.representation_pretrained,
        )
    return Teacher(encoder.on_device, encoder.dim, encoder.facts["sha256"])


class AlignmentWatch:
    """L_align and mean log r_k of latents, with the same noise and times at every look (Fig. 4, arXiv:2506.05240)."""

    def __init__(self, prior: FlowPrior, targets: ShardReader, seed: int) -> None:
        self._prior = prior
        vectors = targets.column("train", "vectors")
        if len(vectors) < max(NEIGHBOURS):
            raise ValueError(
                f"data/targets has {len(vectors)} training vectors, log r_k needs {max(NEIGHBOURS)}; "
                "bring more features or raise max_vectors, and run `dvc repro extract_features`"
            )
        self._index = NeighbourIndex(vectors.read())
        self._seed = seed

    def __call__(self, latents: Tensor) -> dict[str, float]:
        """One row of the curve, for latents [n, d]."""
        draw = rng.generator(self._seed, STAGE, "watch")
        with torch.no_grad():
            loss = self._prior.alignment_loss(latents, draw, EVAL_DRAWS)
        distances = self._index.mean_log_distance(latents.cpu().numpy(), NEIGHBOURS)
        return {"alignment_loss": float(loss)} | {
            f"mean_log_r{k}": distance for k, distance in distances.items()
        }


def summarise(
    curves: dict[str, list[dict[str, float]]], seed: int
) -> dict[str, float | int | None]:
    """Last losses, and how the alignment loss follows the nearest-neighbour proxy over training."""
    last = curves["train"][-1]
    metrics: dict[str, float | int | None] = {
        name: last[name] for name in ("loss", "reconstruction", "alignment")
    }
    looks = curves.get("alignment", [])
    metrics["num_looks"] = len(looks)
    losses = [row["alignment_loss"] for row in looks]
    metrics["held_out_alignment_loss"] = losses[-1] if losses else None
    for k in NEIGHBOURS:
        distances = [row[f"mean_log_r{k}"] for row in looks]
        metrics[f"mean_log_r{k}"] = distances[-1] if distances else None
        found = correlations(losses, distances, seed)
        for name in ("pearson", "spearman"):
            value = found.get(name)
            metrics[f"{name}_r{k}"] = value.value if value else None
            metrics[f"{name}_r{k}_low"] = value.low if value else None
            metrics[f"{name}_r{k}_high"] = value.high if value else None
    return metrics


def _figure(looks: list[dict[str, float]], metrics: dict[str, float | int | None]) -> Figure:
    k = NEIGHBOURS[1]
    values = [metrics[f"spearman_r{k}{end}"] for end in ("", "_low", "_high")]
    caption = "" if None in values else "Spearman {:.3f}, 95% CI [{:.3f}, {:.3f}]".format(*values)
    return alignment_figure(looks, k, caption)


def _some_rows(n: int, wanted: int, seed: int) -> Tensor:
    """Distinct rows, ascending; all where fewer than wanted are there."""
    order = torch.randperm(n, generator=rng.generator(seed, STAGE, "rows"))
    return order[: max(1, wanted)].sort().values


def _latents(
    autoencoder: Autoencoder, images: ImageSet, rows: Tensor, device: torch.device
) -> Tensor:
    """Latents of the given images as vectors [n, d], from the moving average of the weights."""
    autoencoder.eval()
    with torch.no_grad():
        parts = [
            autoencoder.encode(images.images(rows[list(piece)]).to(device)).mean.flatten(0, 1)
            for piece in batches(len(rows), EVAL_BATCH)
        ]
    return torch.cat(parts).float()


if __name__ == "__main__":
    main(params.load_params(), params.ROOT)
