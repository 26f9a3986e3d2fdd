"""What each stage does, as far as it costs: its step on the meta device, and the files it leaves.

Models are built by the stages' own builders, and a step is counted as the stage runs it
(`flowprior.costs.flops`). Left out: reading and decoding of images, elementwise arithmetic,
evaluation (Inception, nearest neighbours), the projection, and features of another kind than a
transformer's.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import NamedTuple

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import train_ae as train_ae_stage
from flowprior.alignment.fake_flow import FakeFlow
from flowprior.alignment.registry import build_objective
from flowprior.autoencoder.softvq_terms import SoftVQTerms, Teacher, Trainee
from flowprior.config.params import Params
from flowprior.core import rng
from flowprior.core.rng import Draw
from flowprior.costs.flops import (
    CHECKPOINT_BYTES,
    FROZEN_BYTES,
    META,
    Cost,
    Precision,
    measure,
    num_parameters,
    sampling_flops,
)
from flowprior.encoders.networks import DEFAULT_TRANSFORMER
from flowprior.encoders.shipped import load_digits_network
from flowprior.features.tables import HELD_OUT
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.path import group_vectors
from flowprior.flow.velocity import VelocityMLP
from flowprior.mar.masking import draw_num_masked
from flowprior.mar.model import MAR, MARShape
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.projection import Projection
from flowprior.reconstruction.discriminator import build_discriminator
from flowprior.reconstruction.perceptual import build_perceptual
from flowprior.reconstruction.terms import AdversarialTerm, ImageLosses, PerceptualTerm
from flowprior.training.session import Optimizer, Session


class Facts(NamedTuple):
    """What only the data would tell.

    Attributes:
        train_images: Number of them.
        held_out_images: Likewise.
        num_classes: Labels.
        channels: Of an image.
        feature_vectors: Rows of the target features, both splits.
        feature_dim: Their channels.
    """

    train_images: int
    held_out_images: int
    num_classes: int
    channels: int
    feature_vectors: int
    feature_dim: int


IMAGENET = Facts(1_281_167, 50_000, 1000, 3, 0, 0)
DIGITS = Facts(1438, 359, 10, 1, 0, 0)
IMAGENET_TOKENS = {"low_level": (64, 32)}
"""Vectors of an image and their channels: the DC-AE's, at 256 pixels."""
IMAGENET_TABLES = {"discrete": (16_384, 8), "textual": (151_936, 896)}
"""Rows and channels: LlamaGen's codebook, the embeddings of Qwen2.5-0.5B."""
DIGITS_TOKENS = {"semantic": (16, 64), "shuffled": (16, 64), "low_level": (9, 16)}
DIGITS_TABLES = {"discrete": (512, 8), "textual": (30_522, 384)}
GAUSSIAN_DIM = 64


class Work(NamedTuple):
    """What a stage does, as far as it costs.

    Attributes:
        disk_bytes: Of its artifact.
        checkpoint_bytes: Of what a killed run goes on from.
        learned: Modules that it trains, by name.
        frozen: Modules that it only asks.
        num_steps: Of them; not whole where a batch is not full.
        batch: Items of a step, over all GPUs.
        cost: Of a step, over all GPUs: operations in the mean over the steps, memory in the dearest.
        precision: Of a step.
        parts: Operations for each item of what a step, or the stage, consists of, by name.
    """

    disk_bytes: float
    checkpoint_bytes: float = 0.0
    learned: Mapping[str, nn.Module] = {}
    frozen: Mapping[str, nn.Module] = {}
    num_steps: float = 0
    batch: int = 0
    cost: Cost = Cost(0, 0)
    precision: Precision = "fp32"
    parts: Mapping[str, float] = {}


