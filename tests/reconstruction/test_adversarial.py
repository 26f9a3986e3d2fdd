"""The adversarial game: closed forms of its losses, who gets gradients, what is computed, ranks, the alarm."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from flowprior.core import rng
from flowprior.core.optim import adamw
from flowprior.core.rng import Draw
from flowprior.reconstruction.adversarial import (
    HEALTH,
    Adversary,
    Weights,
    collapse,
    consistency,
    discriminator_hinge,
    generator_hinge,
    gradient_ratio,
    lecam,
)
from flowprior.reconstruction.discriminator import Discriminator, FrozenFeatures
from flowprior.training.plan import Optimizer, Plan
from flowprior.training.session import Session

PROPERTY = settings(deadline=None, derandomize=True, max_examples=40)
WIDTH, SIDE, BATCH = 64, 16, 4
PAPER = Weights()
LOGIT = st.floats(-3, 3, width=32)


def part(draws: Tensor, dim: int, rank: int = 0, ranks: int = 1) -> Tensor:
    """What a rank keeps."""
    return draws.chunk(ranks, dim)[rank]


def draw(step: int = 0, rank: int = 0, ranks: int = 1) -> Draw:
    """The draw of a step's global batch, as a rank sees it."""
    return Draw(rng.generator(0, "gan", step), BATCH, partial(part, rank=rank, ranks=ranks))


def modules() -> tuple[FrozenFeatures, Discriminator]:
    """A narrow discriminator with random weights."""
    with rng.scoped(0, "gan"):
        vit = VisionTransformer(img_size=SIDE, patch_size=4, embed_dim=WIDTH, depth=4, num_heads=2)
        return FrozenFeatures(vit), Discriminator(WIDTH)


def adversary(
    weights: Weights = PAPER, start_step: int = 0, **options: Any
) -> tuple[Adversary, Discriminator]:
    """The game, and its heads."""
    features, discriminator = modules()
    return Adversary(features, discriminator, weights, start_step, **options), discriminator


def images(tag: str = "images") -> Tensor:
    """Fixed noise in [-1, 1], larger than what the transformer sees."""
    return torch.rand(BATCH, 3, 20, 20, generator=rng.generator(0, tag)) * 2 - 1


def row(*logits: float) -> Tensor:
    """Logits of one image."""
    return torch.tensor([logits])


# --- closed forms -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "fake", "expected"),
    [
        ((2.0, 1.0), (-1.0, -5.0), 0.0),
        ((0.0,), (0.0,), 1.0),
        ((0.5, 3.0), (-0.5, 1.0), 0.75),
        ((-1.0,), (1.0,), 2.0),
    ],
)
def test_the_discriminators_hinge(
    real: tuple[float, ...], fake: tuple[float, ...], expected: float
) -> None:
    """Half of what is missing to +1 and half of what is missing to -1; nothing beyond."""
    assert discriminator_hinge(row(*real), row(*fake)).item() == expected


def test_the_generators_hinge_is_minus_the_mean_logit() -> None:
    assert generator_hinge(row(1.0, -3.0)).item() == 1.0


@PROPERTY
@given(st.lists(st.tuples(LOGIT, LOGIT), min_size=1, max_size=6), LOGIT, LOGIT)
def test_lecam_is_one_sided_and_quadratic(
    pairs: list[tuple[float, float]], average_real: float, average_fake: float
) -> None:
    real, fake = zip(*pairs, strict=True)
    expected = sum(max(0.0, x - average_fake) ** 2 for x in real) / len(real)
    expected += sum(max(0.0, average_real - x) ** 2 for x in fake) / len(fake)
    found = lecam(row(*real), row(*fake), torch.tensor(average_real), torch.tensor(average_fake))
    assert found.item() == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_consistency_is_the_mean_squared_difference() -> None:
    assert consistency(row(1.0, 2.0), row(4.0, 2.0)).item() == 4.5


def test_the_gradient_ratio_of_linear_losses_is_that_of_their_slopes() -> None:
    """And nothing is left behind in `.grad`, nor is the graph."""
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstruction, adversarial = (weight * torch.tensor([3.0, 4.0])).sum(), -weight[0] * 0.5
    assert gradient_ratio(reconstruction, adversarial, weight).item() == pytest.approx(0.1)
    assert weight.grad is None
    (reconstruction + adversarial).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2.5, 4.0]


