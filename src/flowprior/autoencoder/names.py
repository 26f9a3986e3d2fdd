"""Names of autoencoders and bottlenecks. What is new takes a line here; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

AUTOENCODERS = Registry(
    "autoencoder", "autoencoder", {"vit": "flowprior.autoencoder.vit:build_autoencoder"}
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
