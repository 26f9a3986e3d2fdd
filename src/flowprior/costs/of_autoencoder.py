"""What the stages cost that train the autoencoder and put it to use: train_ae, encode_latents."""

from itertools import pairwise

import torch
from torch import nn

from flowprior.alignment.in_training import fresh_draws, open_term
from flowprior.alignment.term import AlignmentTerm
from flowprior.autoencoder.softvq_terms import SoftVQTerms
from flowprior.config.schema import Params
from flowprior.core.rng import Draw
from flowprior.costs import networks
from flowprior.costs.facts import Facts
from flowprior.costs.flops import META, Cost, measure
from flowprior.costs.rehearsal import Rehearsal
from flowprior.costs.work import (
    UncountedError,
    Work,
    counting_plugin,
    file_bytes,
    forward_flops,
    in_parts,
)
from flowprior.reconstruction.terms import AdversarialTerm, ImageLosses, PerceptualTerm


def train_ae(cfg: Params, facts: Facts) -> Work:
    """Work of train_ae: reconstruction and what judges it, and the objective on the latents.

    Terms are added one after the other, so that it is known what each costs.

    Raises:
        UncountedError: The autoencoder is a plugin that does not run on the meta device.
    """
    settings, session = cfg.train_ae, Rehearsal()
    batch = settings.batch_images // settings.accumulate
    teacher, frozen = networks.teacher(cfg)
    trainee = networks.trainee(cfg, facts.channels, teacher)
    learner = session.learner("autoencoder", trainee)
    softvq = SoftVQTerms(settings.softvq.entropy_weight, settings.softvq.representation_weight)
    perceptual = PerceptualTerm(**settings.perceptual.model_dump() | {"pretrained": False})
    adversarial = AdversarialTerm(
        **settings.adversarial.model_dump() | {"pretrained": False, "start_step": 1}
    )
    frozen |= networks.image_judges(perceptual, adversarial)
    with META:
        nobody = ImageLosses(
            session, perceptual._replace(weight=0.0), adversarial._replace(weight=0.0)
        )
        judges = ImageLosses(session, perceptual, adversarial)
    images, noise = networks.images(cfg, batch, facts.channels), networks.latents(cfg, batch)

    def part(judges: ImageLosses, pull: AlignmentTerm | None, step: int) -> Cost:
        def once() -> None:
            draw = session.generator("step", step)
            features = None if teacher is None else teacher.features(images)
            restored, codes, disagreement = learner.module(images, noise, features)
            randomness = Draw(draw, batch, session.share, session.gather)
            last_layer = trainee.autoencoder.last_layer
            loss, _ = judges(images, restored, step, randomness, last_layer)
            loss = loss + softvq(codes, disagreement, randomness)[0]
            if pull is not None:
                loss = loss + cfg.align.weight * pull(codes, draw=randomness)
            learner.update(loss)
            if pull is not None:
                pull.follow(codes, fresh_draws(session, step, randomness))
            judges.follow(images, restored, step, randomness)

        return measure(once, settings.precision)

    with networks.autoencoder_plugin(cfg):
        so_far = {"autoencoder": part(nobody, None, 0)}
    uncounted: tuple[str, ...] = ()
    prior = networks.flow_prior(cfg, facts.feature_dim)

    def targets(n: int, generator: torch.Generator) -> torch.Tensor:
        return torch.randn(n, prior.dim, generator=generator)

    try:
        with counting_plugin("align.objective", cfg.align.objective):
            pull: AlignmentTerm | None = open_term(session, prior, cfg.align, targets)
            so_far["alignment"] = part(nobody, pull, 0)
    except UncountedError as error:
        pull, uncounted = None, (str(error),)
    if perceptual.weight:
        so_far["perceptual"] = part(judges, pull, 0)
    if adversarial.weight:
        so_far["adversarial"] = part(judges, pull, 1)
    totals = [0, *(cost.flops for cost in so_far.values())]
    flops = {
        name: after - before for name, (before, after) in zip(so_far, pairwise(totals), strict=True)
    }
    # The game goes on in a share of the steps only.
    share = 1 - settings.adversarial.start_step / settings.steps
    mean = totals[-1] - (1 - share) * flops.get("adversarial", 0)
    dearest = max(cost.kept_bytes for cost in so_far.values())
    return Work(
        *file_bytes(session.learned, trainee.autoencoder),
        session.learned,
        {"flow_prior": nn.ModuleList([prior.velocity, prior.projection]), **frozen},
        num_steps=settings.steps,
        batch=settings.batch_images,
        cost=in_parts(Cost(round(mean), dearest), settings.accumulate),
        precision=settings.precision,
        parts={name: value / batch for name, value in flops.items()},
        uncounted=uncounted,
    )


def encode_latents(cfg: Params, facts: Facts) -> Work:
    """Work of encode_latents: every image and, where asked for, its mirror image; the held-out ones also back again."""
    settings = cfg.encode_latents
    views = 2 if settings.flip else 1
    num_images = facts.train_images + facts.held_out_images
    size = cfg.train_ae.num_latents * cfg.project.dim
    work = Work(
        num_images * (2 * views * size + 8),
        num_steps=num_images / settings.batch_images,
        batch=settings.batch_images,
        precision=settings.precision,
    )
    images = networks.images(cfg, settings.batch_images, facts.channels)
    try:
        autoencoder = networks.trainee(cfg, facts.channels, None).autoencoder
        with networks.autoencoder_plugin(cfg):
            encoded = forward_flops(lambda: autoencoder.encode(images))
            restored = forward_flops(lambda: autoencoder(images))
    except UncountedError as error:
        return work._replace(uncounted=(str(error),))
    share = facts.held_out_images / num_images
    return work._replace(
        frozen={"autoencoder": autoencoder},
        cost=Cost(round(views * encoded + share * restored), 0),
    )
