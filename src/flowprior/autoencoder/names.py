"""Registry of autoencoders and bottlenecks: a new one is a line, its name and `module:attribute`."""

from flowprior.core.registry import Registry

AUTOENCODERS = Registry(
    "autoencoder",
    "autoencoder",
    {
        "vit": "flowprior.autoencoder.vit:build_autoencoder",
        "conv": "flowprior.autoencoder.conv:build_autoencoder",
    },
)

BOTTLENECKS = Registry(
    "autoencoder",
    "bottleneck",
    {
        "plain": "flowprior.autoencoder.bottleneck:PlainBottleneck",
        "kl": "flowprior.autoencoder.bottleneck:KLBottleneck",
        "softvq": "flowprior.autoencoder.softvq:SoftVQBottleneck",
    },
)
