"""Which real images samples are compared with."""

from pathlib import Path

import numpy as np
import pytest
import torch

from .pictures import HELD_OUT, pictures, reference


def test_null_is_the_held_out_images(tmp_path: Path) -> None:
    found = reference()
    assert (found.digest, found.num_images, found.moments) == ("held out", HELD_OUT, None)
    assert torch.equal(torch.cat(list(found.pieces)), pictures(HELD_OUT, "held out"))


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