# --- the composed losses ----------------------------------------------------------------------------


def answering(logits: list[tuple[float, ...]]) -> Callable[[Tensor], Tensor]:
    """Heads that give each quarter of what they see the next logits."""

    def train(seen: Tensor) -> Tensor:
        per = len(seen) // len(logits)
        return torch.cat([row(*values).expand(per, -1) for values in logits])

    return train


def test_the_discriminators_loss_is_the_references_sum() -> None:
    """0.2 (hinge + 0.001 LeCam) + 4 consistency, LeCam beside averages that have seen this batch."""
    views = [(0.5, 1.5), (-2.0, 0.0), (0.5, 0.5), (-2.0, 1.0)]  # weak, then strong: real, fake
    gan, discriminator = adversary(train=answering(views))
    loss, health = gan.discriminator_loss(images(), images("restored"), draw())
    hinge = ((0.5 + 0.0) / 2 + (0.0 + 1.0) / 2) / 2
    average_real, average_fake = 0.001 * 1.0, 0.001 * -1.0
    regulariser = sum((x - average_fake) ** 2 for x in (0.5, 1.5)) / 2
    regulariser += sum((average_real - x) ** 2 for x in (-2.0, 0.0)) / 2
    expected = 0.2 * (hinge + 0.001 * regulariser) + 4.0 * (1.0 + 1.0) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert tuple(health) == HEALTH
    assert [value.item() for value in health.values()] == [1.0, -1.0, 1.0, 0.5, hinge]
    assert discriminator.averages.real.item() == pytest.approx(average_real)
    assert discriminator.averages.fake.item() == pytest.approx(average_fake)


def test_a_term_of_weight_zero_is_not_computed() -> None:
    """Without consistency the transformer is asked once, not twice; without LeCam its averages stand still."""
    for weights, looks, moved in (
        (Weights(), 2, True),
        (Weights(consistency=0.0), 1, True),
        (Weights(lecam=0.0), 2, False),
    ):
        features, discriminator = modules()
        seen: list[int] = []
        features.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
        gan = Adversary(features, discriminator, weights, 0)
        gan.discriminator_loss(images(), images("restored"), draw())
        assert seen == [2 * BATCH] * looks
        assert bool(discriminator.averages.real) is moved


def test_the_game_starts_at_its_step_and_never_without_weight() -> None:
    gan, _ = adversary(start_step=20)
    assert [gan.active(step) for step in (0, 19, 20, 21)] == [False, False, True, True]
    gan, _ = adversary(Weights(adversarial=0.0))
    assert not gan.active(100)


