"""MAR: masked autoregression over continuous tokens with a flow head; Li et al. 2024, App. C.4 of arXiv:2506.05240.

Tokens are revealed in a random order. A transformer encodes the visible ones, a second one fills in
mask tokens, and its output at a masked place conditions a small flow that draws the token.
"""

import math
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.ode import Solver, integrate
from flowprior.flow.sde import integrate_sde
from flowprior.flow.velocity import VelocityMLP

GuidanceSchedule = Literal["linear", "constant"]
Decay = Literal["matrices", "linear", "authors"]
"""Which parameters are decayed; see `MAR.undecayed`."""


class MARShape(NamedTuple):
    """Sizes of a MAR.

    Attributes:
        num_tokens: Tokens n of a sequence.
        dim: Channels d of a token.
        num_classes: Classes; one more row of the table stands for "no class".
        width: Of both transformers.
        encoder_depth: Blocks over the visible tokens.
        decoder_depth: Blocks over all tokens.
        num_heads: Attention heads.
        num_buffer: Copies of the class embedding in front of the tokens.
        head_width: Hidden width of the flow head.
        head_depth: Its residual blocks.
        dropout: In attention and MLP of the transformers.
    """

    num_tokens: int
    dim: int
    num_classes: int
    width: int
    encoder_depth: int
    decoder_depth: int
    num_heads: int
    num_buffer: int
    head_width: int
    head_depth: int
    dropout: float


