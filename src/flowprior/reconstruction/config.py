"""What reconstructions are judged by besides squared error."""

from pydantic import Field

from flowprior.core.section import Section


class Perceptual(Section):
    """LPIPS-VGG in the reconstruction loss."""

    weight: float = Field(ge=0)
    """Factor; at 0 nothing of it is built or computed."""
    warmup_steps: int = Field(ge=0)
    """Over which the factor rises from 0."""
    pretrained: bool
    """false: VGG16 with random weights, to try a machine out."""


class Adversarial(Section):
    """A discriminator on a frozen transformer."""

    weight: float = Field(ge=0)
    """Factor of the hinge losses; at 0 nothing of it is built or computed."""
    start_step: int = Field(ge=0)
    lecam: float = Field(ge=0)
    consistency: float = Field(ge=0)
    backbone: str
    """What timm calls the transformer, or local-dir:/folder."""
    pretrained: bool
    """false: a transformer with random weights, to try a machine out."""
    lr: float = Field(gt=0, le=1)
    """Of the heads, constant."""
