"""Names of the generators. What is new takes a line here; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

GENERATORS = Registry("generators", "generator", {"mar": "flowprior.mar.model:MAR"})