class MAR(nn.Module):
    """See the module.

    A sequence's `orders` [b, n] is a permutation of its places; with `num_masked` m, the places
    `orders[:, :m]` are masked and the others visible, equally many in every sequence of a batch.
    Sampling reveals places from the end of `orders` to its beginning.

    Args:
        shape: Its sizes.
    """

    def __init__(self, shape: MARShape) -> None:
        super().__init__()
        self.shape = shape
        w, length = shape.width, shape.num_buffer + shape.num_tokens
        self.class_table = nn.Embedding(shape.num_classes + 1, w)
        self.input = nn.Linear(shape.dim, w)
        self.encoder_positions = nn.Parameter(torch.zeros(1, length, w))
        self.encoder_input_norm = nn.LayerNorm(w, eps=1e-6)
        self.encoder = _transformer(shape, shape.encoder_depth)
        self.encoder_norm = nn.LayerNorm(w, eps=1e-6)
        self.decoder_input = nn.Linear(w, w)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, w))
        self.decoder_positions = nn.Parameter(torch.zeros(1, length, w))
        self.decoder = _transformer(shape, shape.decoder_depth)
        self.decoder_norm = nn.LayerNorm(w, eps=1e-6)
        self.head_positions = nn.Parameter(torch.zeros(1, shape.num_tokens, w))
        self._initialise()
        self.head = VelocityMLP(shape.dim, shape.head_width, shape.head_depth, condition_dim=w)

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        places = [self.encoder_positions, self.decoder_positions, self.head_positions]
        for parameter in [*places, self.mask_token, self.class_table.weight]:
            nn.init.normal_(parameter, std=0.02)

    @property
    def no_class(self) -> int:
        """The label that stands for "no class"."""
        return self.shape.num_classes

    def undecayed(self, decay: Decay) -> tuple[str, ...]:
        """Names for `optim.adamw`: of what has two dims or more and is yet not decayed.

        Args:
            decay: `matrices`: nothing. `linear`: class table, mask token and positions, so that the
                decay falls on the linear maps alone. `authors`: the head, as in the authors' code;
                class table, mask token and positions are decayed there.
        """
        if decay == "linear":
            return (
                "class_table",
                "mask_token",
                "encoder_positions",
                "decoder_positions",
                "head_positions",
            )
        return ("head",) if decay == "authors" else ()

    def conditions(
        self,
        tokens: Float[Tensor, "b n d"],
        labels: Int[Tensor, " b"],
        orders: Int[Tensor, "b n"],
        num_masked: int,
    ) -> Float[Tensor, "b n w"]:
        """What the visible tokens say of every place; the values of masked tokens are not looked at."""
        buffer_length = self.shape.num_buffer
        visible = orders[:, num_masked:]
        buffer = self.class_table(labels).unsqueeze(1).expand(-1, buffer_length, -1)
        places = self.encoder_positions[:, buffer_length:].expand(len(tokens), -1, -1)
        seen = self.input(_gather(tokens, visible)) + _gather(places, visible)
        h = torch.cat([buffer + self.encoder_positions[:, :buffer_length], seen], dim=1)
        h = self.encoder_norm(self.encoder(self.encoder_input_norm(h)))
        h = self.decoder_input(h)
        filled = self.mask_token.to(h.dtype).expand(len(tokens), self.shape.num_tokens, -1)
        filled = filled.scatter(1, _spread(visible, h), h[:, buffer_length:])
        h = torch.cat([h[:, :buffer_length], filled], dim=1) + self.decoder_positions
        h = self.decoder_norm(self.decoder(h))
        out: Tensor = h[:, buffer_length:] + self.head_positions
        return out

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        labels: Int[Tensor, " b"],
        orders: Int[Tensor, "b n"],
        num_masked: int,
        noise: Float[Tensor, "k b m d"],
        t: Float[Tensor, "k b m"],
    ) -> Float[Tensor, ""]:
        """Flow matching loss of the masked tokens given the visible ones, a mean over tokens, dims and draws.

        Args:
            tokens: Normalised latents.
            labels: Classes; `no_class` where the class is dropped.
            orders: Permutations of the places.
            num_masked: m, at least 1.
            noise: N(0, I), k draws for every masked token.
            t: U(0, 1), likewise.
        """
        masked = orders[:, :num_masked]
        condition = _gather(self.conditions(tokens, labels, orders, num_masked), masked)
        data = _gather(tokens, masked).expand_as(noise)
        return flow_matching_loss(
            partial(self.head, condition=condition[None]), data, noise, t
        ).mean()

    @torch.no_grad()
    def sample(
        self,
        labels: Int[Tensor, " b"],
        generator: torch.Generator,
        *,
        num_iterations: int,
        head_steps: int,
        final_head_steps: int | None = None,
        solver: Solver = "euler",
        churn: float | int = 0.0,
        guidance_scale: float = 1.0,
        guidance_schedule: GuidanceSchedule = "linear",
        guidance_interval: tuple[float | int, float | int] = (0.0, 1.0),
        temperature: float | int = 1.0,
    ) -> Float[Tensor, "b n d"]:
        """Draw sequences, places in random order, ever more at a time (cosine schedule).

        Args:
            labels: Classes.
            generator: Draws orders and noise.
            num_iterations: Passes of the transformer; n of them reveal one token each.
            head_steps: Steps of the head's ODE or SDE for each token; with `final_head_steps`, in
                the first iteration.
            final_head_steps: Steps in the last iteration, see `head_schedule`; None for as many as
                in the first.
            solver: `euler` or `heun`.
            churn: Of the SDE with the ODE's marginals, see `integrate_sde`; 0 is the ODE.
            guidance_scale: s in v(no class) + s (v(class) - v(no class)); 1 is no guidance and
                costs half.
            guidance_schedule: `linear` grows from 1 with the share of revealed tokens, `constant`
                does not.
            guidance_interval: Times of the head, [low, high), 0 noise and 1 data; a step that
                starts outside is not guided and costs half (arXiv:2404.07724).
            temperature: Factor on all noise of the head: the start's, and the SDE's.

        Raises:
            ValueError: Numbers of iterations or steps, churn, interval or temperature out of range,
                or churn with another solver than `euler`.
        """
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, found {temperature}")
        if churn and solver != "euler":
            raise ValueError(f"churn {churn} needs the solver 'euler', found {solver!r}")
        b, n = len(labels), self.shape.num_tokens
        like = self.encoder_positions
        order_noise = rng.uniform((b, n), like, generator)
        orders = order_noise.argsort(dim=-1)
        tokens = torch.zeros(b, n, self.shape.dim, dtype=like.dtype, device=like.device)
        guided = guidance_scale != 1.0
        context = torch.cat([labels, torch.full_like(labels, self.no_class)]) if guided else labels
        num_masked = n
        steps_of = head_schedule(head_steps, final_head_steps, num_iterations)
        for left, steps in zip(mask_schedule(n, num_iterations), steps_of, strict=True):
            spans = guided_spans(steps, guidance_interval) if guided else [Span(0, steps, False)]
            repeat = 2 if any(span.guided for span in spans) else 1
            conditions = self.conditions(
                tokens.repeat(repeat, 1, 1),
                context[: repeat * b],
                orders.repeat(repeat, 1),
                num_masked,
            )
            new = orders[:, left:num_masked]
            condition = _gather(conditions, new.repeat(repeat, 1))
            scale = guidance_scale
            if guidance_schedule == "linear":
                scale = 1 + (guidance_scale - 1) * (n - left) / n
            noise = temperature * rng.normal(
                (b, num_masked - left, self.shape.dim), like, generator
            )
            drawn = noise
            for span in spans:
                field = self._field(condition if span.guided else condition[:b], scale, span.guided)
                count, start, end = span.last - span.first, span.first / steps, span.last / steps
                if churn:
                    drawn = integrate_sde(
                        field, drawn, count, generator, churn, temperature, start, end
                    )
                else:
                    drawn = integrate(field, drawn, count, solver, start, end)
            tokens.scatter_(1, _spread(new, drawn), drawn.to(tokens.dtype))
            num_masked = left
        return tokens

    def _field(self, condition: Tensor, scale: float, guided: bool) -> "partial[Tensor] | _Guided":
        if not guided:
            return partial(self.head, condition=condition)
        return _Guided(self.head, condition, scale)


