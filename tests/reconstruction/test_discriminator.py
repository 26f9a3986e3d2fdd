"""The discriminator: frozen transformer, heads that learn; sizes of the reference, and where gradients go."""

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.optim import adamw, moving_average
from flowprior.reconstruction.discriminator import (
    DEFAULT_BACKBONE,
    Discriminator,
    FrozenFeatures,
    Head,
    LogitAverages,
    build_discriminator,
    fit_side,
)

WIDTH, SIDE = 32, 32
NARROW = {"embed_dim": WIDTH, "depth": 4, "num_heads": 2}


def narrow(**changes: int | float | bool | str) -> FrozenFeatures:
    """A narrow transformer with random weights."""
    with rng.scoped(0, "vit"):
        vit = VisionTransformer(img_size=SIDE, patch_size=8, **{**NARROW, **changes})
    return FrozenFeatures(vit)


def heads(tag: str = "heads") -> Discriminator:
    """Heads for it."""
    with rng.scoped(0, tag):
        return Discriminator(WIDTH)


def images(b: int = 2, side: int = SIDE) -> Tensor:
    """Fixed noise in [-1, 1]."""
    return torch.rand(b, 3, side, side, generator=rng.generator(0, "x")) * 2 - 1


def count(module: nn.Module) -> int:
    """Its parameters."""
    return sum(p.numel() for p in module.parameters())


# --- sizes ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> tuple[FrozenFeatures, Discriminator]:
    """The reference's discriminator, with random weights."""
    with rng.scoped(0, "full"):
        return build_discriminator(pretrained=False)


def test_what_learns_has_the_references_number_of_parameters(
    full: tuple[FrozenFeatures, Discriminator],
) -> None:
    """reference.md §4, from the authors' code: 7,386,245 in five heads on ViT-S."""
    features, discriminator = full
    assert count(discriminator) == 7_386_245
    assert all(p.requires_grad for p in discriminator.parameters())
    assert not any(p.requires_grad for p in features.parameters())


def test_an_image_of_256_pixels_has_980_logits(
    full: tuple[FrozenFeatures, Discriminator],
) -> None:
    """Five readouts of 196 tokens, in float32."""
    features, discriminator = full
    with torch.no_grad():
        logits = discriminator(features(images(1, 256), rng.generator(0)))
    assert logits.shape == (1, 980)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_dinov2_is_read_at_its_patch_of_14_pixels() -> None:
    """With and without registers: 16 x 16 tokens of 224 pixels."""
    for name in ("vit_small_patch14_dinov2.lvd142m", "vit_small_patch14_reg4_dinov2.lvd142m"):
        features, discriminator = build_discriminator(name, pretrained=False)
        features.vit.blocks = features.vit.blocks[:4]  # the rest is more of the same
        with torch.no_grad():
            tokens = FrozenFeatures(features.vit)(images(1, 224), rng.generator(0))
        assert tokens.shape == (1, 5, 256, 384)
        assert count(discriminator) == 7_386_245


# --- the frozen transformer -------------------------------------------------------------------------


@pytest.mark.parametrize(("depth", "blocks"), [(4, [0, 1, 2, 3]), (12, [2, 5, 8, 11])])
@pytest.mark.parametrize("registers", [0, 2])
def test_readouts_are_tokens_plus_class_token(
    depth: int, blocks: list[int], registers: int
) -> None:
    """Before the first block, and after each quarter of them, as timm's own intermediates."""
    features = narrow(depth=depth, reg_tokens=registers)
    x = images()
    read = features(x, rng.generator(0))
    vit, pixels = features.vit, (x / 2 + 0.5 - features.mean) / features.std
    embedded = vit._pos_embed(vit.patch_embed(pixels))
    expected = [embedded[:, 1 + registers :] + embedded[:, :1]]
    for tokens, prefix in vit.forward_intermediates(
        pixels,
        indices=blocks,
        return_prefix_tokens=True,
        output_fmt="NLC",
        intermediates_only=True,
    ):
        expected.append(tokens + prefix[:, :1])
    torch.testing.assert_close(read, torch.stack(expected, 1))


def test_the_mean_colour_of_imagenet_becomes_zero() -> None:
    """[-1, 1] to the normalisation that the transformer was trained with."""
    features, seen = narrow(), []
    features.vit.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    colour = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
    features((2 * colour - 1).expand(1, 3, SIDE, SIDE), rng.generator(0))
    white = torch.ones(1, 3, SIDE, SIDE)
    features(white, rng.generator(0))
    torch.testing.assert_close(seen[0], torch.zeros_like(white), atol=1e-6, rtol=0)
    assert seen[1][0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-4)


