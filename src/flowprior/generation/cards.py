"""What the hub shows of an autoencoder or a generator of the pipeline."""

from pathlib import Path

from flowprior.autoencoder.shape import Shape
from flowprior.core.artifacts import package_versions
from flowprior.core.io import read_json
from flowprior.core.sharing import model_card

PAPER = "[arXiv:2506.05240](https://arxiv.org/abs/2506.05240)"
AE_ABOUT = f"""An autoencoder of images whose latents were pulled towards target features, made by the pipeline of
flowprior ({PAPER})."""
AE_USAGE = """from flowprior import Autoencoder

autoencoder = Autoencoder.from_pretrained({name!r})
latents = autoencoder.encode(images)  # bytes, or numbers in [-1, 1]: [b, c, H, W]
restored = autoencoder.decode(latents)  # in [-1, 1]"""
GENERATOR_ABOUT = f"""A generator of images by their class, with the autoencoder whose latents it learned, made by the
pipeline of flowprior ({PAPER})."""
GENERATOR_USAGE = """from flowprior import Autoencoder, Generator

generator = Generator.from_pretrained({name!r})
images = generator.sample([0, 1, 2], guidance=2.0)  # bytes, [3, c, H, W]
autoencoder = Autoencoder.from_pretrained({name!r}, subfolder="autoencoder")"""


def card_of(
    repo_id: str,
    about: str,
    autoencoder: Path,
    facts: dict[str, object],
    usage: str,
    license: str | None,
) -> bytes:
    """A page, with the sizes of an autoencoder among its facts.

    Args:
        repo_id: Where it will be.
        about: A paragraph.
        autoencoder: The autoencoder's folder.
        facts: What else is to be told.
        usage: Python that loads it.
        license: The hub's word for the licence.
    """
    config = read_json(autoencoder / "config.json")
    shape = Shape(**config["shape"])
    packages = package_versions("flowprior", "torch")
    return model_card(
        repo_id.rpartition("/")[2],
        about,
        {
            **facts,
            "images": f"[{shape.channels}, {shape.image_size}, {shape.image_size}]",
            "latents": f"[{shape.num_latents}, {shape.latent_dim}], bottleneck {config['bottleneck']}",
            "made with": ", ".join(f"{name} {version}" for name, version in packages.items()),
        },
        usage,
        license,
        ("autoencoder", "latent-space"),
    )
