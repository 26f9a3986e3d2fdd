"""Against which images, by which network, and what stands beside the figures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from flowprior.core import rng
from flowprior.evaluation.config import Evaluation
from flowprior.evaluation.inception import Inception
from flowprior.evaluation.judge import Material, Unjudged, open_judge
from flowprior.evaluation.npz import write_npz
from flowprior.evaluation.on_inception import OnInception
from flowprior.evaluation.reference import Reference, open_reference
from flowprior.images.opening import open_both_splits
from flowprior.images.pixels import from_uint8

SIZE = 4
HELD_OUT = 9


def pictures(n: int, tag: str = "x") -> Tensor:
    """Fixed random bytes, [n, 3, 4, 4]."""
    draw = rng.generator(0, tag)
    return torch.randint(256, (n, 3, SIZE, SIZE), generator=draw).to(torch.uint8)


class HeldOut:
    """Images in memory, as `open_images` gives them."""

    labels = torch.zeros(HELD_OUT, dtype=torch.int64)
    num_classes = 1
    digest = "held out"

    def __len__(self) -> int:
        return HELD_OUT

    def images(self, rows: Any) -> Tensor:
        return from_uint8(pictures(HELD_OUT, "held out")[torch.as_tensor(rows)])


class Network:
    """In place of Inception: twelve numbers of an image."""

    sha256 = "s" * 64

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        self.seen += len(images)
        values = images.flatten(1)[:, :12].float() / 100
        return values, values

    def cache_key(self, images_digest: str) -> dict[str, object]:
        return {"images": images_digest, "weights": self.sha256}


def reference(path: Path | None = None) -> Reference:
    """Opened as the stage does."""
    return open_reference(None if path is None else str(path), HeldOut(), SIZE, 4)


def judge(path: Path | None, cache: Path) -> dict[str, float | None]:
    """All figures of some generated images against a reference."""
    evaluator = OnInception(Network(), reference(path), cache)  # type: ignore[arg-type]
    return evaluator.judge(pictures(20, "generated").split(6), torch.zeros(20, dtype=torch.int64))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Fifteen PNGs of the samples' size, in two folders of their own."""
    for index, image in enumerate(pictures(15)):
        file = tmp_path / f"folder/{index // 10}/{index:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return tmp_path / "folder"


def moments_of(images: Tensor) -> dict[str, np.ndarray]:
    """Mu and sigma as ADM writes them."""
    values = Network()(images)[0].double().numpy()
    return {"mu": values.mean(0), "sigma": np.cov(values.T)}


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


def test_null_is_the_held_out_images(tmp_path: Path) -> None:
    found = reference()
    assert (found.digest, found.num_images, found.moments) == ("held out", HELD_OUT, None)
    assert torch.equal(torch.cat(list(found.pieces)), pictures(HELD_OUT, "held out"))


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
        OnInception(network, reference(), tmp_path)  # type: ignore[arg-type]
    assert [network.seen for network in (first, second, other)] == [HELD_OUT, 0, HELD_OUT]


def test_without_labels_there_is_the_distance_alone(tmp_path: Path) -> None:
    evaluator = OnInception(Network(), reference(), tmp_path)  # type: ignore[arg-type]
    assert set(evaluator.judge([pictures(8)])) == {"fid"}


def test_what_was_compared_stands_beside_the_figures(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", **moments_of(pictures(15)))
    facts = [
        OnInception(Network(), reference(path), tmp_path).facts  # type: ignore[arg-type]
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


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros(3)}, r"has the keys \['x'\]; expected mu and sigma, arr_0"),
        ({"mu": np.zeros(3)}, "expected mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.zeros((2, 2))}, r"mu \[3\] and sigma \[2, 2\]"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "not finite"),
        ({"mu": np.array([None, 1]), "sigma": np.eye(2)}, "cannot be read"),
        ({"arr_0": np.zeros((2, 5, 5, 3), dtype=np.uint8)}, r"images of \[5, 5\] with 3 channels"),
        ({"arr_0": np.zeros((2, 4, 4, 1), dtype=np.uint8)}, "with 1 channels"),
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "arr_0 must be uint8"),
    ],
    ids=["neither", "mu alone", "shapes", "nan", "pickle", "size", "grey", "floats"],
)
def test_an_npz_that_is_no_reference_is_told(
    tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=said) as error:
        reference(tmp_path / "x.npz")
    assert "x.npz" in str(error.value)


def test_other_references_are_told(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for name, said in (
        ("text.npz", "cannot be read"),
        ("absent.npz", "neither a folder nor an .npz"),
        ("empty", "holds no images"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            reference(tmp_path / name)
        assert name in str(error.value)