def test_the_transformer_stays_in_eval_mode_under_a_training_parent() -> None:
    """Its dropout never acts, also where the parent is put into train mode."""
    features = narrow(proj_drop_rate=0.5, attn_drop_rate=0.5, drop_path_rate=0.5)
    parent = nn.ModuleDict({"features": features, "other": nn.Dropout()}).train()
    assert parent["other"].training
    assert not any(module.training for module in features.modules())
    one, again = (features(images(), rng.generator(0)) for _ in range(2))
    assert torch.equal(one, again)


def test_gradients_reach_the_image_and_not_the_transformer() -> None:
    features, discriminator = narrow(), heads()
    x = images().requires_grad_()
    discriminator(features(x, rng.generator(0))).sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None for p in features.parameters())
    assert all(p.grad is not None for p in discriminator.parameters())


def test_grey_images_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 3 channels, the images have 1"):
        narrow()(torch.zeros(1, 1, SIDE, SIDE), rng.generator(0))


@pytest.mark.parametrize("changes", [{"depth": 3}, {"class_token": False, "global_pool": "avg"}])
def test_a_transformer_that_cannot_be_read_is_refused(changes: dict[str, int | bool | str]) -> None:
    with pytest.raises(ValueError, match="a class token and at least 4 blocks"):
        narrow(**changes)


# --- size of what is seen ---------------------------------------------------------------------------


def test_larger_images_are_cropped_or_shrunk_equally_often() -> None:
    """One window for the whole batch, every window possible; else the mean over 2 x 2 pixels."""
    x = images(3, 8)
    shrunk = x.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
    windows, num_shrunk = set(), 0
    for seed in range(400):
        seen = fit_side(x, 4, rng.generator(seed))
        assert seen.shape == (3, 3, 4, 4)
        if torch.allclose(seen, shrunk):
            num_shrunk += 1
            continue
        windows |= {
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(seen, x[..., top : top + 4, left : left + 4])
        }
    assert 160 < num_shrunk < 240
    assert len(windows) == 25


def test_images_of_the_right_size_are_seen_as_they_are() -> None:
    x = images()
    for seed in range(10):
        assert torch.equal(fit_side(x, SIDE, rng.generator(seed)), x)


def test_small_images_are_enlarged() -> None:
    """Bicubic: a constant stays one, and nothing is drawn."""
    seen = fit_side(torch.full((1, 3, 8, 12), 0.5), 16, rng.generator(0))
    torch.testing.assert_close(seen, torch.full((1, 3, 16, 16), 0.5))


# --- heads ------------------------------------------------------------------------------------------


def tokens(b: int = 2) -> Tensor:
    """Features as the heads get them."""
    return torch.randn(b, 5, 16, WIDTH, generator=rng.generator(0, "tokens"))


def test_a_head_sees_a_ring_of_tokens() -> None:
    """Tokens moved around the ring move the logits."""
    with rng.scoped(0):
        head = Head(WIDTH).eval()
    sequence = tokens()[:, 0]
    torch.testing.assert_close(head(sequence.roll(5, 1)), head(sequence).roll(5, 1))


def test_a_neighbour_four_away_counts_and_one_five_away_does_not() -> None:
    """The kernel of nine; without the norm, which sees all tokens."""
    with rng.scoped(0):
        head = Head(WIDTH).eval()
    for layer in (head.input, head.neighbours):
        layer[1] = nn.Identity()
    sequence = tokens(1)[:, 0]
    moved = sequence.clone()
    moved[:, 8] += 1
    change = (head(moved) - head(sequence))[0]
    assert [i for i, value in enumerate(change.tolist()) if abs(value) > 1e-5] == list(range(4, 13))


