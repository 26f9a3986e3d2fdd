"""Registry of objectives: a new one is a line, its name and `module:attribute`; see `flowprior.core.registry`."""

from flowprior.core.registry import Registry

OBJECTIVES = Registry(
    "alignment",
    "objective",
    {
        "none": "flowprior.alignment.objective:Unaligned",
        "flow_prior": "flowprior.alignment.flows:FlowAlignment",
        "likelihood": "flowprior.alignment.flows:WeightedAlignment",
        "elbo": "flowprior.alignment.flows:EvidenceBound",
        "sds": "flowprior.alignment.flows:ScoreDistillation",
        "dmd": "flowprior.alignment.flows:DistributionMatching",
        "sliced_w2": "flowprior.alignment.samples:SlicedWasserstein",
        "mmd": "flowprior.alignment.samples:MaximumMeanDiscrepancy",
        "moments": "flowprior.alignment.samples:MomentMatching",
        "kl": "flowprior.alignment.objective:GaussianKL",
    },
)
