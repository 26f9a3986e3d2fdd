"""The adversarial game: hinge losses, LeCam, consistency, and one object that composes them for a loop.

discriminator = session.learner("discriminator", heads, optimizer)
gan = Adversary(features, heads, weights, start_step, train=discriminator.module, reduce=mean_over_ranks)
...
if gan.active(step):
    adversarial, _ = gan.generator_loss(restored, draw)
    loss = loss + adversarial
autoencoder.update(loss)
if gan.active(step):
    loss, health = gan.discriminator_loss(images, restored, draw)
    discriminator.update(loss)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from flowprior.core.rng import Draw
from flowprior.reconstruction.augment import STRONG, WEAK, Policy, augment, draw_augmentation
from flowprior.reconstruction.discriminator import Discriminator, FrozenFeatures

HEALTH = ("logit_real", "logit_fake", "accuracy_real", "accuracy_fake", "hinge")
"""Names of the discriminator's health: mean logits, shares judged rightly, hinge loss."""


class Weights(NamedTuple):
    """Factors of the adversarial game; the defaults are those of the authors' code.

    Attributes:
        adversarial: On the hinge losses.
        lecam: On the regulariser, times `adversarial`.
        consistency: On the agreement of weakly and strongly augmented images.
    """

    adversarial: float = 0.2
    lecam: float = 0.001
    consistency: float = 4.0


def generator_hinge(fake: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Minus the mean logit."""
    return -fake.mean()


def discriminator_hinge(
    real: Float[Tensor, "b m"], fake: Float[Tensor, "b m"]
) -> Float[Tensor, ""]:
    """Mean over both of how far logits fall short of +1 (real) and -1 (fake)."""
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


def lecam(
    real: Float[Tensor, "b m"],
    fake: Float[Tensor, "b m"],
    average_real: Float[Tensor, ""],
    average_fake: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """Squared distance of real logits above the average fake one, and of fake ones below the average real one.

    The regulariser of arXiv:2104.03310, one-sided as its authors and those of this paper compute it.
    """
    above, below = F.relu(real - average_fake), F.relu(average_real - fake)
    return above.square().mean() + below.square().mean()


def consistency(weak: Float[Tensor, "b m"], strong: Float[Tensor, "b m"]) -> Float[Tensor, ""]:
    """Mean squared difference of the logits of two views of the same images."""
    return (strong - weak).square().mean()


class Adversary:
    """One term for the generator, one loss for the discriminator; see the module for a loop.

    Args:
        features: On the device of the images.
        discriminator: The heads.
        weights: Of the terms; a term of weight 0 is not computed.
        start_step: First step of the game.
        train: The heads as prepared for the launch; None for the heads themselves.
        reduce: Mean over ranks of a tensor; None on one rank.
    """

    def __init__(
        self,
        features: FrozenFeatures,
        discriminator: Discriminator,
        weights: Weights,
        start_step: int,
        *,
        train: Callable[[Tensor], Tensor] | None = None,
        reduce: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._features = features
        self._discriminator = discriminator
        self._train = train or discriminator
        self._reduce = reduce or (lambda values: values)
        self.weights = weights
        self.start_step = start_step

    def active(self, step: int) -> bool:
        """Whether there is anything to compute at this step."""
        return self.weights.adversarial > 0 and step >= self.start_step

    def generator_loss(
        self, restored: Float[Tensor, "b 3 H W"], draw: Draw
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted term for the generator, and its unweighted value; the heads get no gradient."""
        # Detached parameters: no gradients that nobody uses, and under DDP no reduction of them.
        fixed = {name: p.detach() for name, p in self._discriminator.named_parameters()}
        seen = self._see(WEAK, draw, restored)
        logits: Tensor = functional_call(self._discriminator, fixed, (seen,))
        loss = generator_hinge(logits.float())
        return self.weights.adversarial * loss, {"generator_hinge": loss.detach()}

    def discriminator_loss(
        self,
        images: Float[Tensor, "b 3 H W"],
        restored: Float[Tensor, "b 3 H W"],
        draw: Draw,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The discriminator's loss, and its health over all ranks (see `HEALTH`); the images get no gradient."""
        weights, b = self.weights, len(images)
        policies = [WEAK, STRONG] if weights.consistency else [WEAK]
        with torch.no_grad():
            seen = torch.cat([self._see(policy, draw, images, restored) for policy in policies])
        logits = self._train(seen).float()  # one forward, as DDP wants it
        real, fake = logits[:b], logits[b : 2 * b]
        hinge = discriminator_hinge(real, fake)
        health = self._health(real.detach(), fake.detach(), hinge.detach())
        loss = hinge
        if weights.lecam:
            averages = self._discriminator.averages
            averages.update(health["logit_real"], health["logit_fake"])
            loss = loss + weights.lecam * lecam(real, fake, averages.real, averages.fake)
        loss = weights.adversarial * loss
        if weights.consistency:
            loss = loss + weights.consistency * consistency(logits[: 2 * b], logits[2 * b :])
        return loss, health

    def _see(self, policy: Policy, draw: Draw, *batches: Tensor) -> Tensor:
        """Features of batches that are augmented and cropped alike.

        An image and its reconstruction share their draws: each loss has the same expectation, with less noise.
        """
        augmentation = draw_augmentation(policy, draw)
        views = torch.cat([augment(batch, augmentation) for batch in batches])
        seen: Tensor = self._features(views, draw.generator)
        return seen

    def _health(self, real: Tensor, fake: Tensor, hinge: Tensor) -> dict[str, Tensor]:
        right = (real > 0).float().mean(), (fake < 0).float().mean()
        values = self._reduce(torch.stack([real.mean(), fake.mean(), *right, hinge]))
        return dict(zip(HEALTH, values.unbind(), strict=True))


def gradient_ratio(
    reconstruction: Float[Tensor, ""], adversarial: Float[Tensor, ""], parameter: Tensor
) -> Float[Tensor, ""]:
    """How hard the adversarial term pulls at a parameter (the last layer's) beside the reconstruction's.

    The ratio of gradient norms, of losses as they are weighted; infinite where the reconstruction
    does not pull. It costs a backward pass through the discriminator: for a log, not for each step.
    """
    pull, other = (
        torch.autograd.grad(loss, parameter, retain_graph=True)[0].float().norm()
        for loss in (adversarial, reconstruction)
    )
    ratio: Tensor = pull / other
    return ratio


def collapse(rows: Sequence[Mapping[str, float | int]], looks: int = 5) -> str | None:
    """What has gone wrong with the game over the last `looks` rows of health, in words; else None."""
    last = rows[-looks:]
    if len(last) < looks:
        return None
    if all(
        min(row["accuracy_real"], row["accuracy_fake"]) > 0.99 and row["hinge"] < 0.05
        for row in last
    ):
        return (
            f"the discriminator has won: for {looks} looks it has told real from restored images without fail "
            f"(hinge loss {last[-1]['hinge']:.2g}), and what it teaches fades. Lower its learning rate, "
            "raise the weight of LeCam or of consistency, or start it later"
        )
    if all(row["logit_real"] - row["logit_fake"] < 0.02 for row in last):
        return (
            f"the discriminator is dead: for {looks} looks its mean logits of real and restored images have been "
            f"{last[-1]['logit_real']:.3g} and {last[-1]['logit_fake']:.3g}, so it teaches nothing. Raise its "
            "learning rate, lower the weight of LeCam or of consistency, or look at the images that it gets"
        )
    return None
