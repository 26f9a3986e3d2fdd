"""Train the autoencoder while its latents are pulled towards the prior (Eq. (5), arXiv:2506.05240).

Reads   images, data/targets/, data/flow_prior/
Writes  data/autoencoder/               weights (moving average), config
        metrics/train_ae.json           losses; how L_align follows mean log r_k (Fig. 4) over training
        metrics/curves/                 train_ae.csv, alignment.csv; gan.csv, empty where there is no game
        metrics/figures/alignment.png
"""

from flowprior.config import launch

launch.check_params(__name__, every_rank=True)

from pathlib import Path

import torch

from flowprior.alignment.in_training import fresh_draws, open_term
from flowprior.alignment.watch import NEIGHBOURS, AlignmentWatch, caption, training_metrics
from flowprior.autoencoder.setup import (
    autoencoder_config,
    build_trainee,
    open_encoder,
    open_teacher,
)
from flowprior.autoencoder.softvq_terms import SoftVQTerms
from flowprior.config.presets import load_params
from flowprior.config.schema import Params
from flowprior.core.artifacts import digests, provenance
from flowprior.core.device import start_accelerator
from flowprior.core.io import write_csv
from flowprior.core.rng import Draw
from flowprior.core.root import find_root, state_root
from flowprior.core.shards import ShardReader
from flowprior.core.trained import save_trained
from flowprior.figures.plots import alignment_figure, save_figure
from flowprior.images.batches import random_batches
from flowprior.images.opening import open_both_splits
from flowprior.images.sets import check_images
from flowprior.prior.flow_prior import FlowPrior
from flowprior.reconstruction.terms import ImageLosses
from flowprior.training.ahead import Ahead
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session

STAGE = "train_ae"
HEADLINE = ("held_out_alignment_loss", "spearman_r5")


def main(cfg: Params, root: Path) -> None:
    """Run the stage in a workspace."""
    settings, align = cfg.train_ae, cfg.align
    targets = ShardReader.open(root / "data/targets", "targets", "the stage `project`")
    prior = FlowPrior.load(root / "data/flow_prior")
    train, held_out = open_both_splits(cfg.image_source)
    for images, split in ((train, "train"), (held_out, "validation")):
        made_from = targets.manifest["source"].get(f"{split}_images")
        check_images(images, made_from, root / "data/targets", "extract_features")
    size, channels = cfg.images.size, train.images([0]).shape[1]
    config = autoencoder_config(
        cfg.autoencoder, settings, image_size=size, channels=channels, latent_dim=prior.dim
    )
    device = start_accelerator(settings.precision).device
    teacher = open_teacher(cfg.autoencoder, settings, cfg.on_digits, size, cfg.seed, device)
    encoder = open_encoder(settings, size)
    inputs = digests(images=train, held_out_images=held_out, targets=targets, flow_prior=prior)
    inputs |= digests(encoder=encoder, teacher=teacher)
    with Session(STAGE, inputs=inputs, root=state_root(root), **cfg.session(STAGE)) as session:
        trainee = build_trainee(config, settings, teacher, encoder, cfg.seed)
        last_layer = trainee.autoencoder.last_layer
        optimizer = Optimizer(**settings.optimizer.model_dump(), undecayed=trainee.undecayed)
        learner = session.learner("autoencoder", trainee, optimizer)
        reconstruct = ImageLosses.build(session, settings)
        softvq = SoftVQTerms(settings.softvq.entropy_weight, settings.softvq.representation_weight)
        sample = targets.column("train", "vectors").sample
        prior.to(session.device)
        pull = open_term(session, prior, align, sample)
        num_watched = settings.eval_latents // settings.num_latents
        watch = AlignmentWatch(prior, targets, held_out, num_watched, cfg.seed)
        batch = settings.batch_images // settings.accumulate
        load = random_batches(train, batch, settings.augment == "crop_flip", session.share)
        ahead = Ahead(session, load, threaded=not cfg.on_digits)
        for step in session.steps():
            for _ in session.parts():
                images, draw = ahead(step)
                images = images.to(session.device)
                noise = torch.randn(batch, settings.num_latents, prior.dim, generator=draw)
                randomness = Draw(draw, batch, session.share, session.gather)
                with session.autocast(), torch.no_grad():
                    features = None if teacher is None else teacher.features(images)
                restored, codes, off = learner.module(images, session.share(noise), features)
                loss, parts = reconstruct(images, restored, step, randomness, last_layer)
                with session.autocast():
                    alignment = pull(codes, draw=randomness)
                extra, of_softvq = softvq(codes, off, randomness)
                loss = loss + align.weight * alignment + extra
                norm = learner.update(loss)
                parts |= {"alignment": alignment, "grad_norm": norm} | of_softvq
                with session.autocast():
                    parts |= pull.follow(codes, fresh_draws(session, step, randomness))
                reconstruct.follow(images, restored, step, randomness)
                session.log(step, loss=loss, **parts)
            if session.is_main and (step + 1) % settings.eval_steps == 0:
                row = watch(learner.averaged.autoencoder, session.device)
                session.record("alignment", step + 1, row)
        if session.is_main:
            averaged = learner.averaged.autoencoder
            made_from = provenance(inputs, "torch", "timm")
            save_trained(root / "data/autoencoder", "autoencoder", averaged, config, made_from)
            for curve, file in (("train", STAGE), ("alignment", "alignment"), ("gan", "gan")):
                write_csv(root / f"metrics/curves/{file}.csv", session.curves.get(curve, []))
            facts = training_metrics(session.curves, cfg.seed) | {"seed": cfg.seed}
            facts["num_latents"] = len(watch.rows) * settings.num_latents
            figure = root / "metrics/figures/alignment.png"
            looks = session.curves.get("alignment", [])
            save_figure(alignment_figure(looks, NEIGHBOURS[1], caption(facts)), figure)
            rate = settings.steps * settings.batch_images / session.seconds
            session.report(root, facts, figures=[figure], headline=HEADLINE, images_per_second=rate)


if __name__ == "__main__":
    main(load_params(), find_root())
