"""Labels in, images out: what the stages `train_mar` and `train_ae` left, put to use."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from flowprior.autoencoder.registry import ImageAutoencoder, autoencoder_from
from flowprior.core.trained import load_trained
from flowprior.flow.ode import Solver
from flowprior.generators.protocol import Generator, GuidanceSchedule
from flowprior.generators.registry import generator_from
from flowprior.images.pixels import to_uint8

PARTS = "autoencoder", "mar"
"""Folders of the two artifacts, beside one another."""
AUTOENCODER = "autoencoder", "the stage `train_ae`"
GENERATOR = "generator", "the stage `train_mar`"
"""Their kinds, and what makes them."""


class Sampler:
    """A generator's tokens, scaled back and decoded.

    Attributes:
        inputs: Digests of the two artifacts.
        images: Digests of the images that the autoencoder was trained on (`images`) and looked at (`held_out_images`).
        num_classes: Labels are 0 .. num_classes - 1.
        class_names: What they are called.
        num_tokens: Tokens of an image; no more iterations than these.

    Args:
        data: The folder with `autoencoder` and `mar`.
        device: Where to compute.
        precision: `fp32`, or `bf16` autocast.
        compile: Whether the generator runs through `torch.compile`.
    """

    def __init__(
        self,
        data: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> None:
        where = [data / part for part in PARTS]
        autoencoder = load_trained(where[0], *AUTOENCODER)
        generator = load_trained(where[1], *GENERATOR)
        self.inputs = {"autoencoder": autoencoder.digest, "generator": generator.digest}
        self.images = {
            name: value for name, value in autoencoder.inputs.items() if name.endswith("images")
        }
        self.num_classes = int(generator.config["latents"]["num_classes"])
        numbers = map(str, range(self.num_classes))
        self.class_names = tuple(generator.config.get("class_names") or numbers)
        self.num_tokens = int(generator.config["latents"]["num_tokens"])
        self._device = device
        self._precision = precision
        self._autoencoder: ImageAutoencoder = autoencoder.build(autoencoder_from, where[0]).to(
            device
        )
        trained: Generator = generator.build(generator_from, where[1]).to(device)
        self._generator = trained.ready_to_sample(precision, compile)
        self._mean = torch.tensor(generator.config["latents_mean"], device=device)
        self._std = float(generator.config["latents_std"])

    @torch.no_grad()
    def __call__(
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
    ) -> UInt8[Tensor, "b c h w"]:
        """Images, one for each label; equal generators draw equal noise at every scale.

        See `flowprior.mar.model.MAR.sample`.
        """
        bf16 = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            tokens = self._generator.sample(
                labels.to(self._device),
                generator,
                num_iterations=num_iterations,
                head_steps=head_steps,
                final_head_steps=final_head_steps,
                solver=solver,
                churn=churn,
                guidance_scale=guidance_scale,
                guidance_schedule=guidance_schedule,
                guidance_interval=guidance_interval,
                temperature=temperature,
            )
            images = self._autoencoder.decode(tokens * self._std + self._mean)
        return to_uint8(images.float())
