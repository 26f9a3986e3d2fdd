"""The ViT autoencoder: patches, shapes, what depends on what, the paper's size."""

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from flowprior.autoencoder.bottleneck import Codebooks
from flowprior.autoencoder.names import BOTTLENECKS
from flowprior.autoencoder.shape import Shape
from flowprior.autoencoder.vit import (
    LatentDecoder,
    LatentEncoder,
    build_autoencoder,
    patchify,
    unpatchify,
)
from flowprior.core import rng

from .small import CODEBOOKS, SMALL, count, normal, small

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)


@PROPERTY
@given(
    b=st.integers(1, 3), channels=st.integers(1, 4), size=st.integers(1, 4), side=st.integers(1, 4)
)
def test_unpatchify_undoes_patchify(b: int, channels: int, size: int, side: int) -> None:
    """For any number of images, channels, patches and pixels of a patch, to the bit."""
    images = normal(b, channels, side * size, side * size)
    patches = patchify(images, size)
    assert patches.shape == (b, side * side, size * size * channels)
    assert torch.equal(unpatchify(patches, size, channels), images)
    assert torch.equal(patchify(unpatchify(patches, size, channels), size), patches)


@PROPERTY
@given(
    channels=st.integers(1, 3),
    size=st.integers(1, 3),
    rows=st.integers(1, 3),
    cols=st.integers(1, 4),
)
def test_patches_go_row_by_row_and_their_pixels_row_column_channel(
    channels: int, size: int, rows: int, cols: int
) -> None:
    """Number f of patch p is one pixel's channel, written out by hand; images need not be square."""
    images = normal(2, channels, rows * size, cols * size)
    patches = patchify(images, size)
    for p in range(rows * cols):
        top, left = size * (p // cols), size * (p % cols)
        written = [
            images[:, channel, top + row, left + column]
            for row in range(size)
            for column in range(size)
            for channel in range(channels)
        ]
        assert torch.equal(patches[:, p], torch.stack(written, dim=-1))


@given(
    side=st.integers(1, 4),
    patch=st.integers(1, 3),
    channels=st.integers(1, 3),
    latents=st.integers(1, 6),
    dim=st.integers(1, 5),
    bottleneck=st.sampled_from(list(BOTTLENECKS)),
)
@settings(PROPERTY, max_examples=15)
def test_any_shape_gives_its_latents_and_its_image_back(
    side: int, patch: int, channels: int, latents: int, dim: int, bottleneck: str
) -> None:
    """[b, c, H, H] to [b, n, d] to [b, c, H, H], by `forward` as by `encode` and `decode`."""
    shape = Shape(side * patch, channels, patch, latents, dim, 8, 1, 2)
    with rng.scoped(0, "shape"):
        model = build_autoencoder(shape, bottleneck, CODEBOOKS)
    images = normal(2, channels, side * patch, side * patch)
    restored, codes = model(images)
    assert restored.shape == images.shape
    assert codes.latents.shape == codes.mean.shape == (2, latents, dim)
    assert torch.equal(model.encode(images).latents, codes.latents)
    assert torch.equal(model.decode(codes.latents), restored)


@pytest.mark.parametrize(("image_size", "patch_size"), [(8, 3), (9, 2), (2, 4)])
def test_a_patch_size_that_does_not_divide_the_image_is_an_error(
    image_size: int, patch_size: int
) -> None:
    """It names both numbers."""
    shape = SMALL._replace(image_size=image_size, patch_size=patch_size)
    with pytest.raises(ValueError, match=f"{patch_size} does not divide .* {image_size} pixels"):
        build_autoencoder(shape, "plain")


def test_an_image_knows_nothing_of_its_batch() -> None:
    """Each image gets the latents that it gets alone, up to the rounding of a batched product."""
    model, images = small(), normal(3, 2, 8, 8)
    alone = torch.cat([model.encode(image[None]).latents for image in images])
    torch.testing.assert_close(model.encode(images).latents, alone, rtol=1e-5, atol=1e-6)


def test_every_latent_sees_every_patch() -> None:
    """Attention is full: a change to any one patch moves all latents."""
    model, images = small(), normal(1, 2, 8, 8)
    before = model.encode(images).latents
    patches = patchify(images, 2)
    for p in range(16):
        changed = patches.clone()
        changed[:, p] += 1
        moved = (model.encode(unpatchify(changed, 2, 2)).latents - before).norm(dim=-1)
        assert moved.min() > 1e-5


def test_every_patch_sees_every_latent_and_latents_are_told_apart() -> None:
    """A change to any latent moves all pixels' patches, and latents in another order are another image."""
    model, latents = small(), normal(1, 5, 3)
    before = model.decoder(latents)
    for n in range(5):
        changed = latents.clone()
        changed[:, n] += 1
        assert (model.decoder(changed) - before).norm(dim=-1).min() > 1e-5
    assert (model.decoder(latents.flip(1)) - before).norm() > 1e-3


@pytest.mark.parametrize("bottleneck", BOTTLENECKS)
def test_the_gradient_of_the_latents_reaches_the_whole_encoder(bottleneck: str) -> None:
    """Every parameter of encoder and bottleneck learns from the latents alone, none of the decoder does."""
    model = small(bottleneck)
    codes = model.encode(normal(2, 2, 8, 8), normal(2, 5, 3, tag="noise"))
    (codes.latents * normal(2, 5, 3, tag="weights")).sum().backward()
    for name, parameter in model.named_parameters():
        if name.startswith("decoder."):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_gradient_of_the_image_reaches_every_parameter() -> None:
    """Nothing in the model is built and not used (but for timm's dropped head and patch embedding)."""
    model = small()
    restored, _ = model(normal(2, 2, 8, 8))
    (restored * normal(2, 2, 8, 8, tag="weights")).sum().backward()
    unused = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not unused


def test_posterior_noise_is_used_by_the_kl_bottleneck_only() -> None:
    """With noise its latents move and its posterior does not; the plain one does not look at it."""
    images, noise = normal(2, 2, 8, 8), normal(2, 5, 3, tag="noise")
    plain, kl = small("plain"), small("kl")
    assert torch.equal(plain.encode(images, noise).latents, plain.encode(images).latents)
    sampled, still = kl.encode(images, noise), kl.encode(images)
    assert (sampled.latents - still.latents).abs().min() > 0
    assert torch.equal(sampled.mean, still.mean)
    assert torch.equal(sampled.log_variance, still.log_variance)


def test_softvq_needs_codebooks_that_go_with_the_tokens() -> None:
    with pytest.raises(ValueError, match="needs codebooks"):
        build_autoencoder(SMALL, "softvq")
    with pytest.raises(ValueError, match=r"5 latent tokens .* 2 codebooks"):
        build_autoencoder(SMALL, "softvq", Codebooks(2, 6, 0.5))


# reference.md §3, calculated from the authors' code: timm's vit_large_patch14_dinov2 (with LayerScale), patch 16,
# 256 pixels, 64 latents of 32 channels.
WIDTH, DEPTH, LATENTS, DIM, PATCHES = 1024, 24, 64, 32, 256


PATCH_EMBEDDING = 16 * 16 * 3 * WIDTH + WIDTH


LAYER_SCALE = 2 * DEPTH * WIDTH


def dinov2_large() -> VisionTransformer:
    """The transformer of both halves of the paper's autoencoder, without memory for its weights."""
    with torch.device("meta"):
        model = timm.create_model(
            "vit_large_patch14_dinov2", img_size=256, patch_size=16, num_classes=0
        )
    assert isinstance(model, VisionTransformer)
    return model


def test_the_encoder_at_the_papers_size_has_the_references_parameters() -> None:
    """303,543,296: the transformer with its patch embedding, 64 latent tokens and their 64 positions.

    The map to 32 channels (32,800) is the bottleneck's and is not in it.
    """
    vit = dinov2_large()
    transformer = count(vit)
    with torch.device("meta"):
        encoder = LatentEncoder(vit, LATENTS)
    assert count(encoder) == 303_543_296
    assert count(encoder) == transformer + 2 * LATENTS * WIDTH


def test_the_decoder_at_the_papers_size_has_the_references_parameters() -> None:
    """303,478,528 and the map from 32 channels.

    In the reference's number: the transformer without its patch embedding (304,265,984 - 787,456), 64 latent
    positions, one mask token, the map to pixels. Not in it: the map from 32 channels (33,792), which the
    reference counts on its own as "post" and `LatentDecoder` owns as `input`.
    """
    vit = dinov2_large()
    transformer = count(vit)
    with torch.device("meta"):
        decoder = LatentDecoder(vit, LATENTS, DIM, 16 * 16 * 3)
    assert count(decoder.input) == 33_792
    assert count(decoder.output) == 787_200
    assert count(decoder) - count(decoder.input) == 303_478_528 == 304_265_984 - PATCH_EMBEDDING
    parts = transformer - PATCH_EMBEDDING + LATENTS * WIDTH + WIDTH + 787_200
    assert count(decoder) - count(decoder.input) == parts


def test_the_papers_autoencoder_has_the_references_parameters() -> None:
    """`build_autoencoder` at the imagenet preset: the reference's 607.9 M, less the decoder's unused patch embedding.

    Without LayerScale, two vectors in each of 24 blocks are missing from either transformer.
    """
    shape = Shape(256, 3, 16, LATENTS, DIM, WIDTH, DEPTH, 16, layer_scale=0.1)
    with torch.device("meta"):
        model = build_autoencoder(shape, "plain")
        bare = build_autoencoder(shape._replace(layer_scale=None), "plain")
    reference = 303_543_296 + 304_265_984 + 32_800 + 33_792
    assert count(model.encoder) == 303_543_296
    assert count(model.decoder) - count(model.decoder.input) == 303_478_528
    assert count(model) == reference - PATCH_EMBEDDING
    assert count(model) - count(bare) == 2 * LAYER_SCALE


def test_layer_scale_starts_where_it_is_told() -> None:
    with rng.scoped(0):
        model = build_autoencoder(SMALL._replace(layer_scale=0.25), "plain")
    for part in (model.encoder, model.decoder):
        for block in part.vit.blocks:
            for scale in (block.ls1.gamma, block.ls2.gamma):
                assert torch.equal(scale, torch.full_like(scale, 0.25))


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient() -> None:
    """What autograd holds between forward and backward is a fraction; loss and gradients are the same bits."""
    found = []
    for checkpointed in (False, True):
        with rng.scoped(0):
            model = build_autoencoder(SMALL._replace(depth=4), "plain")
        model.checkpoint_gradients(checkpointed)
        held: set[tuple[int, int]] = set()

        def pack(tensor: torch.Tensor, held: set[tuple[int, int]] = held) -> torch.Tensor:
            if not isinstance(tensor, nn.Parameter):
                held.add((tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()))
            return tensor

        images = torch.rand(4, 2, 8, 8, generator=rng.generator(0, "images"))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = model(images)[0].square().mean()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        found.append((sum(size for _, size in held), loss.detach(), gradients))
    (kept, loss, gradients), (kept_less, same_loss, same_gradients) = found
    assert kept_less < kept / 3
    assert torch.equal(loss, same_loss)
    assert len(gradients) == len(same_gradients)
    for one, other in zip(gradients, same_gradients, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_computed_twice_where_no_gradient_is_wanted() -> None:
    with rng.scoped(0):
        model = build_autoencoder(SMALL, "plain").checkpoint_gradients()
    calls = []
    model.encoder.vit.blocks[0].register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model.encode(torch.zeros(1, 2, 8, 8))
    assert len(calls) == 1


def test_a_dinov2_transformer_of_timm_serves_as_encoder_and_decoder() -> None:
    """The forwards go through at the paper's size: 257 + 64 tokens, of which 64, then 256, come out."""
    with torch.device("meta"):
        encoder = LatentEncoder(dinov2_large(), LATENTS)
        decoder = LatentDecoder(dinov2_large(), LATENTS, DIM, 16 * 16 * 3)
        tokens = encoder(torch.empty(2, 3, 256, 256))
        patches = decoder(torch.empty(2, LATENTS, DIM))
    assert tokens.shape == (2, LATENTS, WIDTH)
    assert patches.shape == (2, PATCHES, 768)
