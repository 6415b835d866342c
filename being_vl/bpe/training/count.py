"""codes → keys, counts and positions: the first count, when every token is a single cell.

Then a key is a pair of codes, side by side or one above the other. A counting sort by the first code brings
all cells of one code together, each with the codes on its right and below; what follows needs one line of
counters at a time, which stays in the nearest cache, where a table of all pairs would be hundreds of
megabytes. Threads share the work by ranges of codes, over the cells of all shards: so every count is whole.

Cost: the cells are read twice and 8 bytes are written for each, in as many turns as memory asks for.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from .._jit import kernel
from .apply_and_emit import Limits, are_allowed
from .choose import KeyTable, Shapes, packed
from .options import Options
from .shard import Team

_FOUND_AT_ONCE = 1 << 17
_LARGEST_SORT = 3 << 29  # bytes


@kernel
def _count_codes(board, counts):
    """How often each code stands in the cells."""
    shift = 2 * board.bits
    for i in range(board.cells.shape[0]):
        v = np.int64(board.cells[i])
        if v != board.sentinel:
            counts[v >> shift] += 1


@kernel
def _sort_by_code(board, codebook_size, first_code, end_code, cursors, records):
    """Write (position, right << 16 | below) of each cell whose code is in range where its cursor points.

    A code of codebook_size says that there is none: counting it needs no branch, and it is never looked at.
    """
    shift, none = 2 * board.bits, codebook_size
    begin = np.int64(0)
    for group in range(board.ends.shape[0]):
        stride = board.strides[group]
        for i in range(begin, board.ends[group] - stride):
            v = np.int64(board.cells[i])
            if v == board.sentinel:
                continue
            code = v >> shift
            if code < first_code or code >= end_code:
                continue
            right, below = np.int64(board.cells[i + 1]), np.int64(board.cells[i + stride])
            right = none if right == board.sentinel else right >> shift
            below = none if below == board.sentinel else below >> shift
            at = cursors[code]
            records[at, 0] = i
            records[at, 1] = (right << 16) | below
            cursors[code] = at + 1
        begin = board.ends[group]


@kernel
def _frequent_pairs(records, bounds, codebook_size, first_code, end_code, least, found):
    """The pairs of codes in range with at least `least` occurrences in all shards.

    `bounds` is (shards, codes + 1): where the records of each code begin. Rows of `found` are (first,
    second, is it below, count in each shard); if there are more than it holds, `least` rises. Returns how
    many, and `least`.
    """
    shards = bounds.shape[0]
    counters = np.zeros((shards, 2, codebook_size + 1), np.uint32)  # as many as there are positions
    n = 0
    for code in range(first_code, end_code):
        for shard in range(shards):
            for i in range(bounds[shard, code], bounds[shard, code + 1]):
                both = np.int64(records[i, 1])
                counters[shard, 0, both >> 16] += 1
                counters[shard, 1, both & 0xFFFF] += 1
        for shard in range(shards):
            counters[shard, 0, codebook_size] = counters[shard, 1, codebook_size] = 0
        # a second pass takes each pair where it meets it first, and leaves the counters empty
        for shard in range(shards):
            for i in range(bounds[shard, code], bounds[shard, code + 1]):
                both = np.int64(records[i, 1])
                for below in range(2):
                    second = both & 0xFFFF if below == 1 else both >> 16
                    if counters[shard, below, second] == 0:
                        continue
                    total = np.int64(0)
                    for other in range(shards):
                        total += np.int64(counters[other, below, second])
                    if total >= least:
                        if n == found.shape[0]:
                            n, least = _keep_half(found, least)
                        if total >= least:
                            found[n, 0], found[n, 1], found[n, 2] = code, second, below
                            for other in range(shards):
                                found[n, 3 + other] = counters[other, below, second]
                            n += 1
                    for other in range(shards):
                        counters[other, below, second] = 0
    return n, least


@kernel
def _keep_half(found, least):
    """Raise `least` until at most half of the rows are left; returns how many, and `least`."""
    n = found.shape[0]
    while 2 * n > found.shape[0]:
        least += least // 4 + 1
        kept = 0
        for i in range(n):
            total = np.int64(0)
            for j in range(3, found.shape[1]):
                total += found[i, j]
            if total >= least:
                for j in range(found.shape[1]):
                    found[kept, j] = found[i, j]
                kept += 1
        n = kept
    return n, least


@kernel
def _list_pairs(
    records, bounds, codebook_size, first_code, end_code, pairs, key_bounds, starts, pool
):
    """Write a shard's positions of the listed pairs: those of code are `key_bounds[code:code + 2]`."""
    places = np.full((2, codebook_size + 1), -1, np.int64)
    for code in range(first_code, end_code):
        first_key, end_key = key_bounds[code], key_bounds[code + 1]
        if first_key == end_key:
            continue
        for key in range(first_key, end_key):
            places[pairs[key, 2], pairs[key, 1]] = starts[key]
        for i in range(bounds[code], bounds[code + 1]):
            both = np.int64(records[i, 1])
            right, below = places[0, both >> 16], places[1, both & 0xFFFF]
            if right >= 0:
                pool[right] = records[i, 0]
                places[0, both >> 16] = right + 1
            if below >= 0:
                pool[below] = records[i, 0]
                places[1, both & 0xFFFF] = below + 1
        for key in range(first_key, end_key):
            places[pairs[key, 2], pairs[key, 1]] = -1