def test_logits_of_an_image_do_not_depend_on_what_it_is_judged_with() -> None:
    """So they depend on no launch, and real and restored images may share a forward."""
    discriminator = heads().eval()
    x = tokens(4)
    together = discriminator(x)
    apart = torch.cat([discriminator(x[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, apart)


def test_every_convolution_has_spectral_norm_one() -> None:
    """After some forwards, each of which is a step of the power iteration."""
    discriminator = heads()
    for _ in range(200):
        discriminator(tokens())
    convolutions = [m for m in discriminator.modules() if isinstance(m, nn.Conv1d)]
    assert len(convolutions) == 15
    for convolution in convolutions:
        norm = torch.linalg.matrix_norm(convolution.weight.flatten(1), 2)
        assert norm.item() == pytest.approx(1, abs=0.01)


def test_heads_work_under_bf16_autocast() -> None:
    """Within bfloat16's precision of float32, with finite gradients."""
    discriminator, x = heads(), tokens().requires_grad_()
    exact = copy.deepcopy(discriminator)(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = discriminator(x)
    rough.float().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (rough.float() - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_a_width_that_the_norm_cannot_group_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of 32, not 48"):
        Discriminator(48)


def steps(discriminator: Discriminator, optimizer: torch.optim.Optimizer, some: range) -> None:
    """Some updates on fixed draws."""
    for step in some:
        x = torch.randn(2, 5, 16, WIDTH, generator=rng.generator(1, step))
        logits = discriminator(x)
        optimizer.zero_grad()
        logits.square().mean().backward()
        optimizer.step()
        discriminator.averages.update(logits.mean().detach(), -logits.mean().detach())


def test_a_restored_discriminator_goes_on_identically() -> None:
    """Weights, the power iterations' vectors and LeCam's averages are all in the state."""
    straight = heads()
    optimizer = adamw(straight, 1e-3, (0.9, 0.95), 1e-2)
    steps(straight, optimizer, range(3))
    file = io.BytesIO()
    torch.save((straight.state_dict(), optimizer.state_dict()), file)
    steps(straight, optimizer, range(3, 6))
    file.seek(0)
    resumed = heads("other")
    again = adamw(resumed, 1e-3, (0.9, 0.95), 1e-2)
    for owner, state in zip((resumed, again), torch.load(file, weights_only=True), strict=True):
        owner.load_state_dict(state)
    steps(resumed, again, range(3, 6))
    expected, found = straight.state_dict(), resumed.state_dict()
    assert {"averages.real", "averages.fake"} <= set(found)
    assert expected["averages.real"] != 0
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_moving_average_of_the_heads_works_and_has_no_transformer() -> None:
    """As `Session.learner` makes one of every module."""
    discriminator = heads()
    averaged = moving_average(discriminator, 0.5)
    steps(discriminator, adamw(discriminator, 1e-2, (0.9, 0.95), 0.0), range(3))
    averaged.update_parameters(discriminator)
    averaged.update_parameters(discriminator)
    assert averaged.module(tokens()).isfinite().all()
    assert count(averaged) == count(discriminator)


def test_averages_of_constant_logits_are_a_geometric_series() -> None:
    """From 0: c (1 - decay^n)."""
    averages = LogitAverages(0.9)
    for _ in range(7):
        averages.update(torch.tensor(2.0), torch.tensor(-3.0))
    assert averages.real.item() == pytest.approx(2 * (1 - 0.9**7))
    assert averages.fake.item() == pytest.approx(-3 * (1 - 0.9**7))


# --- loading ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A transformer as the hub has it, narrowed."""
    with rng.scoped(0, "saved"):
        vit = timm.create_model("vit_small_patch16_224", num_classes=0, **NARROW)
    save_file(vit.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "vit_small_patch16_224",
        "num_classes": 0,
        "model_args": NARROW,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [1.0, 2.0, 3.0], "num_classes": 0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


def test_weights_and_normalisation_come_from_a_local_folder(folder: Path) -> None:
    """At another size its positions are resampled."""
    features, discriminator = build_discriminator(f"local-dir:{folder}", side=64)
    with rng.scoped(0, "saved"):
        vit = timm.create_model("vit_small_patch16_224", num_classes=0, **NARROW)
    for name, value in vit.state_dict().items():
        if name != "pos_embed":
            assert torch.equal(features.vit.state_dict()[name], value), name
    assert features.vit.pos_embed.shape == (1, 1 + 16, WIDTH)
    assert features.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert features.std.flatten().tolist() == [1, 2, 3]
    assert discriminator(features(images(1, 80), rng.generator(0))).shape == (1, 80)


def drop_a_tensor(folder: Path) -> None:
    save_file({"cls_token": torch.zeros(1, 1, WIDTH)}, folder / "model.safetensors")


def cut_in_half(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])


def remove(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [drop_a_tensor, cut_in_half, remove])
def test_damaged_weights_are_refused(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(RuntimeError, match="cannot be loaded"):
        build_discriminator(f"local-dir:{folder}")


def test_without_network_the_error_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(RuntimeError, match=r"cannot be loaded.*local-dir:/folder"):
        build_discriminator(DEFAULT_BACKBONE)


@pytest.mark.parametrize("name", ["vit_smal_patch16_224.dino", "vit_small_patch16_224.dinno"])
def test_an_unknown_transformer_is_told_with_the_nearest_ones(name: str) -> None:
    with pytest.raises(ValueError, match=r"no model .*near it: .*vit_small_patch16_224\.dino"):
        build_discriminator(name, pretrained=False)


def test_another_kind_of_network_is_refused() -> None:
    with pytest.raises(ValueError, match="is a Eva; a discriminator reads a VisionTransformer"):
        build_discriminator("vit_small_patch16_dinov3.lvd1689m", pretrained=False)
