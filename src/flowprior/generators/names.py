"""Registry of generators: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

GENERATORS = Registry("generators", "generator", {"mar": "flowprior.mar.model:MAR"})