def can_count_codes(options: Options, team: Team) -> bool:
    """Are the cells 4 bytes, and the keys those of the law, of one process?"""
    return (
        options.scoring == "frequency"
        and options.merge_rule == "shape"
        and team.processes.size == 1
        and all(s.board.bits == 8 and s.position_dtype == np.uint32 for s in team.shards)
    )


def count_codes(options: Options, shapes: Shapes, team: Team, limits: Limits) -> KeyTable:
    """Count the keys of single cells, and list those with at least a theta that leaves enough of them."""
    room = _LARGEST_SORT
    if options.memory_limit is not None:
        cells = sum(shard.num_bytes for shard in team.shards)
        room = min(room, max(1 << 24, (options.memory_limit - cells) // 4))
    at_once = max(_FOUND_AT_ONCE, 4 * options.num_listed)
    counter = _CodeCounter(team, options.codebook_size, room, at_once)
    pairs, theta = counter.pairs(options.min_count)
    totals = pairs[:, 3:].sum(axis=1)
    if len(totals) > options.num_listed:
        place = len(totals) - options.num_listed
        theta = max(theta, int(np.partition(totals, place)[place]) // 2)
    if options.memory_limit is not None:
        falling = np.sort(totals)[::-1]
        fitting = np.cumsum(falling) <= team.room_for_positions(options.memory_limit, room)
        if not fitting.all():
            theta = max(theta, int(falling[np.count_nonzero(fitting)]) + 1)
    pairs, totals = pairs[totals >= theta], totals[totals >= theta]
    below = pairs[:, 2]
    tokens, offsets = packed(np.stack([pairs[:, 0], pairs[:, 1], below, 1 - below], axis=1))
    kept = are_allowed(tokens, offsets, limits)
    counter.list_pairs(pairs[kept])
    keys = KeyTable(shapes, theta)
    keys.add(tokens[kept], offsets[kept], totals[kept])
    return keys


class _CodeCounter:
    """Counts and lists the pairs of codes in all shards of this process.

    Args:
        team: the shards, whose tokens are single cells.
        room: bytes that the sorted cells may take at a time.
        at_once: the most pairs to find in a range of codes.
    """

    def __init__(self, team: Team, codebook_size: int, room: int, at_once: int):
        self._shards = shards = team.shards
        self._each: Callable = team.each
        self._codebook_size = codebook_size
        self._at_once = at_once
        self._counts = np.zeros((len(shards), codebook_size), np.int64)
        team.each(lambda i: _count_codes(shards[i].board, self._counts[i]), range(len(shards)))
        ends = np.cumsum(self._counts.sum(axis=0))
        self._turns = _even_cuts(ends, -(-8 * int(ends[-1]) // max(1, room)))
        self._records = np.empty((0, 2), np.uint32)
        self._bounds = np.empty((0, 0), np.int64)
        self._sorted: tuple[int, int] | None = None

    def pairs(self, least: int) -> tuple[np.ndarray, int]:
        """The pairs of codes that occur `least` times, or more where that leaves millions of them.

        Returns rows (first, second, is it below, count in each shard), by first code; and the count that
        they reach.
        """
        parts: list[np.ndarray] = []
        for turn in self._turns:
            self._sort(turn)
            found = self._each(lambda codes: self._pairs_of(codes, least), self._ranges(turn))  # noqa: B023
            parts += [pairs for pairs, _ in found]
            least = max(reached for _, reached in found)
        pairs = np.concatenate(parts)
        return pairs[pairs[:, 3:].sum(axis=1) >= least], least

    def _pairs_of(self, codes: tuple[int, int], least: int) -> tuple[np.ndarray, int]:
        found = np.empty((self._at_once, 3 + len(self._shards)), np.int64)
        n, least = _frequent_pairs(
            self._records, self._bounds, self._codebook_size, *codes, least, found
        )
        return found[:n].copy(), least

    def list_pairs(self, pairs: np.ndarray) -> None:
        """Write the positions of pairs, as `pairs` gave them, into the shards' pools."""
        for i, shard in enumerate(self._shards):
            shard.make_pool(np.ascontiguousarray(pairs[:, 3 + i]))
        key_bounds = np.searchsorted(pairs[:, 0], np.arange(self._codebook_size + 1))
        for turn in self._turns:
            self._sort(turn)

            first, end = turn
            self._each(
                lambda i: _list_pairs(
                    self._records, self._bounds[i], self._codebook_size, first, end, pairs,  # noqa: B023
                    key_bounds, self._shards[i].starts, self._shards[i].pool,
                ),
                range(len(self._shards)),
            )  # fmt: skip

    def _sort(self, turn: tuple[int, int]) -> None:
        """Sort the cells of these codes."""
        if self._sorted == turn:
            return
        self._sorted = turn
        own = np.zeros_like(self._counts)
        own[:, turn[0] : turn[1]] = self._counts[:, turn[0] : turn[1]]
        ends = np.cumsum(own.reshape(-1)).reshape(own.shape)
        self._bounds = np.concatenate([ends[:, :1] - own[:, :1], ends], axis=1)
        needed = int(ends[-1, -1])
        if needed > len(self._records):
            self._records = np.empty((0, 2), np.uint32)
            self._records = np.empty((needed, 2), np.uint32)
        cursors = self._bounds[:, :-1].copy()
        self._each(
            lambda i: _sort_by_code(
                self._shards[i].board, self._codebook_size, *turn, cursors[i], self._records
            ),
            range(len(self._shards)),
        )

    def _ranges(self, turn: tuple[int, int]) -> list[tuple[int, int]]:
        """A turn's codes, cut into a range of about as many cells for each shard's thread."""
        ends = np.cumsum(self._counts[:, turn[0] : turn[1]].sum(axis=0))
        cuts = _even_cuts(ends, len(self._shards))
        return [(turn[0] + begin, turn[0] + end) for begin, end in cuts]


def _even_cuts(ends: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Cut items into at most `parts` ranges of about the same total, given their cumulated sizes."""
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, parts) // max(1, parts), side="right")
    cuts = np.unique(np.concatenate([[0], inner, [len(ends)]]))
    return [(int(begin), int(end)) for begin, end in itertools.pairwise(cuts)]
