"""Writing shards: arrays cut into blocks, blocks as `.npy` members of tars; see `flowprior.core.shards`."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowprior.core.artifacts import write_manifest
from flowprior.core.shard_format import Array

FLOAT16_MAX = 65504.0
ROUNDED_OFF = 0.05
"""Share of a channel's spread that rounding may be: its variance is then right to a quarter of a percent."""
DEAD = 1e-3
"""Share of the mean spread below which a channel carries nothing."""
SPREAD_ROWS = 32
"""Rows below which a spread says nothing."""


class ShardWriter:
    """Write rows of named arrays, split by split, into shards of a directory.

    Use inside `atomic_dir`; call `close` for the manifest. Equal rows give equal bytes.

    Args:
        directory: An empty directory.
        rows_per_block: Rows of one `.npy` member.
        blocks_per_shard: Members of each array in one tar.

    Raises:
        ValueError: A size is below 1.
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


def to_float16(vectors: torch.Tensor) -> Array:
    """Float16, or an error where that would lose what the numbers tell apart.

    Args:
        vectors: [..., d]; rounding is measured against the spread of each channel.

    Raises:
        ValueError: A value is not finite or too large, or rounding is more than `ROUNDED_OFF` of a channel's spread.
    """
    if not vectors.isfinite().all():
        raise ValueError("there are NaN or infinite values; nothing was written")
    if vectors.abs().max() > FLOAT16_MAX:
        raise ValueError(
            f"the values reach {vectors.abs().max():.3g}, which float16 cannot hold; scale them down"
        )
    rounded = vectors.to(torch.float16)
    exact = vectors.detach().float().flatten(0, -2)
    if len(exact) >= SPREAD_ROWS:
        spread = (exact - exact.mean(0)).std(0)
        # A channel that hardly varies beside the others, or beside its own size, says nothing that could be lost.
        least = torch.maximum(DEAD * spread.square().mean().sqrt(), 1e-6 * exact.abs().mean(0))
        lost = (rounded.float().flatten(0, -2) - exact).std(0) / spread.clamp(min=1e-30)
        channel = int(lost.masked_fill(spread <= least, 0).argmax())
        if spread[channel] > least[channel] and lost[channel] > ROUNDED_OFF:
            raise ValueError(
                f"in float16, rounding would be {float(lost[channel]):.0%} of the spread of channel {channel} (mean "
                f"{float(exact[:, channel].mean()):.3g}, standard deviation {float(spread[channel]):.3g}); subtract "
                "the mean, or scale the values to a standard deviation near 1"
            )
    return rounded.cpu().numpy()
