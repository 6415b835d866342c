"""codes → cells, and one shard's part of every step: its cells, its positions, its counts.

A training is one shard, or one for each thread and each process. A shard never sees another's cells; what
passes between them are counts (see trainer.py).
"""

from __future__ import annotations

import numpy as np

from . import counting
from .grids import GridSource
from .kernels import (
    aim_views,
    apply_rule,
    compact,
    counts_of_views,
    frequent_views,
    list_positions,
)
from .keys import KeyTable
from .pair_kernels import apply_pair, list_pairs
from .shapes import Shapes

_SMALL_TABLE = 1 << 12
_SPARE_POSITIONS = 1 << 16
_NARROW_IDS, _NARROW_SIDE = 0xFFFF, 256
_LIMIT_IDS, _LIMIT_SIDE = 1 << 24, 1 << 16


class Shard:
    """The grids [begin, end) of a source.

    Args:
        source: the grids.
        begin, end: which of them.
        shapes: the tokens so far, all of them codes; `merge_rule` is its.
        vocab_size: how many ids there can be.

    Raises:
        ValueError: a code is not in [0, codebook_size), or the vocabulary or a grid is too large.
    """

    def __init__(self, source: GridSource, begin: int, end: int, shapes: Shapes, vocab_size: int):
        sizes = source.sizes[begin:end]
        side = int(sizes.max(initial=1))
        if vocab_size > _LIMIT_IDS or side >= _LIMIT_SIDE:
            raise ValueError(
                f"at most {_LIMIT_IDS} ids and {_LIMIT_SIDE - 1} rows or columns are possible, "
                f"got {vocab_size} and {side}"
            )
        narrow = vocab_size <= _NARROW_IDS and side <= _NARROW_SIDE
        self._shapes = shapes
        self.codebook_size = shapes.codebook_size
        self.num_cells = int(sizes.prod(axis=1).sum())
        self._bits = 8 if narrow else 16
        dtype = np.uint32 if narrow else np.int64
        self._sentinel = 0xFFFFFFFF if narrow else -1
        self._lay_out(sizes, dtype)
        self._fill(source, begin, end)
        self._ring = np.empty(0, self._position_dtype)
        if shapes.merge_rule == "pair":
            self._ring = np.arange(len(self._cells), dtype=self._position_dtype)
        self.pool = np.empty(0, self._position_dtype)
        self._used_pool = 0
        self.starts = np.empty(0, np.int64)
        self._lengths = np.empty(0, np.int64)
        self._table = np.zeros((_SMALL_TABLE, 4), np.int64)
        self._used = np.empty(_SMALL_TABLE // 2 + 1, np.int64)
        self._state = np.zeros(3, np.int64)
        self._merged = self.pool

    def _lay_out(self, sizes: np.ndarray, dtype: type) -> None:
        """Grids of one width stand together: a border row above each, a border column on its right."""
        widths = np.unique(sizes[:, 1])
        rows = [int((sizes[sizes[:, 1] == width, 0] + 1).sum()) + 1 for width in widths]
        self._strides = (widths + 1).astype(np.int64)
        self._ends = np.cumsum(np.array(rows, np.int64) * self._strides)
        total = int(self._ends[-1]) if len(widths) else 0
        self._cells = np.empty(total, dtype)
        self._position_dtype = np.uint32 if total < 1 << 32 else np.int64

    def _fill(self, source: GridSource, begin: int, end: int) -> None:
        next_line = {
            int(stride) - 1: int(stop)
            for stride, stop in zip(self._strides, np.append(0, self._ends)[:-1], strict=True)
        }
        for index, codes in source.blocks(begin, end):
            lowest, highest = int(codes.min()), int(codes.max())
            if lowest < 0 or highest >= self.codebook_size:
                wrong = (codes < 0) | (codes >= self.codebook_size)
                grid, row, col = np.argwhere(wrong)[0]
                raise ValueError(
                    f"grids[{index + grid}][{row}, {col}] must be in [0, {self.codebook_size}), "
                    f"got {codes[grid, row, col]}"
                )
            n, height, width = codes.shape
            size = n * (height + 1) * (width + 1)
            at = next_line[width]
            lines = self._cells[at : at + size].reshape(n, height + 1, width + 1)
            lines[:, 0, :] = self._sentinel
            lines[:, :, width] = self._sentinel
            inner = lines[:, 1:, :width]
            inner[...] = codes
            inner <<= 2 * self._bits
            inner |= (
                (np.arange(height)[:, None] << self._bits) | np.arange(width)[None, :]
            ).astype(self._cells.dtype)
            next_line[width] = at + size
        for stride, stop in zip(self._strides, self._ends, strict=True):
            self._cells[stop - stride : stop] = self._sentinel

    def make_pool(self, counts: np.ndarray) -> int:
        """Forget all positions, and make room for so many of each key; returns a place not in use."""
        needed = int(counts.sum())
        self._merged = self.pool = np.empty(0, self._position_dtype)
        self.pool = np.empty(needed + needed // 8 + _SPARE_POSITIONS, self._position_dtype)
        self._used_pool = needed
        self.starts = np.cumsum(counts) - counts
        self._lengths = counts.copy()
        return len(self.pool) - 1

    def grid_arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, int, int]:
        """Cells, ends, strides, the shift of a token, and the sentinel (see kernels.py)."""
        return self._cells, self._ends, self._strides, 2 * self._bits, self._sentinel

    @property
    def num_bytes(self) -> int:
        """Bytes of the cells, without the positions."""
        return self._cells.nbytes + self._ring.nbytes

    @property
    def bytes_a_position(self) -> int:
        return np.dtype(self._position_dtype).itemsize

    def sketch(self, by_pair: bool, size: int) -> np.ndarray:
        """Counters, (size,) uint32, each at least the count of every key (or pair) that falls on it."""
        counters = np.zeros(size, np.uint32)
        table = counting.new_table(2)
        self._scan(counting.SKETCH, counters, by_pair, table, table)
        return counters

    def count(
        self, by_pair: bool, slots: np.ndarray, num_slots: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The keys that fall on a slot: columns (n, 4) int64, and counts (n,) int64."""
        rows, table = counting.new_table(num_slots + 1), counting.new_table(1 << 10)
        table = self._scan(counting.COUNT, slots, by_pair, rows, table)
        found = np.concatenate([rows[1:], table])
        found = found[found[:, 0] != -1]
        return counting.unpacked(found[:, 0], found[:, 1]), found[:, 2]

    def list_keys(
        self,
        by_pair: bool,
        slots: np.ndarray,
        num_slots: int,
        columns: np.ndarray,
        counts: np.ndarray,
    ) -> None:
        """Forget all positions, and list those of these keys; `counts` are this shard's own."""
        nowhere = self.make_pool(counts)
        rows = counting.new_table(num_slots + 1)
        table = counting.new_table(1 << max(4, (2 * len(columns)).bit_length()))
        counting.aim_keys(
            *counting.packed(columns),
            self.starts,
            slots,
            by_pair,
            rows,
            table,
            nowhere,
        )
        self._scan(counting.LIST, slots, by_pair, rows, table)

    def _scan(
        self,
        mode: int,
        sketch: np.ndarray,
        by_pair: bool,
        rows: np.ndarray,
        table: np.ndarray,
    ) -> np.ndarray:
        return counting.scan(
            mode, self._cells, self._ring, self._ends, self._strides, self._bits, self._sentinel,
            self.codebook_size, *self._shapes.all_perimeters(), sketch, by_pair, rows, table, self.pool,
        )  # fmt: skip

    def apply(self, key: int, rule: np.ndarray, views: np.ndarray, sides: np.ndarray) -> np.ndarray:
        """Merge the occurrences of a key: how much each view's key lost, then the number of merges.

        `rule` is (5,) int64: the key and the new token's id.
        """
        start, length = self.starts[key], self._lengths[key]
        positions = self.pool[start : start + length]
        a, b = int(rule[0]), int(rule[1])
        by_pair = self._shapes.merge_rule == "pair"
        if a == b or by_pair:
            positions.sort()  # raster order decides which of two overlapping occurrences is merged
        self._state[1] = self._mask_for(2 * len(views) + int(length))
        grid = (self._ends, self._strides, self._bits, self._sentinel)
        rest = (views, sides, self._table, self._used, self._state)
        if by_pair:
            done = apply_pair(self._cells, self._ring, *grid, positions, rule, *rest)
        else:
            shapes = self._shapes
            done = apply_rule(
                self._cells, *grid, positions, rule, shapes.cells(a), shapes.cells(b),
                shapes.perimeter(a), shapes.perimeter(b), *rest,
            )  # fmt: skip
        self._table, self._used, lost = done
        self._merged = positions[: lost[-1]]
        return lost

    def _mask_for(self, rows: int) -> int:
        """A small table stays in the cache: start with what the rule may need, within the array."""
        return min(len(self._table), 1 << max(10, rows.bit_length())) - 1

    def frequent_views(self, least: int) -> np.ndarray:
        """The views of the last merge's new keys that occur here at least that often."""
        return frequent_views(self._table, self._used, self._state[2], least)

    def counts_of_views(self, views: np.ndarray) -> np.ndarray:
        """How often the new key of each view occurs here."""
        return counts_of_views(self._table, self._state, views)

    def keep(
        self,
        views: np.ndarray,
        counts: np.ndarray,
        token: int,
        keys: KeyTable,
    ) -> None:
        """List the positions of the last merge's kept keys, which are the last of `keys`.

        `counts` are this shard's own; `token` is the new token.
        """
        first = keys.size - len(views)
        needed = int(counts.sum())
        self._make_room(needed, first, keys)
        if keys.size > len(self.starts):
            self.starts = np.resize(self.starts, 2 * keys.size)
            self._lengths = np.resize(self._lengths, 2 * keys.size)
        starts = self._used_pool + np.cumsum(counts) - counts
        self.starts[first : keys.size] = starts
        self._lengths[first : keys.size] = counts
        self._used_pool += needed
        aim_views(self._table, self._used, self._state, views, starts)
        grid = (self._ends, self._strides, self._bits, self._sentinel, self._merged, token)
        rest = (self._table, self._state, self.pool)
        if self._shapes.merge_rule == "pair":
            list_pairs(self._cells, self._ring, *grid, *rest)
        else:
            list_positions(self._cells, *grid, self._shapes.perimeter(token), *rest)

    def _make_room(self, needed: int, num_keys: int, keys: KeyTable) -> None:
        """Make the pool hold `needed` more positions: drop the lists of forgotten keys, or enlarge it."""
        if self._used_pool + needed <= len(self.pool):
            return
        self._merged = self._merged.copy()
        self._used_pool = compact(
            self._cells, 2 * self._bits, self.pool, self.starts, self._lengths, keys.columns,
            keys.counts, keys.theta, num_keys,
        )  # fmt: skip
        total = self._used_pool + needed
        if total > len(self.pool) - len(self.pool) // 16:
            # in place where the system can: two pools at once may be more than memory holds
            self.pool.resize(total + total // 8, refcheck=False)