class _Guided:
    """The head's velocity with guidance; both halves of the batch in one pass."""

    def __init__(self, head: nn.Module, condition: Tensor, scale: float) -> None:
        self.head = head
        self.condition = condition
        self.scale = scale

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        with_class, without = self.head(x.repeat(2, 1, 1), t, self.condition).chunk(2)
        guided: Tensor = without + self.scale * (with_class - without)
        return guided


def mask_schedule(num_tokens: int, num_iterations: int) -> list[int]:
    """Masked tokens left after each iteration, by the cosine schedule; each reveals one or more, the last all.

    Raises:
        ValueError: More iterations than tokens, or none.
    """
    if not 1 <= num_iterations <= num_tokens:
        raise ValueError(
            f"num_iterations must lie between 1 and the {num_tokens} tokens, found {num_iterations}"
        )
    left, now = [], num_tokens
    for k in range(1, num_iterations + 1):
        wanted = math.floor(num_tokens * math.cos(math.pi / 2 * k / num_iterations))
        now = max(num_iterations - k, min(now - 1, wanted))
        left.append(now)
    return left


def head_schedule(first: int, final: int | None, num_iterations: int) -> list[int]:
    """Steps of the head in each iteration: from `first` to `final` in a straight line, rounded.

    Late tokens are nearly determined by those before them and need fewer steps; diffusion step
    annealing, arXiv:2505.20297.

    Args:
        first: In the first iteration (in the only one, where there is one).
        final: In the last; None for `first` throughout.
        num_iterations: Iterations.

    Raises:
        ValueError: Steps that are not positive, or that grow.
    """
    final = first if final is None else final
    if not 1 <= final <= first:
        raise ValueError(
            f"final_head_steps must lie between 1 and head_steps ({first}), found {final}: "
            "late iterations need fewer steps, not more"
        )
    last = max(1, num_iterations - 1)
    return [round(first + (final - first) * k / last) for k in range(num_iterations)]


