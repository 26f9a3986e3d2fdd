"""What is assumed of data that nobody looked at."""

import pytest

from flowprior.costs.facts import DIGITS, assumed

from .conftest import Changed


def test_features_are_counted_as_the_stage_caps_them(changed: Changed) -> None:
    """Of the held-out images a tenth of the caps; of a table all rows."""

    def counted(preset: str, source: str, **caps: int | None) -> tuple[int, int]:
        changes = {f"extract_features.{name}": value for name, value in caps.items()}
        facts = assumed(changed(preset, {"prior.source": source, **changes}))
        return facts.feature_vectors, facts.feature_dim

    assert counted("digits", "semantic") == (16 * (1438 + 359), 64)
    assert counted("digits", "semantic", max_vectors=1000, max_images=None) == (1000 + 100, 64)
    assert counted("digits", "semantic", max_images=100) == (16 * 110, 64)
    assert counted("digits", "semantic", max_images=5) == (16 * 6, 64)
    assert counted("digits", "gaussian", max_vectors=1000) == (1000, 64)
    whole = {"max_vectors": 10_000_000, "max_images": None}
    assert counted("imagenet", "semantic", **whole) == (1_281_167 * 7 + 50_000 * 20, 768)
    assert counted("imagenet", "low_level", **whole) == (1_281_167 * 7 + 50_000 * 20, 32)
    assert counted("imagenet", "textual") == (151_936, 896)


def test_images_that_are_known_take_the_place_of_what_is_usual(changed: Changed) -> None:
    cfg = changed("digits", {})
    facts = assumed(cfg, DIGITS._replace(train_images=90, held_out_images=10))
    assert (facts.train_images, facts.feature_vectors) == (90, 16 * 100)


@pytest.mark.parametrize(
    "changes",
    [
        {"prior.source": "file", "prior.path": "x.npy"},
        {"prior.path": "/a/folder", "prior.encoder": "timm"},
        {"prior.model": "hf-hub:owner/model", "prior.encoder": "timm"},
    ],
    ids=str,
)
def test_of_features_that_nobody_knows_nothing_is_assumed(
    changes: dict[str, object], changed: Changed
) -> None:
    facts = assumed(changed("imagenet", changes))
    assert (facts.feature_vectors, facts.feature_dim) == (0, 0)


def test_images_smaller_than_a_patch_are_told(changed: Changed) -> None:
    with pytest.raises(ValueError, match="images of 8 pixels are smaller than a patch of vit_base"):
        assumed(changed("digits", {"prior.encoder": "timm"}))
