"""MAR in one module: masked autoregression with a flow head; Li et al. 2024, App. C.4 of arXiv:2506.05240.

Tokens are revealed in a random order. A transformer encodes the visible ones, a second one fills in
mask tokens, and its output at a masked place conditions a small flow that draws the token.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.cuda_graphs import Replayed
from flowprior.flow.losses import flow_matching_loss
from flowprior.flow.ode import Solver, integrate
from flowprior.flow.sde import integrate_sde
from flowprior.flow.velocity import VelocityMLP
from flowprior.generators.protocol import GuidanceSchedule, LatentShape
from flowprior.mar.config import TrainMAR
from flowprior.mar.guidance import GuidedHead
from flowprior.mar.masking import MaskedBatch, draw_masking
from flowprior.mar.schedules import Span, guided_spans, head_schedule, mask_schedule
from flowprior.mar.shape import Decay, MARShape, Masking


class MAR(nn.Module):
    """A masked autoregressive generator of latents whose head is a flow; Li et al. 2024, App. C.4 of arXiv:2506.05240.

    A sequence's `orders` [b, n] is a permutation of its places; with `num_masked` m, the places
    `orders[:, :m]` are masked and the others visible, equally many in every sequence of a batch.
    Sampling reveals places from the end of `orders` to its beginning.

    Args:
        shape: Its sizes.
        masking: What it is trained on.
    """

    def __init__(self, shape: MARShape, masking: Masking | None = None) -> None:
        super().__init__()
        self.shape = shape
        self.masking = masking or Masking()
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

    @classmethod
    def build(cls, latents: LatentShape, settings: TrainMAR) -> "MAR":
        """A MAR for these latents, with the sizes and masks of the section `train_mar`."""
        sizes = {name: getattr(settings, name) for name in MARShape._fields[3:]}
        masking = Masking(settings.head_draws, settings.mask_ratio_low, settings.mask_ratio_std)
        return cls(MARShape(*latents, **sizes), masking)

    @property
    def config(self) -> dict[str, Any]:
        """What `from_config` builds it from."""
        return {"shape": self.shape._asdict()}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "MAR":
        """A MAR of the sizes that a config gives; its weights are still to be loaded."""
        return cls(MARShape(**config["shape"]))

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

    def draw_batch(
        self,
        tokens: Float[Tensor, "b n d"],
        labels: Int[Tensor, " b"],
        generator: torch.Generator,
        num_draws: int | None = None,
    ) -> MaskedBatch:
        """All that a training step draws but dropout; `num_draws` other than the masking's, if given."""
        masking = self.masking
        draws = masking.num_draws if num_draws is None else num_draws
        return draw_masking(tokens, labels, draws, generator, masking.ratio_low, masking.ratio_std)

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

    def ready_to_sample(self, precision: Literal["fp32", "bf16"], compile: bool = False) -> "MAR":
        """Make a trained model sample sooner, in place, and the same tokens; its parameters are frozen.

        On a GPU the head's steps are replayed as CUDA graphs (see `Replayed`).

        Args:
            precision: With `bf16` the weights of linear maps are cast once, not by autocast at every call; sampling
                still has to run under autocast.
            compile: Whether its blocks and head run through `torch.compile`, which takes some seconds at first
                calls and adds up in another order.
        """
        if precision == "bf16":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.to(torch.bfloat16)
        if compile:
            for block in [*self.encoder, *self.decoder, self.head]:
                block.compile()
        self.set_submodule("head", Replayed(self.head))
        return self

    def _field(
        self, condition: Tensor, scale: float, guided: bool
    ) -> "partial[Tensor] | GuidedHead":
        if not guided:
            return partial(self.head, condition=condition)
        return GuidedHead(self.head, condition, scale)


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
