"""Which network judges follows from the parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flowprior.evaluation.config import Evaluation
from flowprior.evaluation.inception import Inception
from flowprior.evaluation.judge import Judge, Material, Unjudged, open_judge
from flowprior.evaluation.on_inception import OnInception
from flowprior.evaluation.reconstruction import reconstruction_metrics
from flowprior.images.opening import open_both_splits

from .pictures import HELD_OUT, SIZE, HeldOut, Network, pictures, reference


def judge(path: Path | None, cache: Path) -> dict[str, float | None]:
    """All figures of some generated images against a reference."""
    evaluator = OnInception(Network(), reference(path), cache)  # type: ignore[arg-type]
    return evaluator.judge(pictures(20, "generated").split(6), torch.zeros(20, dtype=torch.int64))


def test_nothing_that_judges_still_lets_the_images_be_made() -> None:
    made = []
    assert Unjudged().judge(made.append(i) or pictures(1) for i in range(3)) == {}
    assert made == [0, 1, 2]
    assert set(Unjudged().facts.values()) == {None}


def material(tmp_path: Path, images: Any, size: int, **evaluation: str | None) -> Material:
    """What a judge is built from."""
    section = {"judge": "none", "weights": None, "reference": None} | evaluation
    return Material(
        train=images[0],
        held_out=images[1],
        size=size,
        batch=4,
        evaluation=Evaluation(**section),
        reference=None,
        cache=tmp_path,
        device=torch.device("cpu"),
    )


def test_which_network_judges_follows_from_the_parameters(
    tmp_path: Path, inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = HeldOut(), HeldOut()
    assert isinstance(open_judge(material(tmp_path, own, SIZE, judge="none")), Unjudged)
    digits = open_both_splits({"source": "digits", "split_seed": 0, "size": 8})
    judge = open_judge(material(tmp_path, digits, 8, judge="digits"))
    assert judge.facts["extractor"] == "digits"
    assert judge.facts["num_real"] == 359
    assert len(str(judge.facts["extractor_sha256"])) == 64
    monkeypatch.setattr(Inception, "__call__", lambda self, images: Network()(images))
    weights = str(inception_weights)
    judge = open_judge(material(tmp_path, own, SIZE, judge="inception", weights=weights))
    assert judge.facts["extractor"] == "inception-v3-compat"


OWN = """
class Brightness:
    def __init__(self, real, scale):
        self.facts = {"extractor": "brightness", "num_real": len(real)}
        self.mean = float(real.images(range(len(real))).mean())
        self.scale = scale

    @classmethod
    def build(cls, material):
        return cls(material.held_out, material.size)

    def judge(self, pieces, labels=None):
        shades = [float(piece.float().mean()) / 127.5 - 1 for piece in pieces]
        return {"shade": sum(shades) / len(shades) - self.mean}
"""


def test_a_judge_of_ones_own_gets_the_material(
    tmp_path: Path, write_plugin: Callable[..., Path]
) -> None:
    """Without an edit of the package; its figures get the names that it gives them."""
    write_plugin("evaluation", OWN)
    own = HeldOut(), HeldOut()
    name = "plugins.evaluation.own:Brightness"
    judge = open_judge(material(tmp_path, own, SIZE, judge=name))
    assert isinstance(judge, Judge)
    assert judge.facts == {"extractor": "brightness", "num_real": HELD_OUT}
    assert judge.judge([pictures(HELD_OUT, "held out")])["shade"] == pytest.approx(0, abs=1e-5)
    digits = open_both_splits({"source": "digits", "split_seed": 0, "size": 8})
    judge = open_judge(material(tmp_path, digits, 8, judge=name))
    white = reconstruction_metrics(torch.ones_like, digits[1], judge, 100, as_bytes=False)
    assert white["rshade"] > 0.5


def test_an_unknown_judge_is_told_by_the_parameters(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        material(tmp_path, (HeldOut(), HeldOut()), SIZE, judge="incepton")
