"""The sections `autoencoder` and `train_ae`."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from flowprior.autoencoder.names import AUTOENCODERS, BOTTLENECKS
from flowprior.core.section import Section
from flowprior.reconstruction.config import Adversarial, Perceptual
from flowprior.training.config import LargeTraining


class Autoencoder(Section):
    """Which autoencoder, and what stands between its encoder and its decoder."""

    model: Annotated[str, AfterValidator(AUTOENCODERS.check)]
    """Its architecture."""
    bottleneck: Annotated[str, AfterValidator(BOTTLENECKS.check)]
    options: dict[str, Any]
    """Of an architecture of your own: keyword arguments of its builder."""


class SoftVQ(Section):
    """The softvq bottleneck; read with autoencoder.bottleneck softvq alone."""

    num_codebooks: int = Field(ge=1)
    num_codes: int = Field(ge=2)
    temperature: float = Field(gt=0)
    entropy_weight: float = Field(ge=0)
    representation_weight: float = Field(ge=0)
    """Of the agreement with a frozen transformer's patch tokens (digits: their semantic network's)."""
    representation_width: int = Field(ge=8)
    representation_model: str | None
    """What timm calls the transformer, or local-dir:/folder; null for digits."""
    representation_pretrained: bool
    """false: random weights, to try a machine out."""


class TrainAutoencoder(LargeTraining):
    """The autoencoder and its training."""

    encoder: str | None
    """Trained transformer that the encoder starts from, by timm's name or local-dir:/folder; null: from scratch."""
    layer_scale: float | None = Field(gt=0)
    """Start of the factor on each residual branch that is trained from scratch; null: no such factors."""
    augment: Literal["none", "crop_flip"]
    """crop_flip: a random crop of 0.8 to 1 of the short side, mirrored half of the time."""
    gradient_checkpointing: bool
    """Compute each block again in the backward pass; memory falls, work grows by a third."""
    patch_size: int = Field(ge=1)
    num_latents: int = Field(ge=1)
    width: int = Field(ge=8)
    depth: int = Field(ge=1)
    num_heads: int = Field(ge=1)
    batch_images: int = Field(ge=1)
    eval_steps: int = Field(ge=1)
    """Updates between two looks at the alignment of the validation latents."""
    eval_latents: int = Field(ge=100)
    softvq: SoftVQ
    perceptual: Perceptual
    adversarial: Adversarial

    @model_validator(mode="after")
    def _heads_fit(self) -> "TrainAutoencoder":
        if self.width % self.num_heads:
            raise ValueError(f"num_heads ({self.num_heads}) must divide width ({self.width})")
        if self.encoder is not None and self.layer_scale is None:
            raise ValueError(
                "layer_scale: a trained encoder has factors on its branches; give a start for the decoder's, "
                "such as 0.1"
            )
        if self.adversarial.weight and self.adversarial.start_step >= self.steps:
            raise ValueError(
                f"adversarial.start_step ({self.adversarial.start_step}) must be below steps ({self.steps}), "
                "or adversarial.weight 0"
            )
        self._divides("batch_images", self.batch_images)
        return self


class EncodeLatents(Section):
    """Batches of the encoding."""

    batch_images: int = Field(ge=1)
    flip: bool
    """Also encode each image's mirror image."""
    precision: Literal["fp32", "bf16"]
