"""Inception as a judge: against which images, looked at once, and what stands beside the figures."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowprior.evaluation.npz import write_npz
from flowprior.evaluation.on_inception import OnInception

from .pictures import HELD_OUT, Network, moments_of, pictures, reference


def judge(path: Path | None, cache: Path) -> dict[str, float | None]:
    """All figures of some generated images against a reference."""
    evaluator = OnInception(Network(), reference(path), cache)
    return evaluator.judge(pictures(20, "generated").split(6), torch.zeros(20, dtype=torch.int64))


def test_an_npz_of_images_gives_the_figures_of_the_folder_with_them(
    folder: Path, tmp_path: Path
) -> None:
    """Samples that others wrote are a reference, and so are pictures in a tree."""
    write_npz(tmp_path / "x.npz", [pictures(15)], torch.zeros(15, dtype=torch.int64))
    assert torch.equal(torch.cat(list(reference(folder).pieces)), pictures(15))
    assert torch.equal(torch.cat(list(reference(tmp_path / "x.npz").pieces)), pictures(15))
    one, two = judge(folder, tmp_path / "a"), judge(tmp_path / "x.npz", tmp_path / "b")
    assert one == two
    assert one["kid"] is not None


def test_moments_alone_give_the_fid_of_their_images_and_say_what_is_missing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "x.npz", **moments_of(pictures(15)))
    found, whole = judge(tmp_path / "x.npz", tmp_path), judge(folder, tmp_path)
    assert found["fid"] == pytest.approx(whole["fid"], rel=1e-9)
    assert found["inception_score"] == whole["inception_score"]
    assert found["precision"] is found["recall"] is found["kid"] is None
    assert "mu and sigma alone: precision, recall and KID need images" in capsys.readouterr().err


def test_given_moments_are_preferred_to_those_of_the_images_beside_them(
    folder: Path, tmp_path: Path
) -> None:
    """ADM's file has the moments of all training images, and ten thousand of the images."""
    images = pictures(15).permute(0, 2, 3, 1).numpy()
    other = moments_of(pictures(30, "other"))
    np.savez(tmp_path / "both.npz", arr_0=images, **other)
    np.savez(tmp_path / "moments.npz", **other)
    found = judge(tmp_path / "both.npz", tmp_path)
    assert found["fid"] == judge(tmp_path / "moments.npz", tmp_path)["fid"]
    whole = judge(folder, tmp_path)
    assert found["fid"] != whole["fid"]
    assert [found[name] for name in ("precision", "recall", "kid")] == [
        whole[name] for name in ("precision", "recall", "kid")
    ]


def test_real_images_are_looked_at_once(tmp_path: Path) -> None:
    """By whatever stage comes first; other weights look again."""
    first, second, other = Network(), Network(), Network()
    other.sha256 = "t" * 64
    for network in (first, second, other):
        OnInception(network, reference(), tmp_path)
    assert [network.seen for network in (first, second, other)] == [HELD_OUT, 0, HELD_OUT]


def test_without_labels_there_is_the_distance_alone(tmp_path: Path) -> None:
    evaluator = OnInception(Network(), reference(), tmp_path)
    assert set(evaluator.judge([pictures(8)])) == {"fid"}


def test_what_was_compared_stands_beside_the_figures(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **moments_of(pictures(15)))
    facts = [
        OnInception(Network(), reference(path), tmp_path).facts
        for path in (None, tmp_path / "x.npz")
    ]
    assert facts[0] == {
        "extractor": "inception-v3-compat",
        "extractor_sha256": "s" * 64,
        "extractor_resize": "299 x 299, bilinear as in TensorFlow 1",
        "extractor_dtype": "float32",
        "statistics_dtype": "float64",
        "num_real": HELD_OUT,
        "real_moments": "computed",
    }
    assert facts[1] == facts[0] | {"num_real": None, "real_moments": "given"}
