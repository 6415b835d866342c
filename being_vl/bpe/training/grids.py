"""files or arrays → blocks of codes: what the trainer reads, without a second copy of the codes.

Three sources: one array (N, H, W), which may be memory-mapped; a sequence of (h, w) arrays; and parquet
shards of codes as `being-vl encode` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..grids import as_grid, as_grids, check_integers

if TYPE_CHECKING:
    from ...codes.shards import CodeShards

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
            sizes.append(as_grid(grid, f"grids[{index}]").shape)
        self.sizes = np.array(sizes, np.int64).reshape(-1, 2)

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        for at, stop in _runs(self.sizes, begin, end):
            yield at, np.stack([as_grid(self._grids[i], f"grids[{i}]") for i in range(at, stop)])


class ShardGrids:
    """Parquet shards of codes; a few of them are in memory at a time."""

    def __init__(self, shards: CodeShards):
        self._shards = shards
        self._lock = Lock()  # the shards in memory are shared by all threads
        self.sizes = np.stack([shards.heights, shards.widths], axis=1).astype(np.int64)

    def blocks(self, begin: int, end: int) -> Iterator[tuple[int, np.ndarray]]:
        for at, stop in _runs(self.sizes, begin, end):
            with self._lock:
                grids = self._shards[at:stop]
            yield at, np.stack(grids)


def _runs(sizes: np.ndarray, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Cut [begin, end) into runs of grids of one size, of a bounded number of cells."""
    at = begin
    while at < end:
        area = int(sizes[at].prod())
        stop = min(end, at + max(1, _CELLS_A_BLOCK // max(1, area)))
        others = np.flatnonzero((sizes[at:stop] != sizes[at]).any(axis=1))
        stop = at + int(others[0]) if len(others) else stop
        yield at, stop
        at = stop


def open_grids(grids: Any, codebook_size: int | None = None) -> GridSource:
    """The source for what a caller passed as `grids`.

    Args:
        grids: an integer array (N, H, W); a sequence of integer arrays (h, w); `CodeShards`; or the path of
            a `.npy` file (memory-mapped), of a parquet file, or of a folder of them, or a list of parquet
            files.
        codebook_size: K, for parquet files that do not say it.

    Raises:
        ValueError: a shape or a dtype is not one of these, or a grid is empty.
        OSError: a file is not there or cannot be read.
    """
    if isinstance(grids, (str, Path)) and Path(grids).suffix == ".npy":
        grids = np.load(grids, mmap_mode="r", allow_pickle=False)
    if not _are_paths(grids) and not isinstance(grids, (str, Path)):
        grids = as_grids(grids)
    source: GridSource
    if isinstance(grids, np.ndarray):
        check_integers(grids, "grids")
        source = ArrayGrids(grids)
    elif isinstance(grids, (list, tuple)) and not _are_paths(grids):
        source = SequenceGrids(grids)
    else:
        from ...codes.shards import CodeShards  # brings pyarrow

        if isinstance(grids, (str, Path)) or _are_paths(grids):
            grids = CodeShards(grids, codebook_size=codebook_size)
        source = ShardGrids(grids) if isinstance(grids, CodeShards) else SequenceGrids(grids)
    empty = np.flatnonzero((source.sizes < 1).any(axis=1))
    if len(empty):
        height, width = source.sizes[empty[0]]
        raise ValueError(f"grids[{empty[0]}] must not be empty, got {height}x{width}")
    return source


def _are_paths(grids: Any) -> bool:
    return (
        isinstance(grids, (list, tuple))
        and len(grids) > 0
        and all(isinstance(item, (str, Path)) for item in grids)
    )
