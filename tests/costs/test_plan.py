"""The plan: hours, the table that is documented, and what it says of what it cannot count."""

import re

import pytest

from flowprior.costs.facts import assumed
from flowprior.costs.hardware import H100
from flowprior.costs.plan import describe, row, rows, table
from flowprior.costs.stages import STAGES
from flowprior.costs.work import Work

from ..pipeline.closure import ROOT
from .conftest import Changed


def test_hours_are_inverse_to_utilisation_and_to_the_peak(changed: Changed) -> None:
    cfg = changed("smoke", {})
    facts = assumed(cfg)
    works = {stage: work(cfg, facts) for stage, work in STAGES.items()}
    for stage, work in works.items():
        whole, half = (
            row(stage, work, H100._replace(utilisation=u)).gpu_hours for u in (0.5, 0.25)
        )
        assert half == 2 * whole
        operations = work.num_steps * work.cost.flops
        peak = H100.bf16_flops if work.precision == "bf16" else H100.fp32_flops
        assert whole == pytest.approx(operations / (0.5 * peak) / 3600)
        assert bool(work.num_steps) == (stage not in ("extract_features", "project"))
        faster = H100._replace(fp32_flops=10 * H100.fp32_flops, utilisation=0.5)
        assert row(stage, work, faster).gpu_hours == pytest.approx(whole / 10)


@pytest.mark.slow
def test_the_table_of_the_documentation_is_the_plan(imagenet: dict[str, Work]) -> None:
    """Of eight H100; it stands in README.md or in docs/."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    lines = [row(stage, work, H100) for stage, work in imagenet.items()]
    assert table(lines, H100, 8) in text


def test_a_plan_that_is_all_counted_does_not_say_at_least(changed: Changed) -> None:
    cfg = changed("smoke", {})
    text = describe(cfg, assumed(cfg), H100, 2)
    assert re.search(
        r"^in all [\d.e-]+ GPU-hours, \S+ hours on 2 GPUs, \S+ GiB", text, re.MULTILINE
    )
    assert "not counted" not in text
    assert "in part" not in text


def test_the_number_of_gpus_divides_hours_and_memory(changed: Changed) -> None:
    cfg = changed("smoke", {})
    lines = rows(cfg, assumed(cfg), H100)
    found = []
    for gpus in (1, 4):
        numbers = re.search(r"in all (\S+) GPU-hours, (\S+) hours on", table(lines, H100, gpus))
        assert numbers
        found.append([float(number) for number in numbers.groups()])
    (all_one, one), (all_four, four) = found
    assert all_one == all_four == one
    assert four == pytest.approx(one / 4, rel=0.01)
