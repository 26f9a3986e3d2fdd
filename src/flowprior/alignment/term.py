"""An objective as a term of anyone's loss: any layout of latents, its own randomness, its own flow of the latents."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._compile import (
    _disable_dynamo,  # torch.compiler's own imports the compiler, for a second
)

from flowprior.alignment.fake_flow import FakeFlow, HasFakeFlow, OwnLearner, Trains
from flowprior.alignment.names import OBJECTIVES
from flowprior.alignment.objective import Material, Objective, Sample
from flowprior.core import rng
from flowprior.core.codes import Codes
from flowprior.core.frozen import Frozen
from flowprior.core.ranks import check_equal_rows, gather_rows, num_ranks, rank_share
from flowprior.core.rng import Draw
from flowprior.prior.flow_prior import FlowPrior
from flowprior.prior.layout import tokens

CALLS = "calls"
LOOK = "look"
"""Of the draws of a call that records no gradient."""
FORGOTTEN = 50
"""Calls without `follow` after which a term that needs it says so; accumulated gradients make some."""


def alignment_term(
    prior: FlowPrior,
    name: str = "flow_prior",
    *,
    channel_dim: int | None = None,
    weight: float = 1.0,
    targets: Sample | Tensor | None = None,
    num_draws: int = 4,
    t_max: float = 0.95,
    fake_updates: int = 5,
    fake_lr: float = 1e-3,
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    learner: Callable[[nn.Module], Trains] | None = None,
) -> "AlignmentTerm":
    """The objective of that name, as a term; what `FlowPrior.objective` and the pipeline call.

    Args:
        prior: The frozen prior; asked by flow_prior, likelihood, elbo, sds and dmd.
        name: Of `flowprior.alignment.names.OBJECTIVES`, or a plugin's; a class with a classmethod
            `build(material, **options)`.
        channel_dim: The axis of the latents' channels; by default the last, if no other could be meant.
        weight: Factor on the objective.
        targets: Vectors of the target distribution, [n, d], or what draws them; asked by sliced_w2, mmd and moments.
            By default those that the prior keeps, and where it keeps none, samples of its flow.
        num_draws: Draws of noise and time for each latent, of those that ask the prior.
        t_max: The largest time that likelihood and dmd look at.
        fake_updates: dmd: updates of the latents' own flow at each `follow`.
        fake_lr: dmd: its learning rate.
        options: Of an objective of one's own.
        seed: Of the draws that the term makes itself.
        learner: What trains the latents' own flow; by default the term does.

    Raises:
        ValueError: An unknown name, or a setting that the objective cannot use.
    """
    if not weight >= 0 or weight == float("inf"):
        raise ValueError(f"weight must be a number from 0 up, found {weight}")
    if num_draws < 1 or fake_updates < 1:
        least = min((num_draws, "num_draws"), (fake_updates, "fake_updates"))
        raise ValueError(f"{least[1]} must be at least 1, found {least[0]}")
    if not fake_lr > 0:
        raise ValueError(f"fake_lr must be above 0, found {fake_lr}")
    sample = targets if callable(targets) else _sampler(prior, targets)
    material = Material(prior.velocity, prior.dim, sample, num_draws, t_max)
    objective: Objective = OBJECTIVES.load(name).build(material, **(options or {}))
    fake = None
    if isinstance(objective, HasFakeFlow):
        made = OwnLearner(objective.fake, fake_lr) if learner is None else learner(objective.fake)
        fake = FakeFlow(objective, fake_updates, made)
    return AlignmentTerm(prior, objective, fake, channel_dim=channel_dim, weight=weight, seed=seed)


class AlignmentTerm(Frozen):
    """`weight * objective(latents)`: add it to a loss; made by `FlowPrior.objective`.

    It has nothing that its owner's optimiser could train. Its `state_dict` holds what it needs to go on exactly, the
    number of its calls and, for dmd, the latents' own flow with its optimiser; nothing of the prior. On several ranks
    it is the objective of the global batch: each rank passes as many latents, with equal seeds.

    Args:
        prior: Whose dim the latents have; moved along.
        objective: What pulls.
        fake: The objective's own flow in training, if it has one.
        channel_dim: The axis of the latents' channels; None for the last.
        weight: Factor on the objective.
        seed: Of the draws.
    """

    def __init__(
        self,
        prior: FlowPrior,
        objective: Objective,
        fake: FakeFlow | None,
        *,
        channel_dim: int | None,
        weight: float,
        seed: int,
    ) -> None:
        super().__init__({"prior": prior})
        self.objective = objective
        self.channel_dim = channel_dim
        self.weight = weight
        self.seed = seed
        self._dim = prior.dim
        self._fake = fake
        learner = None if fake is None else fake.learner
        self._own_learner = learner if isinstance(learner, OwnLearner) else None
        self._calls = 0
        self._unfollowed = 0

    def extra_repr(self) -> str:
        """What `print` shows."""
        return (
            f"{type(self.objective).__name__}, weight={self.weight}, channel_dim={self.channel_dim}"
        )

    @_disable_dynamo  # its draws are made by generators, which no compiled graph holds
    def forward(
        self,
        latents: Tensor | Codes,
        *,
        log_variance: Tensor | None = None,
        mean: Tensor | None = None,
        draw: Draw | None = None,
    ) -> Tensor:
        """The weighted objective, a scalar; its gradient reaches the latents only.

        Each call has fresh draws, and each that records no gradient, to look at held-out latents, has the same ones:
        what is looked at can be compared, and training goes on as if nobody had looked.

        Args:
            latents: `[n, d]`, `[b, n, d]`, `[b, d, h, w]` with channel_dim 1, ...; or codes.
            log_variance: Of each latent's Gaussian posterior, in the latents' shape; `kl` reads it.
            mean: Of the posterior; the latents where it is not given.
            draw: Randomness, where the caller has its own.

        Raises:
            ValueError: The latents have another number of channels, their layout could be read in two ways, or there
                are none.
        """
        codes = latents if isinstance(latents, Codes) else self._codes(latents, mean, log_variance)
        training = torch.is_grad_enabled()
        when = (self._calls, "pull") if training else (LOOK,)
        value = self.objective(codes, draw or self._draw(codes, *when))
        if training:
            self._calls += 1
            self._count_unfollowed()
        return self.weight * value

    def follow(
        self, latents: Tensor | Codes, draws: Callable[[int], Draw] | None = None
    ) -> dict[str, Tensor]:
        """Let the objective's own flow follow the latents, once after each step of the optimiser.

        Nothing happens for objectives without one. The latents are those of the step; with gradient accumulation, all
        of its parts' put together.

        Args:
            latents: As in the call; no gradient reaches them.
            draws: Randomness for each update, where the caller has its own.

        Returns:
            `fake_loss`, the flow's loss, for logs; nothing for objectives without one.
        """
        if self._fake is None:
            return {}
        codes = latents if isinstance(latents, Codes) else self._codes(latents, None, None)
        made = draws or (lambda update: self._draw(codes, self._calls, "follow", update))
        loss = self._fake.follow(codes, made)
        self._calls += 1
        self._unfollowed = -1  # from now on nobody needs to be told
        return {"fake_loss": loss}

    def _count_unfollowed(self) -> None:
        """Say once that a flow of the latents that never follows them cannot pull."""
        if self._fake is None or self._unfollowed < 0:
            return
        self._unfollowed += 1
        if self._unfollowed == FORGOTTEN:
            warnings.warn(
                f"{FORGOTTEN} calls of this term, and none of its `follow`: its flow of the latents still is the "
                "prior's, so that nothing pulls; call pull.follow(latents) after optimizer.step()",
                stacklevel=4,
            )

    def _codes(self, latents: Tensor, mean: Tensor | None, log_variance: Tensor | None) -> Codes:
        given = tokens(latents, self._dim, self.channel_dim)
        others = []
        for name, other in (("mean", mean), ("log_variance", log_variance)):
            if other is not None and other.shape != latents.shape:
                raise ValueError(
                    f"{name} is {list(other.shape)}, the latents {list(latents.shape)}: one for each is needed"
                )
            others.append(None if other is None else tokens(other, self._dim, self.channel_dim))
        return Codes(given, given if others[0] is None else others[0], others[1])

    def _draw(self, codes: Codes, *tags: str | int) -> Draw:
        """Randomness from the seed and what tells calls apart, on the latents' device, for the global batch."""
        device = codes.latents.device

        def share(drawn: Tensor, dim: int = 0) -> Tensor:
            return rank_share(drawn, dim).to(device)

        generator = rng.generator_on(device, self.seed, "term", *tags)
        check_equal_rows(codes.latents)
        return Draw(generator, len(codes.latents) * num_ranks(), share, gather_rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.device
        out = super()._apply(fn, recurse)
        if self.device != before and self._own_learner is not None:
            self._own_learner.to(self.device)
        return out

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + CALLS] = torch.tensor(self._calls)
        if self._own_learner is not None:
            for name, tensor in self._own_learner.state().items():
                destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
        state = {
            key[len(prefix) :]: own.pop(key)
            for key in list(own)
            if key[len(prefix) :].startswith(("flow.", "optimizer."))
        }
        if prefix + CALLS not in own:
            missing_keys.append(prefix + CALLS)
        elif bool(state) != (self._own_learner is not None):
            has = "has a flow of the latents" if state else "has no flow of the latents"
            mine = type(self.objective).__name__
            error_msgs.append(
                f"{prefix}: its state {has}, so it is of another objective than {mine}"
            )
        else:
            self._calls = int(own[prefix + CALLS])
            if self._own_learner is not None:
                try:
                    self._own_learner.load(state)
                except (RuntimeError, ValueError, KeyError) as error:
                    error_msgs.append(f"{prefix}flow: {error}")
        own.pop(prefix + CALLS, None)
        super()._load_from_state_dict(
            own, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _sampler(prior: FlowPrior, targets: Tensor | None) -> Sample:
    """What draws target vectors: from those given, those that the prior keeps, or its flow."""
    if targets is not None and (
        targets.ndim != 2 or targets.shape[1] != prior.dim or not len(targets)
    ):
        raise ValueError(f"targets must be [n, {prior.dim}], found {list(targets.shape)}")
    kept = prior.targets if targets is None else targets.detach()
    return prior.sample if kept is None else _Drawn(kept)


class _Drawn:
    """Draws rows of targets [n, d], with replacement; a class, since functions inside functions cannot be pickled."""

    def __init__(self, targets: Tensor) -> None:
        self._targets = targets

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        """So many rows."""
        size = len(self._targets)
        rows = torch.randint(size, (n,), generator=generator, device=generator.device)
        return self._targets[rows.to(self._targets.device)]