class Rehearsal(Session):
    """A session on the meta device, of one rank: losses take their backward passes, nothing is updated or written.

    Attributes:
        learned: Modules of its learners, by name.
    """

    def __init__(self) -> None:
        # Not the parent's, which starts a launch and opens checkpoints and tracking.
        self.stage, self.seed = "plan", 0
        self.learned: dict[str, nn.Module] = {}
        self.accelerator = SimpleNamespace(
            num_processes=1,
            process_index=0,
            device=META,
            autocast=nullcontext,
            reduce=lambda values, reduction: values,
        )
        self._part = 0

    def learner(
        self, name: str, module: nn.Module, optimizer: Optimizer | None = None
    ) -> SimpleNamespace:
        """What takes a learner's place: its module, and updates that are backward passes."""
        self.learned[name] = module
        return SimpleNamespace(module=module, update=lambda loss: loss.backward())

    def looks(self, step: int) -> bool:
        """No row of the curve ends here, so that a step without one is counted."""
        return False


def extract_features(cfg: Params, facts: Facts) -> Work:
    """Vectors in float16; the transformer's passes, where it is one that timm knows by name."""
    size = 2 * facts.feature_dim * facts.feature_vectors
    vit, batch = _transformer(cfg), cfg.scale.extract_features.batch_images
    if vit is None:
        return Work(size)
    images = torch.empty(batch, 3, *vit.patch_embed.img_size, device=META)
    passed = _without_gradient(lambda: vit.forward_features(images))
    num_images = sum(count for count, _ in _images_looked_at(cfg, facts))
    return Work(
        size,
        frozen={"transformer": vit},
        num_steps=num_images / batch,
        batch=batch,
        cost=Cost(passed, 0),
    )


def project(cfg: Params, facts: Facts) -> Work:
    """The vectors again in fewer dims, float32."""
    return Work(4 * cfg.scale.project.dim * facts.feature_vectors)


