"""scikit-learn's 1 797 scans of handwritten digits, 8 x 8."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from flowprior.core.io import digest
from flowprior.images.sets import Split, split_rows


def read_digits() -> tuple[Float64[np.ndarray, "n 64"], Int64[np.ndarray, " n"]]:
    """The scans, with values from 0 to 16, and their labels, as scikit-learn's `load_digits` gives them.

    They are read from the file that scikit-learn carries, without its import, which would cost every stage seconds.
    """
    package = find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets/data/digits.csv.gz"
        if file.is_file():
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return pixels, labels


class Digits:
    """One split of scikit-learn's 1 797 scans of handwritten digits, [1, 8, 8].

    Raises:
        ValueError: Crops are asked of `images`: digits fill their pixels.
    """

    num_classes = 10
    class_names = tuple("0123456789")
    channels = 1

    def __init__(self, split: Split, split_seed: int) -> None:
        pixels, labels = read_digits()
        everything = torch.from_numpy(np.asarray(labels, dtype=np.int64))
        rows = split_rows(everything, split, split_seed)
        self._pixels = torch.from_numpy(pixels.astype(np.float32))[rows].view(-1, 1, 8, 8) / 8 - 1
        self.labels = everything[rows]
        self.digest = digest(["digits", rows.tolist()])
        self.corrupt: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def images(
        self, rows: Sequence[int] | Tensor, crops: Float[Tensor, "b 4"] | None = None
    ) -> Float[Tensor, "b 1 8 8"]:
        if crops is not None:
            raise ValueError("digits fill their 8 x 8 pixels; they are not cropped")
        return self._pixels[torch.as_tensor(rows)]


def open_digits(split: Split, *, split_seed: int, size: int, **_: Any) -> Digits:
    """The digits as a source of images; see `flowprior.images.opening.open_images`.

    Raises:
        ValueError: Another size is asked for.
    """
    if size != 8:
        raise ValueError(f"digits are 8 x 8, found images.size {size}")
    return Digits(split, split_seed)