class Span(NamedTuple):
    """Steps first .. last - 1 of the head, all guided or none."""

    first: int
    last: int
    guided: bool


def guided_spans(num_steps: int, interval: tuple[float | int, float | int]) -> list[Span]:
    """The steps of the head in runs; those are guided whose start k / num_steps lies in [low, high).

    Raises:
        ValueError: Not 0 <= low < high <= 1.
    """
    low, high = interval
    if not 0 <= low < high <= 1:
        raise ValueError(
            f"guidance_interval must be two times with 0 <= low < high <= 1, found {low} and {high}; "
            "for no guidance set guidance_scale to 1"
        )
    spans = []
    for guided, run in groupby(range(num_steps), lambda k: low <= k / num_steps < high):
        steps = list(run)
        spans.append(Span(steps[0], steps[-1] + 1, guided))
    return spans


def draw_orders(b: int, n: int, generator: torch.Generator) -> Int[Tensor, "b n"]:
    """Independent uniform permutations of 0 .. n-1."""
    return torch.rand(b, n, generator=generator).argsort(dim=-1)


def draw_num_masked(n: int, generator: torch.Generator, low: float = 0.7, std: float = 0.25) -> int:
    """How many of n tokens to mask: ceil(n r), r ~ N(1, std^2) truncated to [low, 1]; one draw for a batch.

    Raises:
        ValueError: `low` is outside [0, 1], or `std` is not positive.
    """
    if not 0 <= low <= 1:
        raise ValueError(f"the least ratio of masked tokens must lie in [0, 1], found {low}")
    if std <= 0:
        raise ValueError(f"the std of the ratio of masked tokens must be positive, found {std}")
    cdf_low = 0.5 * (1 + math.erf((low - 1) / std / math.sqrt(2)))
    u = cdf_low + (0.5 - cdf_low) * torch.rand((), generator=generator, dtype=torch.float64)
    ratio = 1 + std * float(torch.special.ndtri(u))
    return max(1, math.ceil(n * min(1.0, ratio)))


class MaskedBatch(NamedTuple):
    """The arguments of `MAR.forward`.

    Attributes:
        tokens: [b, n, d].
        labels: [b].
        orders: [b, n].
        num_masked: m.
        noise: [k, b, m, d].
        t: [k, b, m].
    """

    tokens: Tensor
    labels: Tensor
    orders: Tensor
    num_masked: int
    noise: Tensor
    t: Tensor


def draw_masking(
    tokens: Float[Tensor, "b n d"],
    labels: Int[Tensor, " b"],
    num_draws: int,
    generator: torch.Generator,
    ratio_low: float = 0.7,
    ratio_std: float = 0.25,
) -> MaskedBatch:
    """Draw what is masked, and k = `num_draws` of noise and time for each masked token.

    The defaults of the ratio are those of MAR, arXiv:2406.11838, and of the authors; see
    `draw_num_masked`.
    """
    b, n, d = tokens.shape
    m = draw_num_masked(n, generator, ratio_low, ratio_std)
    orders = draw_orders(b, n, generator)
    noise = torch.randn(num_draws, b, m, d, generator=generator)
    t = torch.rand(num_draws, b, m, generator=generator)
    return MaskedBatch(tokens, labels, orders, m, noise, t)


def _transformer(shape: MARShape, depth: int) -> nn.Sequential:
    return nn.Sequential(
        *(
            Block(
                shape.width,
                shape.num_heads,
                qkv_bias=True,
                qk_norm=True,
                proj_drop=shape.dropout,
                attn_drop=shape.dropout,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),
            )
            for _ in range(depth)
        )
    )


def _spread(index: Tensor, like: Tensor) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, like.shape[-1])


def _gather(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, _spread(index, x))
