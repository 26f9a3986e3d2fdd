"""Shards: arrays cut into blocks, blocks as `.npy` members of deterministic tars, tars under one manifest.

The tars are webdataset's (`000000.vectors.npy`): `webdataset.WebDataset` reads them too. An
uncompressed tar keeps each member in one piece, so a reader maps the arrays from disk and gathers
any rows without loading the rest.
"""

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowprior.core.io import Artifact, ArtifactError, open_artifact, write_manifest
from flowprior.core.tars import tar_members

Array = NDArray[Any]
FLOAT16_MAX = 65504.0


class ShardWriter:
    """Write rows of named arrays, split by split, into shards of a directory.

    Use inside `atomic_dir`; call `close` for the manifest. Equal rows give equal bytes.

    Args:
        directory: An empty directory.
        rows_per_block: Rows of one `.npy` member.
        blocks_per_shard: Members of each array in one tar.
    """

    def __init__(
        self, directory: Path, rows_per_block: int = 8192, blocks_per_shard: int = 64
    ) -> None:
        if rows_per_block < 1 or blocks_per_shard < 1:
            raise ValueError("rows_per_block and blocks_per_shard must be at least 1")
        self._directory = directory
        self._rows_per_block = rows_per_block
        self._blocks_per_shard = blocks_per_shard
        self._splits: dict[str, dict[str, Any]] = {}
        self._split: str | None = None
        self._pending: list[dict[str, Array]] = []
        self._tar: Any = None
        self._open_shard: tuple[str, int] | None = None
        self._path = directory

    def write(self, split: str, arrays: Mapping[str, Array]) -> None:
        """Append rows to a split.

        Args:
            split: `train` or `validation`; the splits come one after the other.
            arrays: Arrays with the same number of rows; names, dtypes and trailing shapes stay the
                same within a split. They are copied.

        Raises:
            ValueError: The arrays disagree with one another or with what was written, or the split
                was left for another one before.
        """
        rows = {len(array) for array in arrays.values()}
        if len(rows) != 1:
            raise ValueError(
                f"arrays of one call must have equally many rows, found {sorted(rows)}"
            )
        fields = {
            name: {"dtype": array.dtype.str, "shape": list(array.shape[1:])}
            for name, array in sorted(arrays.items())
        }
        if split != self._split:
            if split in self._splits:
                raise ValueError(f"split {split!r} was left for {self._split!r} and is closed")
            self._flush()
            self._split = split
            self._splits[split] = {"fields": fields, "rows": 0, "blocks": []}
        known = self._splits[split]["fields"]
        if known != fields:
            raise ValueError(f"split {split!r} holds {known}, cannot append {fields}")
        self._pending.append({name: np.array(array) for name, array in arrays.items()})
        while sum(len(next(iter(part.values()))) for part in self._pending) >= self._rows_per_block:
            merged = self._merge()
            self._write_block({k: v[: self._rows_per_block] for k, v in merged.items()})
            self._pending = [{k: v[self._rows_per_block :] for k, v in merged.items()}]

    def close(self, *, kind: str, provenance: Mapping[str, object], **facts: object) -> None:
        """Write what is pending and the manifest; see `io.write_manifest`."""
        self._flush()
        self._close_tar()
        write_manifest(
            self._directory, kind=kind, provenance=provenance, splits=self._splits, **facts
        )

    def _flush(self) -> None:
        if self._pending:
            merged = self._merge()
            self._pending = []
            if len(next(iter(merged.values()))):
                self._write_block(merged)

    def _merge(self) -> dict[str, Array]:
        return {
            name: np.concatenate([part[name] for part in self._pending], dtype=first.dtype)
            for name, first in self._pending[0].items()
        }

    def _write_block(self, arrays: Mapping[str, Array]) -> None:
        from webdataset import TarWriter

        split = str(self._split)
        facts = self._splits[split]
        index = len(facts["blocks"])
        shard = index // self._blocks_per_shard
        name = f"{split}-{shard:06d}.tar"
        if self._open_shard != (split, shard):
            self._close_tar()
            self._tar = TarWriter(str(self._directory / name), encoder=False, mtime=0)
            self._open_shard = (split, shard)
            self._path = self._directory / name
        sample: dict[str, Any] = {"__key__": f"{index:06d}"}
        for field, array in sorted(arrays.items()):
            buffer = io.BytesIO()
            np.lib.format.write_array(
                buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False
            )
            sample[f"{field}.npy"] = buffer.getvalue()
        with self._telling():
            self._tar.write(sample)
        rows = len(next(iter(arrays.values())))
        facts["blocks"].append({"shard": name, "key": sample["__key__"], "rows": rows})
        facts["rows"] += rows

    def _close_tar(self) -> None:
        if self._tar is not None:
            with self._telling():
                self._tar.close()
            self._tar = None

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """An error of the disk names the shard."""
        try:
            yield
        except OSError as error:
            with suppress(OSError, ValueError):  # else its finaliser would try again, and complain
                self._tar.close()
            self._tar = None
            error.filename = error.filename or str(self._path)
            raise


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
                members[shard] = _members(self.path / shard)
                maps[shard] = np.memmap(self.path / shard, dtype=np.uint8, mode="r")
            name = f"{block['key']}.{field}.npy"
            if name not in members[shard]:
                raise ArtifactError(f"{self.path / shard} has no member {name!r}")
            shape = (block["rows"], *expected["shape"])
            # Each member once: a short file that names one a million times would be a long array.
            place = members[shard].pop(name)
            blocks.append(_map_npy(self.path / shard, maps[shard], name, place, dtype, shape))
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
        if not _well_formed(splits[split]):
            raise ArtifactError(f"the manifest of {self.path} does not describe split {split!r}")
        return splits[split]


