"""files or arrays → blocks of codes: what the trainer reads, without a second copy of the codes.

Three sources: one array (N, H, W), which may be memory-mapped; a sequence of (h, w) arrays; parquet files
with the columns `height`, `width` and `codes` (a list of integers in raster order), as
`being-vl encode` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

_CELLS_A_BLOCK = 1 << 21


class GridSource(Protocol):
    """Grids that can be read block by block, as often as needed.

    Attributes:
        sizes: (N, 2) int64, height and width of each grid.
    """

    sizes: np.ndarray

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        """The grids [begin, end) in runs of one size: the first one's index, and codes (n, h, w)."""
        ...


class ArrayGrids:
    """One integer array (N, H, W)."""

    def __init__(self, codes: np.ndarray):
        self._codes = codes
        self.sizes = np.broadcast_to(np.array(codes.shape[1:], np.int64), (len(codes), 2))

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        step = max(1, _CELLS_A_BLOCK // max(1, int(np.prod(self._codes.shape[1:]))))
        for at in range(begin, end, step):
            yield at, self._codes[at : min(at + step, end)]


class SequenceGrids:
    """A sequence of integer arrays (h, w)."""

    def __init__(self, grids: Sequence[Any]):
        self._grids = grids
        sizes = []
        for index, grid in enumerate(grids):
            shape = np.shape(grid)
            if len(shape) != 2:
                raise ValueError(f"grids[{index}] must have shape (height, width), got {shape}")
            sizes.append(shape)
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        at = begin
        while at < end:
            height, width = self.sizes[at]
            stop, cells = at + 1, height * width
            while (
                stop < end and cells < _CELLS_A_BLOCK and (self.sizes[stop] == self.sizes[at]).all()
            ):
                stop += 1
                cells += height * width
            block = [np.asarray(self._grids[index]) for index in range(at, stop)]
            for index, grid in enumerate(block, start=at):
                _check_integers(grid.dtype, f"grids[{index}]")
            yield at, np.stack(block)
            at = stop


class ParquetGrids:
    """Parquet files in the given order; only the row group at work is in memory."""

    def __init__(self, paths: Sequence[Path]):
        import pyarrow.parquet as parquet

        self._groups: list[tuple[Path, int, int]] = []  # file, row group, index of its first grid
        sizes, n = [np.empty((0, 2), np.int64)], 0
        for path in paths:
            with parquet.ParquetFile(path) as file:
                missing = {"height", "width", "codes"} - set(file.schema_arrow.names)
                if missing:
                    raise ValueError(f"{path}: no column {sorted(missing)[0]!r}")
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group, columns=["height", "width"])
                    columns = [table[name].to_numpy() for name in ("height", "width")]
                    for name, column in zip(("height", "width"), columns, strict=True):
                        _check_integers(column.dtype, f"{path}: column {name!r}")
                    sizes.append(np.stack(columns, axis=1).astype(np.int64))
                    self._groups.append((path, group, n))
                    n += table.num_rows
        self.sizes = np.concatenate(sizes)

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        import pyarrow.parquet as parquet

        starts = [first for _, _, first in self._groups] + [len(self.sizes)]
        for number, (path, group, first) in enumerate(self._groups):
            if starts[number + 1] <= begin or first >= end:
                continue
            with parquet.ParquetFile(path) as file:
                column = file.read_row_group(group, columns=["codes"])["codes"].combine_chunks()
            if column.null_count or column.flatten().null_count:
                raise ValueError(f"{path}: column 'codes' holds nulls")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            _check_integers(flat.dtype, f"{path}: column 'codes'")
            lengths = np.diff(column.offsets.to_numpy())
            areas = self.sizes[first : starts[number + 1]].prod(axis=1)
            wrong = np.flatnonzero(lengths != areas)
            if len(wrong):
                row = wrong[0]
                height, width = self.sizes[first + row]
                raise ValueError(
                    f"{path}: row {row} of row group {group} holds {lengths[row]} codes, "
                    f"but a grid of {height}x{width} has {areas[row]}"
                )
            ends = np.cumsum(lengths)
            at = max(begin, first)
            while at < min(end, starts[number + 1]):
                stop = at + 1
                while (
                    stop < min(end, starts[number + 1])
                    and (self.sizes[stop] == self.sizes[at]).all()
                ):
                    stop += 1
                codes = flat[ends[at - first] - lengths[at - first] : ends[stop - 1 - first]]
                yield at, codes.reshape(stop - at, *self.sizes[at])
                at = stop


def _check_integers(dtype: np.dtype, name: str) -> None:
    if not np.issubdtype(dtype, np.integer):
        raise ValueError(f"{name} must hold integers, got {dtype}")


def _parquet_paths(path: Path) -> list[Path]:
    paths = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not paths:
        raise ValueError(f"{path}: no .parquet file in this folder")
    return paths


def open_grids(grids: Any) -> GridSource:
    """The source for what a caller passed as `grids`.

    Args:
        grids: an integer array (N, H, W); a sequence of integer arrays (h, w); a path, or a sequence of
            paths, of a `.npy` file (memory-mapped), a parquet file, or a folder of parquet files; or a
            `GridSource`.

    Raises:
        ValueError: a shape or a dtype is not one of these, or a grid is empty.
    """
    if isinstance(grids, (str, Path)):
        path = Path(grids)
        if path.suffix == ".npy":
            source = open_grids(np.load(path, mmap_mode="r", allow_pickle=False))
        else:
            source = ParquetGrids(_parquet_paths(path))
    elif hasattr(grids, "blocks") and hasattr(grids, "sizes"):
        source = grids
    elif isinstance(grids, np.ndarray) and grids.dtype != object:
        if grids.ndim != 3:
            raise ValueError(f"grids must have shape (N, height, width), got {grids.shape}")
        _check_integers(grids.dtype, "grids")
        source = ArrayGrids(grids)
    elif len(grids) and all(isinstance(item, (str, Path)) for item in grids):
        source = ParquetGrids([path for item in grids for path in _parquet_paths(Path(item))])
    else:
        source = SequenceGrids(grids)
    empty = np.flatnonzero((source.sizes < 1).any(axis=1))
    if len(empty):
        height, width = source.sizes[empty[0]]
        raise ValueError(f"grids[{empty[0]}] must not be empty, got {height}x{width}")
    return source
