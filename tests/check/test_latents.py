"""`FlowPrior.check` as a person calls it."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flowprior import FlowPrior
from flowprior.check import latents as module
from flowprior.check.latents import check_latents
from flowprior.core import rng
from flowprior.flow.velocity import VelocityMLP
from flowprior.prior.projection import Projection

DIM = 3


def normal(*shape: int, tag: str = "latents") -> Tensor:
    """Fixed standard normal numbers."""
    return torch.randn(*shape, generator=rng.generator(0, tag))


def plain(targets: Tensor | None) -> FlowPrior:
    """A flow that leaves noise as it is."""
    velocity = VelocityMLP(DIM, 8, 1)
    torch.nn.init.zeros_(velocity.output.weight)
    return FlowPrior(velocity, Projection(torch.eye(DIM), 1.0, "identity", 0), targets=targets)


@pytest.fixture(scope="module")
def prior() -> FlowPrior:
    return plain(normal(4000, DIM, tag="targets"))


def test_fresh_targets_are_good_and_their_density_is_known(prior: FlowPrior) -> None:
    found = prior.check(normal(300, DIM))
    assert found.good
    assert found.verdict == "good"
    gap = found.measures["nll_gap_nats"]
    assert gap.interval[0] < gap.value < gap.interval[1]
    assert found.measures["alignment_loss"].value == pytest.approx(
        found.measures["alignment_loss"].fresh, rel=0.1
    )


def test_any_layout_is_the_same_check(prior: FlowPrior) -> None:
    latents = 0.4 * normal(300, DIM)
    expected = prior.check(latents).to_dict()
    images = latents.view(3, 10, 10, DIM).permute(0, 3, 1, 2)
    assert prior.check(images, channel_dim=1).to_dict() == expected
    assert prior.check(latents.view(3, 100, DIM).double()).to_dict() == expected
    assert prior.check(latents.clone().requires_grad_(True)).to_dict() == expected
    assert prior.check(latents.numpy()).to_dict() == expected


def test_a_check_depends_on_the_seed_alone_and_draws_from_no_global_stream(
    prior: FlowPrior,
) -> None:
    latents = 1.5 * normal(300, DIM)
    before = torch.random.get_rng_state()
    first = prior.check(latents).to_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    again = FlowPrior(prior.velocity, prior.projection, targets=prior.targets)
    assert again.check(latents).to_dict() == first
    assert again.check(latents, seed=1).to_dict() != first


def test_other_targets_can_be_named(prior: FlowPrior) -> None:
    """And are what the check is about, whatever the prior keeps."""
    others = 10 + normal(1000, DIM, tag="others")
    assert prior.check(10 + normal(300, DIM), targets=others).good
    assert prior.check(10 + normal(300, DIM)).verdict == "shifted"
    with pytest.raises(ValueError, match=r"targets must be \[m, 3\], found \[5, 2\]"):
        prior.check(normal(300, DIM), targets=torch.zeros(5, 2))


def test_a_prior_without_targets_compares_with_samples_and_says_so() -> None:
    found = plain(None).check(normal(300, DIM))
    assert found.good
    assert "samples of the prior's flow" in str(found)


def test_a_loaded_prior_checks_as_the_one_that_was_saved(prior: FlowPrior, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior")
    latents = normal(200, DIM)
    again = FlowPrior.load(tmp_path / "prior")
    assert again.check(latents).to_dict() == prior.check(latents).to_dict()


@pytest.mark.parametrize(
    ("latents", "message"),
    [
        (torch.zeros(49, DIM), "at least 100 targets and 50 latents, found 4000 and 49"),
        (torch.full((60, DIM), torch.nan), "60 of 60 latents hold NaN or infinite values"),
        (torch.zeros(60, 5), "latents have 5 channels, this flow prior models 3"),
        (torch.zeros(60, DIM, dtype=torch.bool), "must be floating-point numbers"),
    ],
)
def test_what_cannot_be_checked_is_an_error(
    prior: FlowPrior, latents: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prior.check(latents)


def test_latents_that_are_all_alike_are_collapsed(prior: FlowPrior) -> None:
    found = prior.check(torch.ones(60, DIM))
    assert found.verdict == "collapsed"
    assert "all 60 latents are one and the same vector" in str(found)
    assert "collapsed" in found.to_html()


def test_what_is_printed_has_the_word_the_reason_and_each_figure(prior: FlowPrior) -> None:
    found = prior.check(0.5 * normal(2000, DIM))
    lines = str(found).splitlines()
    assert re.match(r"narrow: the latents' standard deviation is 0\.\d+ of the targets'", lines[0])
    assert "what helps" in lines[1]
    (spread,) = (line for line in lines if "standard deviation over the targets'" in line)
    assert spread.endswith("*")
    assert "1000 of 2000 latents, beside as many of 4000 targets" in lines[-1]
    assert repr(found) == str(found)


def test_the_dictionary_is_json_with_all_figures(prior: FlowPrior) -> None:
    found = prior.check(normal(300, DIM)).to_dict()
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["num_latents"] == 300
    names = {"coverage", "density", "recall", "sliced_w2", "energy_distance", "c2st_accuracy"}
    assert names <= set(found["measures"])
    for one in found["measures"].values():
        assert one["low"] <= one["fresh"] <= one["high"]
        assert math.isfinite(one["value"])


def test_the_page_needs_nothing_else(prior: FlowPrior, tmp_path: Path) -> None:
    page = prior.check(0.5 * normal(300, DIM)).to_html(tmp_path / "check.html")
    assert (tmp_path / "check.html").read_text(encoding="utf-8") == page
    assert not re.search(r"<script|<link|https?://|src=|url\(", page)
    assert "<h1>The latents are <span class='bad'>narrow</span></h1>" in page
    assert page.count("<svg") == 2 + page.count("<tr") - 1


def test_the_figure_shows_latents_over_targets(prior: FlowPrior, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = prior.check(0.5 * normal(300, DIM)).plot()
    assert "narrow" in figure.get_suptitle()
    figure.savefig(tmp_path / "check.png")


def test_many_latents_are_cut_before_anything_is_computed(
    prior: FlowPrior, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    loss = FlowPrior.alignment_loss

    def spy(self: FlowPrior, latents: Tensor, *rest: object, **options: object) -> Tensor:
        seen.append(len(latents))
        return loss(self, latents, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(FlowPrior, "alignment_loss", spy)
    found = check_latents(prior, normal(70_000, DIM))
    assert found.good
    assert found.num_latents == 70_000
    assert max(seen) <= 1000


@pytest.mark.parametrize(
    "circumstances", ["autocast", "inference_mode", "float64 by default", "another default device"]
)
def test_the_circumstances_of_the_process_change_nothing(
    prior: FlowPrior, circumstances: str
) -> None:
    latents = 1.5 * normal(200, DIM)
    expected = prior.check(latents).to_dict()
    again = FlowPrior(prior.velocity, prior.projection, targets=prior.targets)
    if circumstances == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert again.check(latents).to_dict() == expected
    elif circumstances == "another default device":
        with torch.device("meta"):
            assert again.check(latents).to_dict() == expected
    elif circumstances == "inference_mode":
        with torch.inference_mode():
            assert again.check(latents).to_dict() == expected
    else:
        torch.set_default_dtype(torch.float64)
        try:
            assert again.check(latents).to_dict() == expected
        finally:
            torch.set_default_dtype(torch.float32)


def test_other_targets_of_a_prior_are_not_taken_for_those_before() -> None:
    """And only the last few figures are kept."""
    changing = plain(normal(1000, DIM, tag="targets"))
    assert changing.check(normal(200, DIM)).good
    changing.targets = 10 + normal(1000, DIM, tag="targets")
    assert changing.check(normal(200, DIM)).verdict == "shifted"
    for seed in range(8):
        changing.check(normal(60, DIM), seed=seed)
    assert len(module._KNOWN[changing]) <= module.MOST_KNOWN
