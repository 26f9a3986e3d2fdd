"""Registry of feature sources: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

SOURCES = Registry(
    "features",
    "source of target features",
    {
        "semantic": "flowprior.features.sources:semantic",
        "low_level": "flowprior.features.sources:low_level",
        "discrete": "flowprior.features.sources:discrete",
        "textual": "flowprior.features.sources:textual",
        "gaussian": "flowprior.features.sources:gaussian",
        "shuffled": "flowprior.features.sources:shuffled",
        "file": "flowprior.features.sources:file",
    },
)
