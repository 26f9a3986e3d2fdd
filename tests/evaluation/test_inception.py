"""FID and its companions on Inception features: known answers, and those of torch-fidelity."""

import os
import pickle
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from flowprior.core import rng
from flowprior.evaluation import inception
from flowprior.evaluation.fidelity import NEIGHBOURS
from flowprior.evaluation.inception import (
    EXTRACTOR,
    Features,
    Inception,
    cached,
    extract_generated,
    extract_real,
    fid,
    inception_metrics,
    published,
)

from ..conftest import write_inception_weights

CPU = torch.device("cpu")


def pixels(images: Tensor) -> tuple[Tensor, Tensor]:
    """In place of the network: four pixels are the features, and three times these the logits."""
    values = images.flatten(1).float() / 16
    return values, 3 * values


def images(n: int, tag: str = "x", low: int = 0, high: int = 256) -> Tensor:
    """Fixed random bytes, [n, 1, 2, 2]."""
    draw = rng.generator(0, tag)
    return torch.randint(low, high, (n, 1, 2, 2), generator=draw).to(torch.uint8)


def pictures(n: int, tag: str = "x") -> Tensor:
    """Colour images that differ in more than noise, [n, 3, 16, 16]."""
    coarse = torch.randint(256, (n, 3, 4, 4), generator=rng.generator(0, tag))
    return coarse.repeat_interleave(4, -1).repeat_interleave(4, -2).to(torch.uint8)


def compare(generated: Tensor, real: Tensor) -> dict[str, float | None]:
    """All figures by four pixels."""
    sides = extract_generated(generated.split(7), pixels), extract_real([real], len(real), pixels)
    return inception_metrics(*sides)


@pytest.fixture(scope="module")
def network(inception_weights: Path) -> Inception:
    """The real network with random weights."""
    return Inception(inception_weights, CPU)


# --- moments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_moments_are_numpys_whatever_the_pieces(batch: int) -> None:
    """In float64, the covariance divided by n - 1, for generated and for real images."""
    some = images(30)
    values = pixels(some)[0].double().numpy()
    for found in (
        extract_generated(some.split(batch), pixels),
        extract_real(some.split(batch), 30, pixels),
    ):
        assert found.mean.dtype == found.covariance.dtype == torch.float64
        assert np.allclose(found.mean, values.mean(0), rtol=1e-12)
        assert np.allclose(found.covariance, np.cov(values.T), rtol=1e-12)
        assert torch.equal(found.pool, pixels(some)[0])
        assert found.num_images == 30


