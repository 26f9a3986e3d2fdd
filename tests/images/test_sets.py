"""The split never moves with a run's seed; other images than an artifact was made from are told."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowprior.images.folder import ImageFolder
from flowprior.images.sets import SPLITS, WrongImagesError, batches, check_images, split_rows

from .sources import PROPERTY, SIZE, grey, write_tree


@PROPERTY
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    split_seed=st.integers(0, 1000),
    shuffle=st.integers(0, 1000),
)
def test_the_split_is_disjoint_covering_and_stratified(
    counts: list[int], split_seed: int, shuffle: int
) -> None:
    """Every row is in one split, ascending, and a fifth of every class is held out, rounded."""
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(shuffle))]
    rows = {split: split_rows(labels, split, split_seed) for split in SPLITS}
    assert sorted([*rows["train"].tolist(), *rows["validation"].tolist()]) == list(
        range(len(labels))
    )
    held_out = labels[rows["validation"]].bincount(minlength=len(counts)).tolist()
    assert held_out == [round(count * 0.2) for count in counts]
    for split in SPLITS:
        assert rows[split].tolist() == sorted(rows[split].tolist())
        assert torch.equal(rows[split], split_rows(labels, split, split_seed))


def test_the_split_moves_with_its_seed_and_with_nothing_else() -> None:
    """Another split seed holds out other rows; the global stream neither decides nor is touched."""
    labels = torch.arange(100) % 4
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    one = split_rows(labels, "validation", 0)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(one, split_rows(labels, "validation", 0))
    assert not torch.equal(one, split_rows(labels, "validation", 1))


def test_the_split_of_a_class_does_not_depend_on_the_others() -> None:
    """Adding a class moves no row of the old ones between the splits."""
    labels = torch.arange(60) % 3
    more = torch.cat([labels, torch.full((20,), 7)])
    old = split_rows(more, "validation", 0)
    assert torch.equal(old[old < 60], split_rows(labels, "validation", 0))


def test_other_images_than_an_artifact_was_made_from_are_told(tmp_path: Path) -> None:
    write_tree(tmp_path, ["ant", "bee"], 10)
    images = ImageFolder(tmp_path, "train", 0, SIZE)
    check_images(images, images.digest, Path("data/targets"), "extract_features")
    check_images(images, None, Path("data/targets"), "extract_features")
    grey(99).save(tmp_path / "bee" / "late.png")
    with pytest.raises(WrongImagesError, match=r"data/targets .*--downstream extract_features"):
        check_images(
            ImageFolder(tmp_path, "train", 0, SIZE),
            images.digest,
            Path("data/targets"),
            "extract_features",
        )


@PROPERTY
@given(n=st.integers(0, 50), size=st.integers(1, 60))
def test_batches_cover_every_index_once_in_order(n: int, size: int) -> None:
    """All but the last are full."""
    found = list(batches(n, size))
    assert [i for batch in found for i in batch] == list(range(n))
    assert all(len(batch) == size for batch in found[:-1])
    assert all(0 < len(batch) <= size for batch in found)
