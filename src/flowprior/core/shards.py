"""Shards: arrays cut into blocks, blocks as `.npy` members of deterministic tars, tars under one manifest.

The tars are webdataset's (`000000.vectors.npy`): `webdataset.WebDataset` reads them too. An
uncompressed tar keeps each member in one piece, so a reader maps the arrays from disk and gathers
any rows without loading the rest.
"""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowprior.core.artifacts import Artifact, open_artifact
from flowprior.core.io import ArtifactError
from flowprior.core.shard_format import Array, is_split, map_npy, tar_offsets


class Column:
    """One array of one split, mapped from disk block by block.

    Attributes:
        shape: As numpy's.
        dtype: As numpy's.
    """

    def __init__(self, blocks: list[Array]) -> None:
        self._blocks = blocks
        self._starts = list(accumulate(map(len, blocks), initial=0))
        self.shape: tuple[int, ...] = (self._starts[-1], *blocks[0].shape[1:])
        self.dtype = blocks[0].dtype

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Iterator[Array]:
        """The blocks in order, each a read-only map of the file."""
        return iter(self._blocks)

    def gather(self, rows: Any) -> Array:
        """Rows by index, in the order asked for, copied to memory.

        Raises:
            IndexError: An index is out of range.
        """
        rows = np.atleast_1d(np.asarray(rows))
        if not rows.size:
            return np.empty((0, *self.shape[1:]), dtype=self.dtype)
        if rows.dtype.kind not in "iu":
            raise IndexError(f"row indices must be integers, found {rows.dtype}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise IndexError(
                f"row indices must lie in [0, {len(self)}), found {rows.min()} .. {rows.max()}"
            )
        return self._take(rows.astype(np.intp))

    def sample(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """So many rows, drawn with replacement, as a tensor."""
        rows = torch.randint(len(self), (n,), generator=generator).numpy()
        return torch.from_numpy(self._take(rows))

    def _take(self, rows: Array) -> Array:
        """Rows that are known to exist: block by block, then put in the order asked for."""
        order = np.argsort(rows)
        ascending = rows[order]
        cuts = np.searchsorted(ascending, self._starts).tolist()
        found = [
            np.take(block, ascending[start:stop] - first, axis=0, mode="clip")
            for block, first, (start, stop) in zip(
                self._blocks, self._starts, pairwise(cuts), strict=False
            )
            if start < stop
        ]
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        out[order] = np.concatenate(found)
        return out

    def read(self) -> Array:
        """The whole array in memory."""
        return np.concatenate(self._blocks)


class ShardReader:
    """Read an artifact made by `ShardWriter`, verified on opening.

    Args:
        artifact: See `ShardReader.open`.

    Attributes:
        path: The directory.
        manifest: Its manifest.
        digest: Fixes every byte.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.path = artifact.path
        self.manifest = artifact.manifest
        self.digest = artifact.digest

    @classmethod
    def open(cls, path: Path, kind: str, made_by: str) -> "ShardReader":
        """Verify and open; see `io.open_artifact`.

        Raises:
            ArtifactError: The artifact cannot be trusted.
        """
        return cls(open_artifact(path, kind, made_by))

    def rows(self, split: str) -> int:
        """Rows of a split."""
        return int(self._split(split)["rows"])

    def column(self, split: str, field: str) -> Column:
        """One array of a split.

        Raises:
            ArtifactError: There is no such split or field, it is empty, or a shard is not what the
                manifest says.
        """
        facts = self._split(split)
        if field not in facts["fields"]:
            raise ArtifactError(
                f"{self.path} has no array {field!r} in split {split!r}, only {sorted(facts['fields'])}"
            )
        expected = facts["fields"][field]
        try:
            dtype = np.dtype(expected["dtype"][:16])
        except (TypeError, ValueError, SyntaxError) as error:
            raise ArtifactError(f"the manifest of {self.path}, array {field!r}: {error}") from None
        blocks = []
        members: dict[str, dict[str, tuple[int, int]]] = {}
        maps: dict[str, Array] = {}  # one for each tar: a map holds a file open
        for block in facts["blocks"]:
            shard = block["shard"]
            if shard not in self.manifest["files"]:
                raise ArtifactError(f"{self.path / shard} is not among the files of its manifest")
            if shard not in members:
                members[shard] = tar_offsets(self.path / shard)
                maps[shard] = np.memmap(self.path / shard, dtype=np.uint8, mode="r")
            name = f"{block['key']}.{field}.npy"
            if name not in members[shard]:
                raise ArtifactError(f"{self.path / shard} has no member {name!r}")
            shape = (block["rows"], *expected["shape"])
            # Each member once: a short file that names one a million times would be a long array.
            place = members[shard].pop(name)
            blocks.append(map_npy(self.path / shard, maps[shard], name, place, dtype, shape))
        if not blocks:
            raise ArtifactError(f"split {split!r} of {self.path} is empty")
        if sum(map(len, blocks)) != facts["rows"]:
            raise ArtifactError(
                f"split {split!r} of {self.path} holds {sum(map(len, blocks))} rows, its manifest "
                f"says {facts['rows']}"
            )
        return Column(blocks)

    def _split(self, split: str) -> Any:
        splits = self.manifest.get("splits")
        splits = splits if isinstance(splits, dict) else {}
        if split not in splits:
            raise ArtifactError(f"{self.path} has no split {split!r}, only {sorted(splits)}")
        if not is_split(splits[split]):
            raise ArtifactError(f"the manifest of {self.path} does not describe split {split!r}")
        return splits[split]