def test_of_many_real_images_some_features_are_kept_and_all_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evenly over the images, so that the memory does not grow with their number."""
    some = images(25)
    everything = extract_real(some.split(4), 25, pixels)
    monkeypatch.setattr(inception, "MAX_POOL", 5)
    found = extract_real(some.split(4), 25, pixels)
    assert torch.equal(found.mean, everything.mean)
    assert torch.equal(found.covariance, everything.covariance)
    assert torch.equal(found.pool, everything.pool[4::5])
    assert found.num_images == 25


def test_one_image_has_no_covariance_and_none_has_nothing() -> None:
    with pytest.raises(ValueError, match="two images"):
        extract_real([images(1)], 1, pixels)
    with pytest.raises(ValueError, match="no real images"):
        extract_real([], 0, pixels)


# --- known answers ----------------------------------------------------------------------------------


def test_the_fid_of_shifted_images_is_the_square_of_the_shift() -> None:
    """16 levels are one unit, in each of four dims."""
    some = images(50, high=200)
    found = compare(some + 16, some)
    assert found["fid"] == pytest.approx(4, rel=1e-9)


def test_a_set_against_itself_is_at_zero_and_within_its_own_manifold() -> None:
    some = images(60)
    found = compare(some.flip(0), some)
    assert found["fid"] == pytest.approx(0, abs=1e-9)
    assert found["precision"] == found["recall"] == 1
    # The unbiased estimate of 0 may be negative; kernels are of order (256 / 4)^3.
    assert abs(found["kid"] or 0) < 1e5
    assert compare(images(60, "y", high=10), some)["kid"] > 1e5


def test_images_all_alike_have_an_inception_score_of_one() -> None:
    found = compare(images(1).repeat(40, 1, 1, 1), images(40))
    assert found["inception_score"] == pytest.approx(1, rel=1e-12)


def test_sure_and_equally_frequent_classes_are_counted_by_the_inception_score() -> None:
    """Exp of the mutual information; ten parts of a hundred images each lose a little of it."""
    one_hot = 255 * torch.eye(4).to(torch.uint8).view(4, 1, 2, 2).repeat(250, 1, 1, 1)
    assert compare(one_hot, images(40))["inception_score"] == pytest.approx(4, rel=0.05)


def test_one_real_image_again_and_again_is_precise_and_recalls_nothing() -> None:
    """Pins which input is which on this path too."""
    real = images(25)  # so few that distances are exact, not by matrix products
    found = compare(real[:1].repeat(25, 1, 1, 1), real)
    assert found["precision"] == 1
    assert found["recall"] == pytest.approx(1 / 25, abs=1e-6)


def test_everything_real_and_as_much_besides_recalls_all_and_is_less_precise() -> None:
    """The reverse."""
    generated = images(25)
    found = compare(generated, generated[:1].repeat(25, 1, 1, 1))
    assert found["precision"] == pytest.approx(1 / 25, abs=1e-6)
    assert found["recall"] == 1


def test_published_moments_give_a_fid_and_null_for_what_needs_images() -> None:
    """The inception score needs no real images."""
    generated = extract_generated([images(30)], pixels)
    real = extract_real([images(40, "y")], 40, pixels)
    found = inception_metrics(generated, published(real.mean, real.covariance))
    everything = inception_metrics(generated, real)
    assert found["fid"] == everything["fid"]
    assert found["inception_score"] == everything["inception_score"]
    assert [found[name] for name in ("precision", "recall", "kid")] == [None] * 3


def test_moments_of_another_width_are_refused() -> None:
    real = published(torch.zeros(7), torch.eye(7))
    with pytest.raises(ValueError, match="moments of 7 features"):
        fid(extract_generated([images(9)], pixels), real)


def test_too_few_images_for_neighbours_are_told() -> None:
    with pytest.raises(ValueError, match=f"found 20 generated and {NEIGHBOURS} real"):
        compare(images(20), images(NEIGHBOURS))


# --- the real network -------------------------------------------------------------------------------


class _Set(Dataset[Tensor]):
    def __init__(self, of: Tensor) -> None:
        self._of = of

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, index: int) -> Tensor:
        return self._of[index]


@pytest.mark.slow
def test_all_figures_are_torch_fidelitys_own(
    network: Inception, inception_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for in one call with the extractor named; but for sums in float64 instead of float32."""
    from torch_fidelity import calculate_metrics

    generated, real = pictures(10), pictures(5, "y")
    found = inception_metrics(
        extract_generated(generated.split(5), network),
        extract_real(real.split(5), len(real), network),
    )
    theirs = calculate_metrics(
        input1=_Set(generated),
        input2=_Set(real),
        feature_extractor=EXTRACTOR,
        feature_extractor_weights_path=str(inception_weights),
        **dict.fromkeys(("fid", "isc", "prc", "kid"), True),
        **dict.fromkeys(("cuda", "cache", "verbose"), False),
        kid_subset_size=5,
        save_cpu_ram=True,
        batch_size=5,
    )
    assert found["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3)
    assert found["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert found["precision"] == theirs["precision"]
    assert found["recall"] == theirs["recall"]
    assert found["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)


@pytest.mark.slow
def test_the_degenerate_set_is_precise_on_the_real_network(network: Inception) -> None:
    """One of five real images, repeated: precision 1; of the others, none is recalled."""
    real = pictures(5, "z")
    found = inception_metrics(
        extract_generated([real[:1].repeat(5, 1, 1, 1)], network),
        extract_real([real], 5, network),
    )
    assert found["precision"] == 1
    assert found["recall"] <= 1 / 5 + 1e-6


# --- its weights ------------------------------------------------------------------------------------


class Malicious:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_file_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    torch.save({"x": Malicious(tmp_path / "ran")}, tmp_path / "new.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Malicious(tmp_path / "ran")))
    for name in ("new", "old"):
        with pytest.raises(ValueError, match=f"{name}.pth are not torch-fidelity's Inception"):
            Inception(tmp_path / f"{name}.pth", CPU)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", ["text", "nothing", "truncated", "list", "other"])
def test_other_files_are_refused_in_a_line(
    tmp_path: Path, inception_weights: Path, content: str
) -> None:
    path = tmp_path / "w.pth"
    if content == "list":
        torch.save([torch.zeros(3)], path)
    elif content == "other":
        torch.save({"fc.weight": torch.zeros(3)}, path)
    else:
        whole = inception_weights.read_bytes()[:4_000_000]
        path.write_bytes({"text": b"weights", "nothing": b"", "truncated": whole}[content])
    with pytest.raises(
        ValueError, match=r"w\.pth are not torch-fidelity's Inception weights"
    ) as error:
        Inception(path, CPU)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"w\.pth do not exist"):
        Inception(tmp_path / "w.pth", CPU)


def test_without_a_network_the_message_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(
        ValueError, match=r"evaluation\.weights.*evaluation\.judge to none"
    ) as error:
        Inception(None, CPU)
    assert "no network" in str(error.value)


def test_the_file_in_torchs_hub_folder_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Inception, inception_weights: Path
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    name = "weights-inception-2015-12-05-6726825d.pth"
    (tmp_path / "checkpoints" / name).symlink_to(inception_weights)
    assert Inception(None, CPU).sha256 == network.sha256


# --- the cache --------------------------------------------------------------------------------------


class Counting:
    """Computes features of some images, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> Features:
        self.times += 1
        return extract_real([images(20)], 20, pixels)


def same(one: Features, two: Features) -> bool:
    """To the bit."""
    return one.num_images == two.num_images and all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(one[:3], two[:3], strict=True)
    )


def test_features_are_computed_once_and_come_back_to_the_bit(tmp_path: Path) -> None:
    compute = Counting()
    first = cached(tmp_path, {"images": "a"}, compute)
    content = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert same(cached(tmp_path, {"images": "a"}, compute), first)
    assert compute.times == 1
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content
    assert len(content) == 2


def test_other_images_or_other_weights_are_computed_anew(
    tmp_path: Path, network: Inception
) -> None:
    other = Inception(write_inception_weights(tmp_path / "other.pth", seed=1), CPU)
    compute = Counting()
    for key in (network.cache_key("a"), network.cache_key("b"), other.cache_key("a")):
        cached(tmp_path / "cache", key, compute)
    assert compute.times == 3
    cached(tmp_path / "cache", network.cache_key("a"), compute)
    assert compute.times == 3


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "no note", "bad note", "other key"])
def test_a_damaged_file_is_computed_again_and_mended(tmp_path: Path, damage: str) -> None:
    compute = Counting()
    first = cached(tmp_path, {"images": "a"}, compute)
    (file,) = tmp_path.glob("*.safetensors")
    note = file.with_suffix(".json")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    if damage == "flip":
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:100])
    elif damage == "gone":
        file.unlink()
    elif damage == "no note":
        note.unlink()
    elif damage == "bad note":
        note.write_text("[")
    else:
        note.write_text(note.read_text().replace('"a"', '"b"'))
    assert same(cached(tmp_path, {"images": "a"}, compute), first)
    assert compute.times == 2
    assert same(cached(tmp_path, {"images": "a"}, compute), first)
    assert compute.times == 2
