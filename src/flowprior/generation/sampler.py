"""Labels in, images out: what the stages `train_mar` and `train_ae` left, put to use."""

from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Int, UInt8
from torch import Tensor, nn

from flowprior.autoencoder.vit import Autoencoder, autoencoder_from
from flowprior.core.trained import load_trained
from flowprior.evaluation.reconstruction import to_uint8
from flowprior.flow.ode import Solver
from flowprior.generation.cuda_graphs import Replayed
from flowprior.mar.model import MAR, GuidanceSchedule, MARShape


class Sampler:
    """MAR's tokens, scaled back and decoded.

    Attributes:
        inputs: Digests of the two artifacts.
        images: Digests of the images that the autoencoder was trained on (`images`) and looked at (`held_out_images`).
        num_classes: Labels are 0 .. num_classes - 1.
        num_tokens: Tokens of an image; no more iterations than these.

    Args:
        data: The folder with `autoencoder` and `mar`.
        device: Where to compute.
        precision: `fp32`, or `bf16` autocast.
        compile: Whether MAR's blocks and head run through `torch.compile`.
    """

    def __init__(
        self,
        data: Path,
        device: torch.device,
        precision: Literal["fp32", "bf16"] = "fp32",
        compile: bool = False,
    ) -> None:
        where = data / "autoencoder", data / "mar"
        autoencoder = load_trained(where[0], "autoencoder", "the stage `train_ae`")
        mar = load_trained(where[1], "mar", "the stage `train_mar`")
        shape = MARShape(**mar.config["shape"])
        self.inputs = {"autoencoder": autoencoder.digest, "mar": mar.digest}
        self.images = {
            name: value for name, value in autoencoder.inputs.items() if name.endswith("images")
        }
        self.num_classes = shape.num_classes
        self.num_tokens = shape.num_tokens
        self._device = device
        self._precision = precision
        self._autoencoder: Autoencoder = autoencoder.build(autoencoder_from, where[0]).to(device)
        trained = mar.build(lambda config: MAR(MARShape(**config["shape"])), where[1]).to(device)
        self._mar = quickened(trained, precision, compile)
        self._mean = torch.tensor(mar.config["latents_mean"], device=device)
        self._std = float(mar.config["latents_std"])

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
        """Images, one for each label; equal generators draw equal noise at every scale. See `MAR.sample`."""
        bf16 = self._precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            tokens = self._mar.sample(
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


def quickened(mar: MAR, precision: Literal["fp32", "bf16"], compile: bool = False) -> MAR:
    """Make a trained model ready to sample, in place: the same tokens, sooner.

    On a GPU the head's steps are replayed as CUDA graphs (see `Replayed`).

    Args:
        mar: On the device where it will sample, its parameters frozen.
        precision: With `bf16` the weights of linear maps are cast once, not by autocast at every call; sampling still
            has to run under autocast.
        compile: Whether its blocks and head run through `torch.compile`, which takes some seconds at first calls and
            adds up in another order.
    """
    if precision == "bf16":
        for module in mar.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
    if compile:
        for block in [*mar.encoder, *mar.decoder, mar.head]:
            block.compile()
    mar.set_submodule("head", Replayed(mar.head))
    return mar
