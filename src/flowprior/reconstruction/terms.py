"""What reconstructions are judged by while an autoencoder learns: squared error, LPIPS, a discriminator."""

import sys
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from flowprior.core import rng
from flowprior.core.rng import Draw
from flowprior.reconstruction.adversarial import Adversary, Weights, collapse, gradient_ratio
from flowprior.reconstruction.discriminator import build_discriminator
from flowprior.reconstruction.perceptual import build_perceptual, warmup
from flowprior.training.plan import Optimizer
from flowprior.training.session import Session


class PerceptualTerm(NamedTuple):
    """LPIPS-VGG.

    Attributes:
        weight: Factor; 0 builds and computes nothing.
        warmup_steps: Over which the factor rises from 0.
        pretrained: False is VGG16 with random weights, to try a machine out.
    """

    weight: float
    warmup_steps: int
    pretrained: bool


class AdversarialTerm(NamedTuple):
    """A discriminator on a frozen transformer.

    Attributes:
        weight: Factor of the hinge losses; 0 builds and computes nothing.
        start_step: First step of the game.
        lecam: Factor of the regulariser.
        consistency: Factor of the agreement of two views.
        backbone: What timm calls the transformer, or `local-dir:/folder`.
        pretrained: False is a transformer with random weights, to try a machine out.
        lr: Constant learning rate of the heads.
    """

    weight: float
    start_step: int
    lecam: float
    consistency: float
    backbone: str
    pretrained: bool
    lr: float


class ImageLosses:
    """The terms of the reconstruction, and the discriminator as a learner of the session.

    Build it before `session.steps`; for each step call it, update the autoencoder on the result, then `follow`.
    The discriminator's state is in the session's checkpoints.

    Args:
        session: Where the discriminator is registered.
        perceptual: The LPIPS term.
        adversarial: The adversarial term.

    Raises:
        ModuleNotFoundError: LPIPS is asked for and its package is absent.
        RuntimeError: Weights cannot be had.
        ValueError: The discriminator's transformer is none.
    """

    def __init__(
        self, session: Session, perceptual: PerceptualTerm, adversarial: AdversarialTerm
    ) -> None:
        self._session = session
        self._term = perceptual
        self._told = False
        self._row: dict[str, float] = {}
        self._game: Adversary | None = None
        with rng.scoped(session.seed, session.stage, "judges"):
            if perceptual.weight:
                judge = build_perceptual(pretrained=perceptual.pretrained)
                self._perceptual = judge.to(session.device)
            if adversarial.weight:
                features, heads = build_discriminator(
                    adversarial.backbone, pretrained=adversarial.pretrained
                )
                self._critic = session.learner("discriminator", heads, _steady(adversarial.lr))
                self._game = Adversary(
                    features.to(session.device),
                    heads,
                    Weights(adversarial.weight, adversarial.lecam, adversarial.consistency),
                    adversarial.start_step,
                    train=self._critic.module,
                    reduce=lambda values: session.accelerator.reduce(values, "mean"),
                )

    @classmethod
    def build(cls, session: Session, settings: Any) -> "ImageLosses":
        """With the terms of the section `train_ae`, its `perceptual` and `adversarial`."""
        perceptual = PerceptualTerm(**settings.perceptual.model_dump())
        return cls(session, perceptual, AdversarialTerm(**settings.adversarial.model_dump()))

    def __call__(
        self,
        images: Float[Tensor, "b c H W"],
        restored: Float[Tensor, "b c H W"],
        step: int,
        draw: Draw,
        last_layer: Tensor,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The loss of reconstructions, and its parts for the log.

        Args:
            images: In [-1, 1].
            restored: Their reconstructions; gradients reach them.
            step: Of the session.
            draw: Randomness for the global batch.
            last_layer: Weight of the autoencoder's last layer, where the pulls of the terms are compared.
        """
        perceptual = self._term
        restored = restored.float()
        loss = (restored - images).square().mean()
        logged = {"reconstruction": loss}
        if perceptual.weight:
            with self._session.autocast():
                distance = self._perceptual(images, restored).mean()
            loss = loss + perceptual.weight * warmup(step, perceptual.warmup_steps) * distance
            logged["perceptual"] = distance
        if self._game is not None and self._game.active(step):
            with self._session.autocast():
                term, hinge = self._game.generator_loss(restored, draw)
            if self._session.looks(step):
                ratio = gradient_ratio(loss, term, last_layer)
                row = torch.stack([ratio, hinge["generator_hinge"]])
                found = self._session.accelerator.reduce(row, "mean").tolist()
                self._row = dict(zip(("gradient_ratio", "generator_hinge"), found, strict=True))
            loss = loss + term
        return loss, logged

    def follow(
        self,
        images: Float[Tensor, "b c H W"],
        restored: Float[Tensor, "b c H W"],
        step: int,
        draw: Draw,
    ) -> None:
        """Train the discriminator on what the autoencoder gave; its health is a row of the curve `gan`.

        An alarm, once, where the game has been lost by one side.
        """
        if self._game is None or not self._game.active(step):
            return
        fresh = draw._replace(generator=self._session.generator("discriminator", step))
        with self._session.autocast():
            loss, health = self._game.discriminator_loss(images, restored.detach(), fresh)
        norm = self._critic.update(loss)
        if not self._session.looks(step):
            return
        values = {name: float(value) for name, value in health.items()}
        self._session.record(
            "gan", step + 1, self._row | values | {"grad_norm": float(norm or 0.0)}
        )
        trouble = collapse(self._session.curves["gan"])
        if trouble and not self._told and self._session.is_main:
            print(f"{self._session.stage}: WARNING {trouble}", file=sys.stderr)
            self._told = True


def _steady(lr: float) -> Optimizer:
    """AdamW for the heads at a constant rate, without decay or moving average."""
    return Optimizer(
        lr=lr,
        warmup_steps=0,
        schedule="constant",
        beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        ema_decay=0.0,
    )
