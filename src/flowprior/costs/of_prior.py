"""What the stages cost that make the prior: extract_features, project, train_flow."""

import torch

from flowprior.config.schema import Params
from flowprior.costs.facts import Facts, images_looked_at
from flowprior.costs.flops import META, Cost, measure
from flowprior.costs.networks import feature_transformer, velocity_network
from flowprior.costs.work import Work, file_bytes, forward_flops, in_parts
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import group_vectors


def extract_features(cfg: Params, facts: Facts) -> Work:
    """Work of extract_features: vectors in float16, and the passes of a transformer that timm knows by name."""
    size = 2 * facts.feature_dim * facts.feature_vectors
    vit, batch = feature_transformer(cfg), cfg.extract_features.batch_images
    if vit is None:
        return Work(size, uncounted=_unknown_features(cfg, facts))
    images = torch.empty(batch, 3, *vit.patch_embed.img_size, device=META)
    flops = forward_flops(lambda: vit.forward_features(images))
    num_images = sum(count for count, _ in images_looked_at(cfg, facts))
    return Work(
        size,
        frozen={"transformer": vit},
        num_steps=num_images / batch,
        batch=batch,
        cost=Cost(flops, 0),
    )


def project(cfg: Params, facts: Facts) -> Work:
    """Work of project: the projected vectors in float32."""
    size = 4 * cfg.project.dim * facts.feature_vectors
    return Work(size, uncounted=_unknown_features(cfg, facts))


def train_flow(cfg: Params, facts: Facts) -> Work:
    """Work of train_flow: steps on vectors that share times in groups."""
    settings = cfg.train_flow
    velocity = velocity_network(cfg)
    size, groups = (
        n // settings.accumulate for n in (settings.batch_vectors, settings.time_groups)
    )
    vectors = group_vectors(torch.empty(size, velocity.dim, device=META), groups)
    t = torch.empty(len(vectors), 1, device=META)
    part = measure(
        lambda: flow_matching_loss(velocity, vectors, vectors, t).mean(), settings.precision
    )
    return Work(
        *file_bytes({"velocity": velocity}, velocity),
        {"velocity": velocity},
        num_steps=settings.steps,
        batch=settings.batch_vectors,
        cost=in_parts(part, settings.accumulate),
        precision=settings.precision,
    )


def _unknown_features(cfg: Params, facts: Facts) -> tuple[str, ...]:
    if facts.feature_vectors and facts.feature_dim:
        return ()
    return (
        f"prior.source {cfg.prior.source} (how many vectors it gives, of how many channels: "
        "say it with --feature-vectors and --feature-dim)",
    )
