"""codes → cells, and one shard's part of every step: its cells, its positions, its traces of a batch.

A training is one shard, or one for each thread and each process (`Team`). A shard never sees another's cells;
what passes between them are counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .._jit import kernel, unsigned
from .apply_and_emit import (
    CANDIDATES,
    LATE,
    LOSSES,
    MERGED,
    Batch,
    Board,
    Limits,
    apply_rules,
    compact,
    emit_positions,
    empty_traces,
    find_rows,
)
from .choose import KeyTable, Shapes
from .grids import GridSource
from .options import NARROW_IDS, NO_LIMIT
from .pair import apply_pair
from .processes import Processes
from .tiers import FILTER_BITS, aim, book_unlisted, list_codes, lowest_tier

_SPARE_POSITIONS = 1 << 16
_LAID_AT_ONCE = 1 << 17  # cells
_NARROW_SIDE = 256
_LIMIT_SIDE = 1 << 16


@kernel
def _lay(codes, bits, sentinel, cells):
    """Write grids of one size into the cells: a border row above each, a border column on its right."""
    at = 0
    for grid in range(codes.shape[0]):
        for _ in range(codes.shape[2] + 1):
            cells[at] = sentinel
            at += 1
        for row in range(codes.shape[1]):
            for col in range(codes.shape[2]):
                cells[unsigned(at)] = (
                    (np.int64(codes[grid, row, col]) << 2 * bits) | (row << bits) | col
                )
                at += 1
            cells[at] = sentinel
            at += 1


class Shard:
    """The grids [begin, end) of a source.

    Args:
        source: the grids.
        begin, end: which of them.
        shapes: the tokens so far, all of them codes; `merge_rule` is its.
        frugal: keep little room for positions of new keys.

    Attributes:
        board: the cells.
        pool, starts, lengths: the positions of each key, in this shard; a length of -1 - n says that the
            key's n positions are not listed yet.

    Raises:
        ValueError: a code is not in [0, codebook_size), or a grid is too large.
    """

    def __init__(
        self,
        source: GridSource,
        begin: int,
        end: int,
        shapes: Shapes,
        frugal: bool = False,
    ):
        sizes = source.sizes[begin:end]
        side = int(sizes.max(initial=1))
        if side >= _LIMIT_SIDE:
            raise ValueError(
                f"a grid may have at most {_LIMIT_SIDE - 1} rows and columns, got {side}; cut a longer sequence "
                "into grids of several rows or into several grids"
            )
        narrow = shapes.capacity <= NARROW_IDS and side <= _NARROW_SIDE
        self._shapes = shapes
        # what is never written takes no memory, but moving lists to make room takes time
        self._roominess = 1.125 if frugal else 2.0
        widths = np.unique(sizes[:, 1])
        rows = [int((sizes[sizes[:, 1] == width, 0] + 1).sum()) + 1 for width in widths]
        strides = (widths + 1).astype(np.int64)
        ends = np.cumsum(np.array(rows, np.int64) * strides)
        total = int(ends[-1]) if len(widths) else 0
        cells = np.empty(total, np.uint32 if narrow else np.int64)
        self.num_siblings = 1  # shards of this process, this one with them
        self.position_dtype = np.uint32 if total < 1 << 32 else np.int64
        by_pair = shapes.merge_rule == "pair"
        ring = np.arange(total if by_pair else 0, dtype=self.position_dtype)
        self.board = Board(
            cells, ring, ends, strides, 8 if narrow else 16, 0xFFFFFFFF if narrow else -1
        )
        self._fill(source, begin, end)
        self.pool = np.empty(0, self.position_dtype)
        self._used_pool = 0
        self.starts = self.lengths = np.empty(0, np.int64)
        self.traces = empty_traces(self.position_dtype)

    def _fill(self, source: GridSource, begin: int, end: int) -> None:
        """Lay out the grids, and one border row at the end of each group."""
        cells, _, ends, strides, bits, sentinel = self.board
        next_line = {
            int(stride) - 1: int(stop)
            for stride, stop in zip(strides, np.append(0, ends)[:-1], strict=True)
        }
        for index, codes in source.blocks(begin, end):
            lowest, highest = int(codes.min()), int(codes.max())
            if lowest < 0 or highest >= self._shapes.codebook_size:
                wrong = (codes < 0) | (codes >= self._shapes.codebook_size)
                grid, row, col = np.argwhere(wrong)[0]
                raise ValueError(
                    f"grids[{index + grid}][{row}, {col}] must be in [0, {self._shapes.codebook_size}), "
                    f"got {codes[grid, row, col]}"
                )
            n, height, width = codes.shape
            step = max(1, _LAID_AT_ONCE // (height * width))
            for first in range(0, n, step):
                part = codes[first : first + step].astype(np.int32)  # one type, so one compilation
                _lay(part, bits, sentinel, cells[next_line[width] :])
                next_line[width] += len(part) * (height + 1) * (width + 1)
        for stride, stop in zip(strides, ends, strict=True):
            cells[stop - stride : stop] = sentinel

    def list_codes(self, which: np.ndarray, keys: KeyTable) -> None:
        """List the positions of keys of codes, (n,), whose lengths are negative."""
        counts = -1 - self.lengths[which]
        needed = int(counts.sum())
        self._make_room(needed, keys.size, keys)
        starts = self._used_pool + np.cumsum(counts) - counts
        self.starts[which], self.lengths[which] = starts, counts
        self._used_pool += needed
        table = np.empty((1 << (2 * len(which)).bit_length(), 2), np.int64)
        filter_words = np.zeros(1 << FILTER_BITS - 5, np.uint32)
        aim(keys.tokens[which], keys.offsets[which], starts, filter_words, table)
        list_codes(self.board, filter_words, table, self.pool)

    def drop_unlisted(self) -> None:
        """Forget keys whose positions were never listed, since fewer than theta are left of them."""
        self.lengths = np.maximum(self.lengths, 0)

    def make_pool(self, positions: int) -> int:
        """Forget all positions, and make room for so many and some of new keys; returns a place not in use.

        What is never written takes no memory.
        """
        self.pool = np.empty(0, self.position_dtype)
        size = int(positions * self._roominess) + _SPARE_POSITIONS
        self.pool = np.empty(size, self.position_dtype)
        self._used_pool = 0
        self.starts = self.lengths = np.empty(0, np.int64)
        return len(self.pool) - 1

    def add_lists(self, counts: np.ndarray, listed: np.ndarray, keys: KeyTable) -> np.ndarray:
        """Room for the positions of new keys, the last of `keys`: where each one's begin, (n,).

        Those that are not `listed`, (n,) bool, get no room yet: their positions begin at -1.
        """
        taken = np.where(listed, counts, 0)
        needed = int(taken.sum())
        self._make_room(needed + 1, len(self.starts), keys)  # the last place stays free
        starts = np.where(listed, self._used_pool + np.cumsum(taken) - taken, -1)
        self.starts = np.concatenate([self.starts, starts])
        self.lengths = np.concatenate([self.lengths, np.where(listed, counts, -1 - counts)])
        self._used_pool += needed
        return starts

    @property
    def num_bytes(self) -> int:
        """Bytes of the cells, without the positions."""
        return self.board.cells.nbytes + self.board.ring.nbytes

    @property
    def bytes_a_position(self) -> int:
        return np.dtype(self.position_dtype).itemsize

    def apply(self, batch: Batch, keys: KeyTable, least: int, limits: Limits) -> None:
        """Merge the occurrences of the rules of a batch."""
        by_pair = self._shapes.merge_rule == "pair"
        # raster order decides which of two overlapping occurrences is merged
        overlap = batch.rules[:, 0] == batch.rules[:, 1]
        for key in batch.keys if by_pair else batch.keys[overlap]:
            self.pool[self.starts[key] : self.starts[key] + self.lengths[key]].sort()
        lists = (self.board, self.pool, self.starts, self.lengths, batch)
        rest = (least, limits, keys.index, self.traces)
        if by_pair:
            self.traces = apply_pair(*lists, *rest)
        else:
            shapes = self._shapes
            self.traces = apply_rules(
                *lists, shapes.starts, shapes.offsets, shapes.codebook_size, *rest
            )
            if keys.tier > keys.theta:
                book_unlisted(self.lengths, self.traces.losses, self.traces.ends[-1, LOSSES])

    def losses(self) -> np.ndarray:
        """(n, 2): key number and loss."""
        return self.traces.losses[: self.traces.ends[-1, LOSSES]]

    def late_losses(self) -> np.ndarray:
        """(n, 3): tokens, offset and loss of keys that the last batch has made."""
        return self.traces.late[: self.traces.ends[-1, LATE]]

    def candidates(self) -> np.ndarray:
        """(n, 3) of the new keys that may be listed: rule << 55 | view, row in the traces, count."""
        return self.traces.candidates[: self.traces.ends[-1, CANDIDATES]]

    def num_merged(self) -> np.ndarray:
        """How many occurrences of each of the last batch's rules were merged, (n,)."""
        return np.diff(self.traces.ends[:, MERGED])

    def find_rows(self, names: np.ndarray, found: np.ndarray, counts: np.ndarray) -> None:
        """Set `found` to the rows of candidates of all shards, and add what these count to `counts`."""
        find_rows(self.traces, names, found, counts)

    def keep(self, rules: np.ndarray, rows: np.ndarray, keys: KeyTable) -> None:
        """List the positions of new keys, which are the last of `keys`."""
        first = keys.size - len(rows)
        own = rows[rows >= 0]
        self._make_room(int((self.traces.rows[own, 1] >> 32).sum()), first, keys)
        if keys.size > len(self.starts):
            self.starts = np.resize(self.starts, 2 * keys.size)
            self.lengths = np.resize(self.lengths, 2 * keys.size)
        self._used_pool = emit_positions(
            self.traces, rules, rows, self.starts, self.lengths, first, self.pool, self._used_pool
        )

    def _make_room(self, needed: int, num_keys: int, keys: KeyTable) -> None:
        """Make the pool hold `needed` more positions: drop the lists of forgotten keys, or enlarge it."""
        if self._used_pool + needed <= len(self.pool):
            return
        self._used_pool = compact(
            self.board.cells, 2 * self.board.bits, self.pool, self.starts, self.lengths, keys.tokens,
            keys.counts, keys.theta, np.argsort(self.starts[:num_keys], kind="stable"), self.num_siblings,
        )  # fmt: skip
        total = self._used_pool + needed
        if total > len(self.pool) - len(self.pool) // 16:
            # in place where the system can: two pools at once may be more than memory holds
            self.pool.resize(total + total // 8, refcheck=False)


class Team:
    """This process's shards, one for each thread, and the other processes.

    Attributes:
        shards: of this process.
        processes: this one and the others.
        num_shards: of all processes.
    """

    def __init__(
        self,
        source: GridSource,
        shapes: Shapes,
        num_threads: int,
        processes: Processes,
        frugal: bool,
    ):
        areas = source.sizes.prod(axis=1)
        begin, end = _even_bounds(areas, processes.size)[processes.rank : processes.rank + 2]
        parts = _even_bounds(areas[begin:end], max(1, min(num_threads, end - begin)))
        bounds = [begin + part for part in parts]
        self._executor = ThreadPoolExecutor(len(bounds) - 2) if len(bounds) > 2 else None
        self.shards: list[Shard] = self.each(
            lambda bound: Shard(source, bound[0], bound[1], shapes, frugal),
            list(itertools.pairwise(bounds)),
        )
        for shard in self.shards:
            shard.num_siblings = len(self.shards)
        self.processes = processes
        self.num_shards = int(processes.sum(np.array([len(self.shards)]))[0])

    def each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results for all items: the first in this thread, each other one in a thread of its own.

        Waiting is left to the operating system: a thread that spins takes the processor from the one that
        it waits for.
        """
        if self._executor is None:
            return [function(item) for item in items]
        others = [self._executor.submit(function, item) for item in items[1:]]
        return [function(item) for item in items[:1]] + [other.result() for other in others]

    def room_for_positions(self, memory_limit: int) -> int:
        """How many positions this process may hold beside its cells: another one's room may differ."""
        cells = sum(shard.num_bytes for shard in self.shards)
        room = max(0, memory_limit - cells) / (1.125 * self.shards[0].bytes_a_position)
        return min(NO_LIMIT // self.processes.size, int(room))

    def list_tier(self, keys: KeyTable, memory_limit: int | None) -> bool:
        """List the positions of the next keys and let them be chosen; False if all were listed before.

        Keys of merged tokens, listed as they are made, need room too: half of what is left is for them.
        """
        lengths = self.shards[0].lengths[: keys.size]
        if keys.tier == keys.theta and not (lengths < 0).any():
            return False
        counts = keys.counts[: keys.size]
        room = NO_LIMIT
        if memory_limit is not None:
            all_room = self.room_for_positions(memory_limit)
            listed = int(counts[(lengths >= 0) & (counts >= keys.theta)].sum())
            room = int(max(all_room / 8, (all_room - listed) / 2))
        unlisted = (lengths < 0) & (counts >= keys.theta)
        tier, _ = lowest_tier(counts[unlisted], room, keys.theta)
        which = np.flatnonzero(unlisted & (counts >= tier))
        self.each(lambda shard: shard.list_codes(which, keys), self.shards)
        if tier == keys.theta:
            for shard in self.shards:
                shard.drop_unlisted()
        keys.lower(tier)
        return True

    def make_pools(self, positions: int) -> None:
        """Forget all positions, and make room for so many."""
        for shard in self.shards:
            shard.make_pool(positions // len(self.shards))

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _even_bounds(areas: np.ndarray, parts: int) -> list[int]:
    """Where to cut grids of these areas into parts of about the same number of cells."""
    ends = np.cumsum(areas)
    total = int(ends[-1]) if len(ends) else 0
    inner = [
        int(np.searchsorted(ends, total * part // parts, side="right")) for part in range(1, parts)
    ]
    return [0, *inner, len(areas)]
