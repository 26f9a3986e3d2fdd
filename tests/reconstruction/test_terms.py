"""The terms of the reconstruction: what is off costs nothing, what is on learns, resumes and is watched."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from flowprior.core import rng
from flowprior.core.rng import Draw
from flowprior.reconstruction import terms as image_losses
from flowprior.reconstruction.adversarial import HEALTH
from flowprior.reconstruction.discriminator import Discriminator, FrozenFeatures
from flowprior.reconstruction.perceptual import Perceptual
from flowprior.reconstruction.terms import AdversarialTerm, ImageLosses, PerceptualTerm
from flowprior.training.plan import Plan
from flowprior.training.session import Session
from tests.training.runs import OPTIMIZER, assert_equal, quiet, reset  # noqa: F401

PLAN = Plan(num_steps=8, log_steps=2, checkpoint_steps=3, precision="fp32")
OFF = PerceptualTerm(0.0, 0, True), AdversarialTerm(0.0, 0, 0.001, 4.0, "tiny", True, 0.01)
START = 3
BATCH, SIDE = 4, 16


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Accelerate's state of other tests."""
    reset()
    yield
    reset()


class Difference(nn.Module):
    """In the place of an LPIPS network: what `Perceptual` asks of one, on the pixels themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = nn.Identity()
        self.lins = [nn.Conv2d(3, 1, 1, bias=False)]
        nn.init.ones_(self.lins[0].weight)

    def net(self, images: Tensor) -> list[Tensor]:
        return [images]


def tiny_discriminator(name: str, *, pretrained: bool) -> tuple[FrozenFeatures, Discriminator]:
    """A transformer of four narrow blocks, and its heads."""
    assert name == "tiny"
    vit = VisionTransformer(
        img_size=SIDE, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=0
    )
    return FrozenFeatures(vit, (0.5,) * 3, (0.5,) * 3), Discriminator(32)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of the same faces; the real ones have tests of their own."""
    monkeypatch.setattr(image_losses, "build_discriminator", tiny_discriminator)
    monkeypatch.setattr(
        image_losses, "build_perceptual", lambda pretrained: Perceptual(Difference())
    )


def terms(
    perceptual: float = 0.5, adversarial: float = 0.2, warmup_steps: int = 4
) -> tuple[PerceptualTerm, AdversarialTerm]:
    """Both terms on, the game from the fourth step."""
    return (
        OFF[0]._replace(weight=perceptual, warmup_steps=warmup_steps),
        OFF[1]._replace(weight=adversarial, start_step=START),
    )


def train(
    root: Path,
    chosen: tuple[PerceptualTerm, AdversarialTerm],
    kill: int | None = None,
) -> dict[str, Any]:
    """A picture that learns to be the images; killed after the updates of a step if asked for."""
    with Session("judged", config={}, inputs={}, seed=0, plan=PLAN, root=root) as session:
        picture = nn.Linear(1, 3 * SIDE * SIDE, bias=False)
        with rng.scoped(0, "picture"):
            nn.init.normal_(picture.weight, std=0.1)
        learner = session.learner("picture", picture, OPTIMIZER)
        judges = ImageLosses(session, *chosen)
        heads = []
        for step in session.steps():
            images = torch.rand(BATCH, 3, SIDE, SIDE, generator=session.generator("x", step))
            restored = learner.module(torch.ones(BATCH, 1)).view_as(images)
            draw = Draw(session.generator("draw", step), BATCH, session.share, session.gather)
            loss, logged = judges(images, restored, step, draw, picture.weight)
            learner.update(loss)
            judges.follow(images, restored, step, draw)
            critic = session._learners.get("discriminator")
            heads.append(critic and critic.state()["module"]["heads.0.output.bias"].clone())
            if step == kill:
                raise KeyboardInterrupt
            session.log(step, loss=loss, **logged)
        return {
            "state": {name: each.state() for name, each in session._learners.items()},
            "curves": session.curves,
            "heads": heads,
        }


def test_what_is_off_is_neither_built_nor_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No network, no learner, no row; the loss is the squared error."""
    for name in ("build_discriminator", "build_perceptual"):
        monkeypatch.setattr(image_losses, name, lambda *a, **k: pytest.fail("it was built"))
    found = train(tmp_path, OFF)
    assert list(found["state"]) == ["picture"]
    assert list(found["curves"]) == ["train"]
    for row in found["curves"]["train"]:
        assert row.keys() == {"step", "loss", "reconstruction"}
        assert row["loss"] == row["reconstruction"]


def test_the_perceptual_term_warms_up(tmp_path: Path) -> None:
    """Nothing at step 0, half way at half the steps, its weight from then on."""
    images, restored = torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)
    with Session("judged", config={}, inputs={}, seed=0, plan=PLAN, root=tmp_path) as session:
        judges = ImageLosses(session, *terms(adversarial=0.0))
        draw = Draw(rng.generator(0), 2)
        found = [judges(images, restored, step, draw, torch.zeros(1)) for step in (0, 2, 4, 9)]
    squared = (images - restored).square().mean()
    distance = found[0][1]["perceptual"]
    assert distance > 0
    for (loss, logged), share in zip(found, (0, 0.5, 1, 1), strict=True):
        assert torch.equal(logged["perceptual"], distance)
        torch.testing.assert_close(loss, squared + share * 0.5 * distance)


def test_the_game_begins_when_it_should(tmp_path: Path) -> None:
    """Until then the heads stay as they are and the curve has no rows; then both move."""
    found = train(tmp_path, terms())
    heads = found["heads"]
    assert all(torch.equal(heads[0], head) for head in heads[:START])
    assert not torch.equal(heads[START], heads[0])
    rows = found["curves"]["gan"]
    assert [row["step"] for row in rows] == [4, 6, 8]
    names = {"step", *HEALTH, "generator_hinge", "gradient_ratio", "grad_norm"}
    assert all(row.keys() == names for row in rows)
    assert all(0 < row["gradient_ratio"] < float("inf") for row in rows)
    quiet_run = train(tmp_path / "quiet", terms(adversarial=0.0))
    one, other = (run["state"]["picture"]["module"]["weight"] for run in (found, quiet_run))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kill", [1, 3, 6])
def test_a_killed_run_goes_on_with_the_discriminator(tmp_path: Path, kill: int) -> None:
    """Heads, averages of LeCam, optimisers and curves to the bit."""
    whole = train(tmp_path / "whole", terms())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "killed", terms(), kill=kill)
    resumed = train(tmp_path / "killed", terms())
    assert_equal(resumed["state"], whole["state"])
    assert resumed["curves"] == whole["curves"]
    assert float(whole["state"]["discriminator"]["module"]["averages.real"]) != 0


def test_a_lost_game_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(image_losses, "collapse", lambda rows: "the discriminator is dead")
    train(tmp_path, terms())
    assert capsys.readouterr().err.count("judged: WARNING the discriminator is dead") == 1