def _well_formed(split: object) -> bool:
    """Whether a manifest's entry of a split has the form that `ShardWriter` gives it."""
    match split:
        case {"rows": int(), "fields": dict(fields), "blocks": list(blocks)}:
            return all(map(_is_field, fields.values())) and all(map(_is_block, blocks))
    return False


def _is_field(field: object) -> bool:
    match field:
        case {"dtype": str(), "shape": list(shape)}:
            return len(shape) < 32 and all(isinstance(n, int) and n >= 0 for n in shape)
    return False


def _is_block(block: object) -> bool:
    match block:
        case {"shard": str(), "key": str(), "rows": int(rows)}:
            return rows > 0
    return False


def _members(path: Path) -> dict[str, tuple[int, int]]:
    """Name to (offset, size) of the regular files of a tar; anything else in it is an error."""
    infos = tar_members(path)
    for info in infos:
        if not info.isreg() or "/" in info.name:
            raise ArtifactError(f"{path} holds {info.name!r}, which is not a plain file of its own")
    return {info.name: (info.offset_data, info.size) for info in infos}


def _map_npy(
    path: Path,
    mapped: Array,
    name: str,
    place: tuple[int, int],
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> Array:
    """Map one `.npy` member, after checking that its header says what the manifest says."""
    offset, size = place
    with path.open("rb") as file:
        file.seek(offset)
        try:
            np.lib.format.read_magic(file)
            found = np.lib.format.read_array_header_1_0(file)
        except Exception as error:  # numpy parses it as Python and raises whatever that provokes
            raise ArtifactError(f"{path}: member {name!r} is not an .npy array: {error}") from None
        start = file.tell()
    if found != (shape, False, dtype):
        raise ArtifactError(
            f"{path}: member {name!r} holds {found}, expected {(shape, False, dtype)}"
        )
    if dtype.kind not in "biufc":
        raise ArtifactError(f"{path}: member {name!r} holds {dtype}, not numbers")
    if start - offset + math.prod(shape) * dtype.itemsize != size:
        raise ArtifactError(f"{path}: member {name!r} has {size} bytes, too few or too many")
    if not math.prod(shape):
        return np.empty(shape, dtype=dtype)
    return np.ndarray(shape, dtype=dtype, buffer=mapped, offset=start)


def to_float16(vectors: torch.Tensor) -> Array:
    """Float16, or an error where that would lose the number.

    Raises:
        ValueError: A value is not finite, or too large.
    """
    if not vectors.isfinite().all():
        raise ValueError("there are NaN or infinite values; nothing was written")
    if vectors.abs().max() > FLOAT16_MAX:
        raise ValueError(
            f"the values reach {vectors.abs().max():.3g}, which float16 cannot hold; scale them down"
        )
    return vectors.to(torch.float16).cpu().numpy()
