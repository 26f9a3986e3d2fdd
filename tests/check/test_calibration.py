"""What the docs say of how often the check is right: the record holds its bars, and a few fresh trials bear it out."""

import json

import pytest

from .calibration import FRESH, RECORDED, Kind, kinds, words

GOOD, NAMED = 0.99, 0.95
FOUND = json.loads(RECORDED.read_text(encoding="utf-8"))


def test_every_kind_and_case_is_recorded() -> None:
    assert list(FOUND) == [kind.name for kind in kinds()]
    for kind in kinds():
        cases = {key.partition(": ")[2] for key in FOUND[kind.name]}
        assert {f"fresh, {n}" for n in FRESH} <= cases
        assert ("3 of 10 modes" in cases) == (kind.few is not None)


@pytest.mark.parametrize("name", FOUND)
def test_the_record_holds_its_bars(name: str) -> None:
    for key, said in FOUND[name].items():
        word = key.partition(": ")[0]
        least = GOOD if word == "good" else NAMED
        assert said.get(word, 0) >= least * sum(said.values()) > 0, (key, said)


@pytest.mark.slow
@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.name)
def test_fresh_trials_say_the_same(kind: Kind) -> None:
    """With targets and latents that the record has not seen."""
    for key, said in words(kind, 4, seed=1).items():
        assert said[key.partition(": ")[0]] == 4, (key, said)
