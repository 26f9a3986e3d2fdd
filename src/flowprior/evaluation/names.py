"""Registry of judges: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

JUDGES = Registry(
    "evaluation",
    "judge",
    {
        "digits": "flowprior.evaluation.digits:OnDigits",
        "inception": "flowprior.evaluation.on_inception:OnInception",
        "none": "flowprior.evaluation.judge:Unjudged",
    },
)