def test_the_generators_term_moves_the_image_and_no_weight() -> None:
    gan, discriminator = adversary()
    restored = images("restored").requires_grad_()
    loss, health = gan.generator_loss(restored, draw())
    loss.backward()
    assert loss.item() == pytest.approx(0.2 * health["generator_hinge"].item())
    assert restored.grad is not None
    assert (restored.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(p.grad is None and p.requires_grad for p in discriminator.parameters())


def test_the_discriminators_loss_moves_its_heads_and_no_image() -> None:
    """Also where the caller forgot to detach."""
    gan, discriminator = adversary()
    restored = images("restored").requires_grad_()
    loss, _ = gan.discriminator_loss(images(), restored * 1, draw())
    loss.backward()
    assert restored.grad is None
    assert all(p.grad is not None for p in discriminator.parameters())


def test_one_step_of_each_side_is_to_its_advantage() -> None:
    """Its own loss falls for the same draw, by what the gradient says."""
    gan, discriminator = adversary(Weights(lecam=0.0))
    discriminator.eval()  # else the power iteration moves the loss too
    restored = images("restored").requires_grad_()
    loss, _ = gan.generator_loss(restored, draw())
    (slope,) = torch.autograd.grad(loss, restored)
    better, _ = gan.generator_loss(restored - 1e-3 * slope / slope.norm(), draw())
    assert (loss - better).item() == pytest.approx(1e-3 * slope.norm().item(), rel=0.1)
    heads = list(discriminator.parameters())
    loss, _ = gan.discriminator_loss(images(), restored, draw())
    slopes = torch.autograd.grad(loss, heads)
    norm = torch.cat([slope.flatten() for slope in slopes]).norm()
    with torch.no_grad():
        for parameter, slope in zip(heads, slopes, strict=True):
            parameter -= 1e-2 * slope / norm
    better, _ = gan.discriminator_loss(images(), restored, draw())
    assert (loss - better).item() == pytest.approx(1e-2 * norm.item(), rel=0.1)


def test_an_image_and_its_copy_are_seen_alike() -> None:
    """Augmented and cropped by the same draws: their logits agree at every step."""
    gan, _ = adversary()
    for step in range(8):
        _, health = gan.discriminator_loss(images(), images(), draw(step))
        torch.testing.assert_close(health["logit_real"], health["logit_fake"])


def test_it_learns_to_tell_noise_from_stripes() -> None:
    """And says so in its health, averaged over the last steps: each augments in its own way."""
    gan, discriminator = adversary(Weights(consistency=0.0))
    optimizer = adamw(discriminator, 2e-3, (0.9, 0.95), 0.0)
    stripes = torch.ones(BATCH, 3, 20, 20)
    stripes[..., ::2] = -1
    rows = []
    for step in range(120):
        loss, health = gan.discriminator_loss(images(), stripes, draw(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows.append(torch.stack(list(health.values())))
    real, fake, right_real, right_fake, hinge = torch.stack(rows[-30:]).mean(0).tolist()
    assert real - fake > 1.5
    assert min(right_real, right_fake) > 0.8
    assert hinge < 0.4


def test_losses_are_float32_under_autocast() -> None:
    gan, _ = adversary()
    with torch.autocast("cpu", torch.bfloat16):
        one, _ = gan.generator_loss(images(), draw())
        other, health = gan.discriminator_loss(images(), images("restored"), draw())
    assert {value.dtype for value in (one, other, *health.values())} == {torch.float32}


# --- ranks ------------------------------------------------------------------------------------------


def play(
    rank: int,
    ranks: int,
    wrap: Callable[[Discriminator], Any],
    reduce: Callable[[Tensor], Tensor] | None,
) -> dict[str, Any]:
    """Three steps of the game on a rank: what it saw, and the state it ends in."""
    features, discriminator = modules()
    train = wrap(discriminator)
    gan = Adversary(features, discriminator, Weights(lecam=1.0), 0, train=train, reduce=reduce)
    # Not Adam: it would blow the rounding of gradients that are 0 up to whole steps.
    optimizer = torch.optim.SGD(discriminator.parameters(), 0.1)
    share = partial(part, dim=0, rank=rank, ranks=ranks)
    restored = nn.Parameter(share(images("restored")))
    rows = []
    for step in range(3):
        drawn = draw(step, rank, ranks)
        loss, _ = gan.generator_loss(restored, drawn)
        (slope,) = torch.autograd.grad(loss, restored)
        loss, health = gan.discriminator_loss(share(images()), restored, drawn)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        restored.data -= slope / ranks  # the mean over the global batch
        rows.append({name: value.item() for name, value in health.items()})
    return {"rows": rows, "restored": restored.data, "state": discriminator.state_dict()}


def play_on_a_rank(rank: int, folder: str) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )

    def mean(values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total / 2

    outcome = play(rank, 2, DistributedDataParallel, mean)
    torch.save(outcome, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_play_as_one(tmp_path: Path) -> None:
    """Two gloo processes under DDP: health, images and every tensor of the state, but for the order of sums."""
    torch.multiprocessing.spawn(play_on_a_rank, (str(tmp_path),), nprocs=2)
    one = play(0, 1, lambda discriminator: discriminator, None)
    two = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert two[0]["rows"] == two[1]["rows"]
    for name, value in two[0]["state"].items():
        assert torch.equal(two[1]["state"][name], value), name
        torch.testing.assert_close(value, one["state"][name], atol=1e-4, rtol=1e-3)
    for found, expected in zip(two[0]["rows"], one["rows"], strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    together = torch.cat([outcome["restored"] for outcome in two])
    torch.testing.assert_close(together, one["restored"], atol=1e-5, rtol=1e-4)


# --- in a session -----------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No tracking, no GPU, and accelerate's global state as it was."""
    monkeypatch.setenv("FLOWPRIOR_MLFLOW", "off")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def train(root: Path, precision: Literal["fp32", "bf16"], kill: int | None = None) -> Any:
    """A loop as a stage has it: a generator of one layer, the game from step 1; the learners' states at its end."""
    optimizer = Optimizer(1e-2, 0, "constant", 0.95, 0.0, 1.0, 0.5)
    plan = Plan(num_steps=4, log_steps=1, checkpoint_steps=2, precision=precision)
    features, discriminator = modules()
    with (
        rng.scoped(0, "generator"),
        Session("toy", config={}, inputs={}, seed=0, plan=plan, root=root) as session,
    ):
        generator = session.learner("generator", nn.Conv2d(3, 3, 1), optimizer)
        heads = session.learner("discriminator", discriminator, optimizer)
        reduce = partial(session.accelerator.reduce, reduction="mean")
        gan = Adversary(
            features.to(session.device), discriminator, PAPER, 1, train=heads.module, reduce=reduce
        )
        for step in session.steps():
            if step == kill:
                raise KeyboardInterrupt
            drawn = Draw(session.generator("step", step), BATCH, session.share)
            restored = generator.module(images()).float()
            loss = (restored - images()).square().mean()
            if gan.active(step):
                with session.autocast():
                    adversarial, _ = gan.generator_loss(restored, drawn)
                loss = loss + adversarial
            generator.update(loss)
            if gan.active(step):
                with session.autocast():
                    loss, health = gan.discriminator_loss(images(), restored, drawn)
                heads.update(loss)
                values = {name: float(value) for name, value in health.items()}
                session.record("gan", step + 1, values)
                assert collapse(session.curves["gan"]) is None
        return {"generator": generator.state(), "discriminator": heads.state()}, session.curves


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_killed_session_ends_as_one_that_was_not(
    tmp_path: Path, precision: Literal["fp32", "bf16"]
) -> None:
    """Both learners and the curve of the game, bit by bit; the checkpoint has no transformer in it."""
    straight, curves = train(tmp_path / "straight", precision)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", precision, kill=3)
    resumed, curves_again = train(tmp_path / "killed", precision)
    assert curves_again["gan"] == curves["gan"]
    assert [row["step"] for row in curves["gan"]] == [2, 3, 4]
    for name in ("module", "average"):
        for learner in ("generator", "discriminator"):
            expected, found = straight[learner][name], resumed[learner][name]
            assert all(torch.equal(found[key], value) for key, value in expected.items())
    assert straight["discriminator"]["module"]["averages.real"] != 0
    assert not any("vit" in key for key in straight["discriminator"]["module"])


# --- the alarm --------------------------------------------------------------------------------------


def health(real: float, fake: float, accuracy: float, hinge: float) -> dict[str, float]:
    """A logged row."""
    return dict(zip(HEALTH, (real, fake, accuracy, accuracy, hinge), strict=True))


WON = health(3.0, -3.0, 1.0, 0.0)
DEAD = health(0.001, 0.0, 0.5, 1.0)
FINE = health(0.3, -0.3, 0.75, 0.7)


@pytest.mark.parametrize(("bad", "word"), [(WON, "has won"), (DEAD, "is dead")])
def test_the_alarm_speaks_when_it_has_been_bad_for_long(bad: dict[str, float], word: str) -> None:
    assert collapse([bad] * 4) is None
    message = collapse([FINE] * 10 + [bad] * 5)
    assert message is not None
    assert word in message
    assert "for 5 looks" in message
    assert "lower" in message.lower()  # what to do
    assert collapse([bad] * 2, looks=2) is not None


@pytest.mark.parametrize("bad", [WON, DEAD])
def test_the_alarm_is_silent_when_there_was_one_good_look(bad: dict[str, float]) -> None:
    for place in range(5):
        rows = [bad] * 5
        rows[place] = FINE
        assert collapse(rows) is None
    assert collapse([bad] * 20 + [FINE]) is None


def test_the_alarm_is_silent_in_a_fair_game() -> None:
    """Also where the discriminator is ahead, and before anything was logged."""
    ahead = health(0.9, -0.9, 0.97, 0.2)
    assert collapse([]) is None
    assert collapse([FINE] * 20) is None
    assert collapse([ahead] * 20) is None