def train_flow(cfg: Params, facts: Facts) -> Work:
    """Vectors that share times in groups."""
    scale = cfg.scale.train_flow
    velocity = _velocity(cfg)
    size, groups = (n // scale.accumulate for n in (scale.batch_vectors, scale.time_groups))
    vectors = group_vectors(torch.empty(size, velocity.dim, device=META), groups)
    t = torch.empty(len(vectors), 1, device=META)
    part = measure(
        lambda: flow_matching_loss(velocity, vectors, vectors, t).mean(), scale.precision
    )
    return Work(
        *_files({"velocity": velocity}, velocity),
        {"velocity": velocity},
        num_steps=scale.steps,
        batch=scale.batch_vectors,
        cost=_of_parts(part, scale.accumulate),
        precision=scale.precision,
    )


def train_ae(cfg: Params, facts: Facts) -> Work:
    """Reconstruction and what judges it, and the objective on the latents.

    Terms are added one after the other, so that it is known what each costs.
    """
    scale, session = cfg.scale.train_ae, Rehearsal()
    batch = scale.batch_images // scale.accumulate
    prior, (teacher, frozen) = _prior(cfg, facts), _teacher(cfg)
    trainee = _trainee(cfg, facts, teacher)
    autoencoder = trainee.autoencoder.checkpoint_gradients(scale.gradient_checkpointing)
    learner = session.learner("autoencoder", trainee)
    softvq = SoftVQTerms(scale.softvq.entropy_weight, scale.softvq.representation_weight)
    perceptual = PerceptualTerm(**scale.perceptual.model_dump() | {"pretrained": False})
    adversarial = AdversarialTerm(
        **scale.adversarial.model_dump() | {"pretrained": False, "start_step": 1}
    )
    frozen |= _judges(perceptual, adversarial)
    with META:
        nobody = ImageLosses(
            session, perceptual._replace(weight=0.0), adversarial._replace(weight=0.0)
        )
        judges = ImageLosses(session, perceptual, adversarial)
    objective = build_objective(
        cfg.align.objective,
        prior,
        lambda n, generator: torch.randn(n, prior.dim, generator=generator),
        num_draws=cfg.align.num_draws,
        t_max=cfg.align.t_max,
    )
    fake_flow = FakeFlow(
        session, objective, num_updates=cfg.align.fake_updates, lr=cfg.align.fake_lr
    )
    images, noise = _images(cfg, facts, batch), _latents(cfg, batch)

    def part(judges: ImageLosses, aligned: bool, step: int) -> Cost:
        def once() -> None:
            draw = session.generator("step", step)
            features = None if teacher is None else teacher.features(images)
            restored, codes, disagreement = learner.module(images, noise, features)
            randomness = Draw(draw, batch, session.share, session.gather)
            last_layer = autoencoder.decoder.output.weight
            loss, _ = judges(images, restored, step, randomness, last_layer)
            loss = loss + softvq(codes, disagreement, randomness)[0]
            if aligned:
                loss = loss + cfg.align.weight * objective(codes, randomness)
            learner.update(loss)
            if aligned:
                fake_flow.follow(codes, step, randomness)
            judges.follow(images, restored, step, randomness)

        return measure(once, scale.precision)

    so_far = {"autoencoder": part(nobody, False, 0), "alignment": part(nobody, True, 0)}
    if perceptual.weight:
        so_far["perceptual"] = part(judges, True, 0)
    if adversarial.weight:
        so_far["adversarial"] = part(judges, True, 1)
    totals = [0, *(cost.flops for cost in so_far.values())]
    flops = {
        name: after - before for name, (before, after) in zip(so_far, pairwise(totals), strict=True)
    }
    # The game goes on in a share of the steps only.
    share = 1 - scale.adversarial.start_step / scale.steps
    mean = totals[-1] - (1 - share) * flops.get("adversarial", 0)
    dearest = max(cost.kept_bytes for cost in so_far.values())
    return Work(
        *_files(session.learned, autoencoder),
        session.learned,
        {"flow_prior": prior, **frozen},
        num_steps=scale.steps,
        batch=scale.batch_images,
        cost=_of_parts(Cost(round(mean), dearest), scale.accumulate),
        precision=scale.precision,
        parts={name: value / batch for name, value in flops.items()},
    )


def encode_latents(cfg: Params, facts: Facts) -> Work:
    """Every image and, where asked for, its mirror image; the held-out ones also back again."""
    scale = cfg.scale.encode_latents
    autoencoder = _trainee(cfg, facts, None).autoencoder
    images = _images(cfg, facts, scale.batch_images)
    views = 2 if scale.flip else 1
    num_images = facts.train_images + facts.held_out_images
    encoded = _without_gradient(lambda: autoencoder.encode(images))
    restored = _without_gradient(lambda: autoencoder(images))
    share = facts.held_out_images / num_images
    size = cfg.scale.train_ae.num_latents * cfg.scale.project.dim
    return Work(
        num_images * (2 * views * size + 8),
        frozen={"autoencoder": autoencoder},
        num_steps=num_images / scale.batch_images,
        batch=scale.batch_images,
        cost=Cost(round(views * encoded + share * restored), 0),
        precision=scale.precision,
    )


def train_mar(cfg: Params, facts: Facts) -> Work:
    """Between the fewest and all tokens masked: operations at their mean number, memory where it is larger."""
    scale = cfg.scale.train_mar
    mar = _mar(cfg, facts)
    b, n = scale.batch_images // scale.accumulate, mar.shape.num_tokens
    tokens = _latents(cfg, b)
    labels = torch.zeros(b, dtype=torch.long, device=META)
    orders = torch.zeros(b, n, dtype=torch.long, device=META)

    def part(masked: int) -> Cost:
        noise = torch.empty(scale.head_draws, b, masked, mar.shape.dim, device=META)
        return measure(
            lambda: mar(tokens, labels, orders, masked, noise, noise[..., 0]), scale.precision
        )

    low, std = scale.mask_ratio_low, scale.mask_ratio_std
    least = max(1, math.ceil(n * low))
    few, all_of_them = part(least), part(n)
    share = (_mean_masked(n, low, std) - least) / max(1, n - least)
    cost = Cost(
        round(few.flops + share * (all_of_them.flops - few.flops)),
        max(few.kept_bytes, all_of_them.kept_bytes),
    )
    return Work(
        *_files({"mar": mar}, mar),
        {"mar": mar},
        num_steps=scale.steps,
        batch=scale.batch_images,
        cost=_of_parts(cost, scale.accumulate),
        precision=scale.precision,
    )


def sample_eval(cfg: Params, facts: Facts) -> Work:
    """Images without guidance and as many with it."""
    scale, guidance = cfg.scale.sample_eval, cfg.guidance
    mar, autoencoder = _mar(cfg, facts).eval(), _trainee(cfg, facts, None).autoencoder
    latents = _latents(cfg, 1)
    decoded = _without_gradient(lambda: autoencoder.decode(latents))
    plain, guided = (
        decoded
        + sampling_flops(
            mar,
            num_iterations=scale.num_iterations,
            head_steps=scale.head_steps,
            final_head_steps=scale.final_head_steps,
            solver=scale.solver,
            guided=factor != 1,
            guidance_interval=(guidance.low, guidance.high),
        )
        for factor in (1.0, guidance.scale)
    )
    return Work(
        2 * scale.num_samples * facts.channels * cfg.scale.images.size**2,
        frozen={"mar": mar, "autoencoder": autoencoder},
        num_steps=scale.num_samples / scale.batch_images,
        batch=scale.batch_images,
        cost=Cost((plain + guided) * scale.batch_images, 0),
        precision=scale.precision,
        parts={"without guidance": plain, "with guidance": guided},
    )


STAGES: dict[str, Callable[[Params, Facts], Work]] = {
    plan.__name__: plan
    for plan in (
        extract_features,
        project,
        train_flow,
        train_ae,
        encode_latents,
        train_mar,
        sample_eval,
    )
}
"""In the order of the pipeline."""


def assumed(cfg: Params) -> Facts:
    """What the data are taken to be: ImageNet-1k or the digits, and features of the paper's kinds.

    No features where `prior.source` is a file, of which nothing is known.
    """
    digits, source = cfg.on_digits, cfg.prior.source
    facts = DIGITS if digits else IMAGENET
    tokens, tables = (
        (DIGITS_TOKENS, DIGITS_TABLES) if digits else (IMAGENET_TOKENS, IMAGENET_TABLES)
    )
    if (vit := _transformer(cfg)) is not None:
        tokens = {source: (vit.patch_embed.num_patches, vit.embed_dim)}
    drawn = cfg.scale.extract_features.max_vectors, GAUSSIAN_DIM
    vectors, dim = {**tables, "gaussian": drawn}.get(source, (0, 0))
    if source in tokens:
        per_image, dim = tokens[source]
        vectors = sum(n * min(per_image, most // n) for n, most in _images_looked_at(cfg, facts))
    return facts._replace(feature_vectors=vectors, feature_dim=dim)


def _files(learned: Mapping[str, nn.Module], kept: nn.Module) -> tuple[int, int]:
    """Bytes of an artifact, the averages of what is kept, and of a checkpoint of all that learns."""
    return FROZEN_BYTES * num_parameters([kept]), CHECKPOINT_BYTES * num_parameters(
        learned.values()
    )


def _of_parts(part: Cost, accumulate: int) -> Cost:
    """A step of so many parts, one after the other."""
    return Cost(part.flops * accumulate, part.kept_bytes)


def _without_gradient(run: Callable[[], object]) -> int:
    """Operations of a pass that is not learned from."""

    @torch.no_grad()
    def once() -> None:
        run()

    return measure(once).flops


def _images_looked_at(cfg: Params, facts: Facts) -> list[tuple[int, int]]:
    """For features, of each split: images, and the most vectors that are kept of them."""
    caps = cfg.scale.extract_features
    found = []
    for n, share in ((facts.train_images, 1), (facts.held_out_images, HELD_OUT)):
        most = caps.max_vectors // share
        images = n if caps.max_images is None else max(1, caps.max_images // share)
        found.append((min(n, most, images), most))
    return found


def _transformer(cfg: Params) -> VisionTransformer | None:
    """That makes semantic features of photographs, as `encoders.patch_tokens` sets it up; None for another source.

    None as well for one that is not timm's own: that would have to be read from a folder or the hub.
    """
    name = cfg.prior.model or DEFAULT_TRANSFORMER
    semantic = cfg.prior.source in ("semantic", "shuffled") and not cfg.on_digits
    if not semantic or cfg.prior.path is not None or not timm.is_model(name):
        return None
    with META:
        vit: VisionTransformer = timm.create_model(name, pretrained=False, num_classes=0)
        rows, columns = (cfg.scale.images.size // side for side in vit.patch_embed.patch_size)
        height, width = vit.patch_embed.patch_size
        vit.set_input_size((rows * height, columns * width))
    return vit.eval().requires_grad_(False)


def _velocity(cfg: Params) -> VelocityMLP:
    scale = cfg.scale.train_flow
    with META:
        return VelocityMLP(cfg.scale.project.dim, scale.width, scale.depth)


def _prior(cfg: Params, facts: Facts) -> FlowPrior:
    velocity = _velocity(cfg)
    with META:
        matrix = torch.empty(facts.feature_dim, velocity.dim)
        projection = Projection(matrix, 1.0, cfg.project.operator, cfg.seed)
    return FlowPrior(velocity, projection, cfg.scale.train_flow.time_groups)


def _trainee(cfg: Params, facts: Facts, teacher: Teacher | None) -> Trainee:
    """As the stage builds it, but that no weights are loaded."""
    with META:
        shape = train_ae_stage.shape_of(cfg, facts.channels, cfg.scale.project.dim)
        return train_ae_stage.build_trainee(cfg, shape, teacher)


def _teacher(cfg: Params) -> tuple[Teacher | None, dict[str, nn.Module]]:
    """As the stage `train_ae` opens it, but that no weights are loaded; and its network."""
    softvq = cfg.scale.train_ae.softvq
    if cfg.autoencoder.bottleneck != "softvq" or not softvq.representation_weight:
        return None, {}
    if cfg.on_digits:
        network = load_digits_network("semantic").to(META)
        return Teacher(network.features, network.width, ""), {"teacher": network}
    options = {
        "num_classes": 0,
        "img_size": cfg.scale.images.size,
        "patch_size": cfg.scale.train_ae.patch_size,
    }
    try:
        with META:
            vit = timm.create_model(softvq.representation_model, pretrained=False, **options)
    except RuntimeError as error:  # timm does not know it
        raise ValueError(str(error)) from error
    vit.eval().requires_grad_(False)
    return Teacher(
        lambda images: vit.forward_features(images)[:, vit.num_prefix_tokens :], vit.embed_dim, ""
    ), {"teacher": vit}


def _judges(perceptual: PerceptualTerm, adversarial: AdversarialTerm) -> dict[str, nn.Module]:
    """The frozen networks of the image losses."""
    judges: dict[str, nn.Module] = {}
    with META:
        if perceptual.weight:
            judges["perceptual"] = build_perceptual(pretrained=False)
        if adversarial.weight:
            try:
                judges["transformer"], _ = build_discriminator(
                    adversarial.backbone, pretrained=False
                )
            except RuntimeError as error:  # the folder of local-dir: is not there
                raise ValueError(str(error)) from error
    return judges


def _mar(cfg: Params, facts: Facts) -> MAR:
    scale = cfg.scale.train_mar
    shape = MARShape(
        num_tokens=cfg.scale.train_ae.num_latents,
        dim=cfg.scale.project.dim,
        num_classes=facts.num_classes,
        **{name: getattr(scale, name) for name in MARShape._fields[3:]},
    )
    with META:
        return MAR(shape)


def _images(cfg: Params, facts: Facts, batch: int) -> Tensor:
    size = cfg.scale.images.size
    return torch.empty(batch, facts.channels, size, size, device=META)


def _latents(cfg: Params, batch: int) -> Tensor:
    return torch.empty(batch, cfg.scale.train_ae.num_latents, cfg.scale.project.dim, device=META)


def _mean_masked(n: int, low: float, std: float, draws: int = 1000) -> float:
    """Of a step's number of masked tokens."""
    generator = rng.generator(0, "plan")
    return sum(draw_num_masked(n, generator, low, std) for _ in range(draws)) / draws
