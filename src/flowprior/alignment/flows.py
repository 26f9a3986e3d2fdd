"""Objectives that ask a velocity: the frozen flow of the targets, and for `dmd` a second one of the latents.

All are means over dims, so that one `align.weight` means about the same pull for each.
"""

from copy import deepcopy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from flowprior.alignment.objective import Material
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.rng import Draw
from flowprior.flow.likelihood import importance_times
from flowprior.flow.losses import Velocity, alignment_loss, flow_matching_loss
from flowprior.flow.path import conditional_velocity, interpolate, stratified_times


class FlowObjective:
    """What all of them share: k draws of noise and time, and points on the paths to the latents.

    The tokens of an image share each draw's time, stratified over images and draws.

    Args:
        velocity: The frozen flow of the targets.
        dim: Channels d that it models.
        num_draws: Draws of noise and time for each latent.
    """

    def __init__(self, velocity: Velocity, dim: int, num_draws: int) -> None:
        self.velocity = velocity
        self.dim = dim
        self.num_draws = num_draws

    @classmethod
    def build(cls, material: Material) -> "FlowObjective":
        """Takes the flow and the number of draws."""
        return cls(material.velocity, material.dim, material.num_draws)

    def _draws(
        self, latents: Float[Tensor, "b n d"], draw: Draw, k: int | None = None
    ) -> tuple[Float[Tensor, "k b n d"], Float[Tensor, "k b n d"], Float[Tensor, "k b 1"]]:
        """Latents, noise and U(0, 1) draws that times are made of."""
        latents = latents.float()
        if latents.shape[-1] != self.dim:
            raise ValueError(
                f"latents have {latents.shape[-1]} channels, the flow prior models {self.dim}; "
                "run `dvc repro train_flow` after changing project.dim"
            )
        k, rows = k or self.num_draws, draw.batch
        like = torch.empty((), dtype=torch.float32, device=draw.generator.device)
        uniform = stratified_times(k * rows, like, draw.generator).view(k, rows, 1)
        noise = rng.normal((k, rows, *latents.shape[1:]), like, draw.generator)
        return latents.expand(k, *latents.shape), draw.share(noise, 1), draw.share(uniform, 1)


class FlowAlignment(FlowObjective):
    """The paper's alignment loss, Eq. (5), arXiv:2506.05240."""

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        return alignment_loss(self.velocity, *self._draws(codes.latents, draw)).mean()


class WeightedAlignment(FlowObjective):
    """The alignment loss with w(t) = t / (1 - t): for a perfect flow the negative log-density, per dim, + const.

    Kong et al., arXiv:2302.03792. Times are importance-sampled up to t_max; the likelihood is that
    of the latents blurred by the noise left there.

    Args:
        velocity: The frozen flow of the targets.
        dim: Channels d that it models.
        num_draws: Draws of noise and time for each latent.
        t_max: In (0, 1), where the weight diverges.
    """

    def __init__(self, velocity: Velocity, dim: int, num_draws: int, t_max: float) -> None:
        super().__init__(velocity, dim, num_draws)
        importance_times(torch.empty(0), t_max)  # an error now, not at the first step
        self.t_max = t_max

    @classmethod
    def build(cls, material: Material) -> "WeightedAlignment":
        """Takes the flow, the number of draws and the largest time."""
        return cls(material.velocity, material.dim, material.num_draws, material.t_max)

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents, noise, uniform = self._draws(codes.latents, draw)
        t, weights = importance_times(uniform, self.t_max)
        return (weights * alignment_loss(self.velocity, latents, noise, t)).mean()


class EvidenceBound(FlowObjective):
    """L(y) - C(y), per dim: the negative of what Proposition 1 bounds the log-density with; Eq. (6), arXiv:2506.05240.

    C(y) = -E tr dv/dx by one Rademacher probe a draw (Hutchinson); its gradient is of second order.
    """

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents, noise, t = self._draws(codes.latents, draw)
        shape = (*noise.shape[:1], draw.batch, *noise.shape[2:])
        device = draw.generator.device
        probe = torch.randint(2, shape, generator=draw.generator, device=device)
        signs = draw.share(probe.to(noise.dtype) * 2 - 1, 1)
        x_t = interpolate(noise, latents, t)
        if not x_t.requires_grad:
            x_t = x_t.requires_grad_()
        with torch.enable_grad():
            v = self.velocity(x_t, t).float()
            (vjp,) = torch.autograd.grad(v, x_t, signs, create_graph=True)
        error = (v - conditional_velocity(noise, latents)).square()
        return (error + vjp * signs).mean()


class ScoreDistillation(FlowObjective):
    """The alignment loss with the velocity held constant: the gradient does not pass through the network."""

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        latents, noise, t = self._draws(codes.latents, draw)
        with torch.no_grad():
            v = self.velocity(interpolate(noise, latents, t), t).float()
        return (v - conditional_velocity(noise, latents)).square().mean()


class DistributionMatching(FlowObjective):
    """Distribution matching distillation: latents move along v_fake - v_real, zero where both distributions agree.

    Yin et al., arXiv:2311.18828, written for velocities: the fake flow models the latents as they
    are, and the difference of both at (x_t, t) is proportional to the difference of their scores,
    the gradient of KL(latents || targets) at time t. Their normalisation, the mean error of the
    real flow's guess, is taken over the batch; the factor 1 - t of both cancels.

    The fake flow starts as a copy of the real one and is trained by the caller on `fake_loss`,
    several updates for one of the latents.

    Args:
        velocity: The frozen flow of the targets.
        dim: Channels d that it models.
        num_draws: Draws of noise and time for each latent.
        t_max: Times are drawn from (1 - t_max, t_max): at the ends a network knows least.

    Attributes:
        fake: The flow of the latents.

    Raises:
        ValueError: `t_max` does not lie between 0.5 and 1.
    """

    def __init__(self, velocity: nn.Module, dim: int, num_draws: int, t_max: float) -> None:
        super().__init__(velocity, dim, num_draws)
        if not 0.5 < t_max < 1:
            raise ValueError(f"t_max must lie between 0.5 and 1 for dmd, found {t_max}")
        self.t_max = t_max
        self.fake = deepcopy(velocity).requires_grad_(True)

    @classmethod
    def build(cls, material: Material) -> "DistributionMatching":
        """Takes the flow, the number of draws and the largest time."""
        return cls(material.velocity, material.dim, material.num_draws, material.t_max)

    def __call__(self, codes: Codes, draw: Draw) -> Tensor:
        """Half the squared step that the gradient asks for, mean over vectors and dims."""
        latents, noise, uniform = self._draws(codes.latents, draw)
        t = 1 - self.t_max + (2 * self.t_max - 1) * uniform
        with torch.no_grad():
            x_t = interpolate(noise, latents, t)
            real, fake = self.velocity(x_t, t).float(), self.fake(x_t, t).float()
            error = (conditional_velocity(noise, latents) - real).abs().mean()
            error = draw.gather(error[None]).mean()
            wanted: Tensor = codes.latents.float() - ((fake - real) / error).mean(0)
        return 0.5 * (codes.latents.float() - wanted).square().mean()

    def fake_loss(self, velocity: Velocity, codes: Codes, draw: Draw) -> Tensor:
        """Flow matching loss of the latents as they are, one draw each; Eq. (3), arXiv:2506.05240.

        Args:
            velocity: The fake flow, as prepared for the launch.
            codes: Their latents; no gradient reaches them.
            draw: Fresh randomness.
        """
        return flow_matching_loss(velocity, *self._draws(codes.latents.detach(), draw, k=1)).mean()
