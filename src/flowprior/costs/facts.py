"""What a plan assumes of data that it does not look at: how many images there are, and how many target features."""

from typing import NamedTuple

from flowprior.config.schema import Params
from flowprior.costs.networks import feature_transformer
from flowprior.features.tables import HELD_OUT


class Facts(NamedTuple):
    """What only the data would tell.

    Attributes:
        train_images: Number of training images.
        held_out_images: Number of held-out images.
        num_classes: Number of labels.
        channels: Channels of an image.
        feature_vectors: Rows of the target features, of both splits together; 0 where nothing is known of them.
        feature_dim: Channels of a target feature; 0 where nothing is known of them.
    """

    train_images: int
    held_out_images: int
    num_classes: int
    channels: int
    feature_vectors: int
    feature_dim: int


IMAGENET = Facts(1_281_167, 50_000, 1000, 3, 0, 0)
"""ImageNet-1k."""
DIGITS = Facts(1438, 359, 10, 1, 0, 0)
"""scikit-learn's digits."""
IMAGENET_TOKENS = {"low_level": (64, 32)}
"""Vectors of an image and their channels, by `prior.source`: the DC-AE's at 256 pixels."""
IMAGENET_TABLES = {"discrete": (16_384, 8), "textual": (151_936, 896)}
"""Rows and channels of a table, by `prior.source`: LlamaGen's codebook, the embeddings of Qwen2.5-0.5B."""
DIGITS_TOKENS = {"semantic": (16, 64), "shuffled": (16, 64), "low_level": (9, 16)}
DIGITS_TABLES = {"discrete": (512, 8), "textual": (30_522, 384)}
GAUSSIAN_DIM = 64


def assumed(cfg: Params, images: Facts | None = None) -> Facts:
    """What the data are taken to be: the digits or ImageNet-1k, and features of the paper's kinds.

    Args:
        cfg: The parameters.
        images: What is known of the images; None takes what is usual.

    Returns:
        No features where nothing is known of them: of a file, of an encoder in a folder, of a plugin.
    """
    source, images = cfg.prior.source, images or (DIGITS if cfg.on_digits else IMAGENET)
    tokens, tables = (
        (DIGITS_TOKENS, DIGITS_TABLES) if cfg.on_digits else (IMAGENET_TOKENS, IMAGENET_TABLES)
    )
    if source in ("semantic", "shuffled") and cfg.prior.encoder != "digits":
        vit = feature_transformer(cfg)
        tokens = {} if vit is None else {source: (vit.patch_embed.num_patches, vit.embed_dim)}
    drawn = cfg.extract_features.max_vectors, GAUSSIAN_DIM
    vectors, dim = {**tables, "gaussian": drawn}.get(source, (0, 0))
    if source in tokens:
        per_image, dim = tokens[source]
        vectors = sum(n * min(per_image, most // n) for n, most in images_looked_at(cfg, images))
    return images._replace(feature_vectors=vectors, feature_dim=dim)


def images_looked_at(cfg: Params, images: Facts) -> list[tuple[int, int]]:
    """How many images of each split features are made of, and the most vectors that are kept of them."""
    limits = cfg.extract_features
    by_split = []
    for n, share in ((images.train_images, 1), (images.held_out_images, HELD_OUT)):
        most = limits.max_vectors // share
        wanted = n if limits.max_images is None else max(1, limits.max_images // share)
        by_split.append((min(n, most, wanted), most))
    return by_split
