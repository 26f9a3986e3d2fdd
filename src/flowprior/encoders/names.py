"""Names of the networks that turn images into features."""

from flowprior.core.registry import Registry

ENCODERS = Registry(
    "encoders",
    "encoder",
    {
        "digits": "flowprior.encoders.shipped:open_digits_encoder",
        "timm": "flowprior.encoders.networks:patch_tokens",
    },
)
