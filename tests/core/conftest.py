"""Artifacts to tamper with."""

from pathlib import Path

import numpy as np
import pytest

from .written import write


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of two arrays in three blocks; not to be changed."""
    arrays = {"x": np.arange(16.0).reshape(8, 2), "y": np.arange(8)}
    root = tmp_path_factory.mktemp("written") / "vectors"
    return write(root, [("train", arrays)], rows_per_block=3, blocks_per_shard=64)
