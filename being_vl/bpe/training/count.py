"""codes → keys, counts and positions: the first count, when every token is a single cell.

Then a key is a pair of codes, side by side or one above the other. A counting sort by the first code brings
all cells of one code together, each with the codes on its right and below; what follows needs one line of
counters at a time, which stays in the nearest cache, where a table of all pairs would be hundreds of
megabytes. Threads share the work by ranges of codes, over the cells of all shards: so every count is whole.

Cost: 8 bytes are written for each cell, its position with it. Where there are many cells they take turns, one range of
codes each, so that the memory for this stays small; theta then comes from a sample of the cells. While the cells of a
range are sorted, the positions of its keys are listed: all lists that are open at once belong to one code. A code with
more cells than there is room for is not sorted: it is a turn of its own, counted where its cells stand, and listed
as `tiers.py` does. A memory limit may leave keys unlisted, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from .._jit import inlined, inner, kernel, unsigned
from .apply_and_emit import Limits, are_allowed
from .choose import KeyTable, Shapes, packed
from .options import NO_LIMIT, SORTED_BYTES, Options, usual_room
from .shard import Team
from .tiers import lowest_tier

_FOUND_AT_ONCE = 1 << 17
_LEAST_ROOM = 1 << 24  # bytes for sorted cells, whatever the limit
_MOST_TURNS = 64  # each reads all cells once more
_SAMPLED = 8  # where there are turns, theta comes from every so manieth block
_BLOCK = 2048  # cells: what is picked of a block, or sampled, stays in the nearest cache


@kernel
def _count_codes(board, period, counts):
    """How often each code stands in every `period`-th block of cells."""
    shift = 2 * board.bits
    for start in range(0, board.cells.shape[0], period * _BLOCK):
        for i in range(start, min(start + _BLOCK, board.cells.shape[0])):
            v = np.int64(board.cells[i])
            if v != board.sentinel:
                counts[v >> shift] += 1


@inlined
def _pick(board, start, n, first_code, end_code, picked):
    """Write the places of the cells [start, start + n) whose code is in range; returns how many.

    What lies below the range is far above it without a sign: one comparison does.
    """
    first = first_code << 2 * board.bits
    length = np.uint64((end_code - first_code) << 2 * board.bits)
    found = 0
    for i in range(start, start + n):
        picked[unsigned(found)] = i
        found += np.int64(np.uint64(np.int64(board.cells[unsigned(i)]) - first) < length)
    return found


@kernel
def _sort_by_code(board, period, codebook_size, first_code, end_code, cursors, records):
    """Write right << 48 | below << 32 | position of each cell whose code is in range where its cursor points.

    A code of codebook_size says that there is none: counting it needs no branch, and it is never looked at.
    Of some codes, cells are picked without a branch, which would be mispredicted; the border's code is out of
    every range. Where all codes are in range only the border is not, and nothing needs to be picked.
    """
    shift, none = 2 * board.bits, np.int64(codebook_size)
    every = first_code == 0 and end_code == codebook_size
    picked = np.empty(_BLOCK, np.int64)
    group, stride = 0, board.strides[0] if board.strides.shape[0] > 0 else 0
    for start in range(0, board.cells.shape[0], period * _BLOCK):
        n = min(_BLOCK, board.cells.shape[0] - start)
        if not every:
            n = _pick(board, start, n, first_code, end_code, picked)
        for k in range(n):
            i = start + k if every else picked[unsigned(k)]
            v = np.int64(board.cells[unsigned(i)])
            if v == board.sentinel:
                continue
            while i >= board.ends[group]:
                group += 1
                stride = board.strides[group]
            code = v >> shift
            right = np.int64(board.cells[unsigned(i + 1)])
            below = np.int64(board.cells[unsigned(i + stride)])
            right = none if right == board.sentinel else right >> shift
            below = none if below == board.sentinel else below >> shift
            at = cursors[unsigned(code)]
            records[unsigned(at)] = (right << 48) | (below << 32) | i
            cursors[unsigned(code)] = at + 1


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
                record = records[unsigned(i)]
                counters[shard, 0, unsigned((record >> 48) & 0xFFFF)] += 1
                counters[shard, 1, unsigned((record >> 32) & 0xFFFF)] += 1
        for shard in range(shards):
            counters[shard, 0, codebook_size] = counters[shard, 1, codebook_size] = 0
        # a second pass takes each pair where it meets it first, and leaves the counters empty
        for shard in range(shards):
            for i in range(bounds[shard, code], bounds[shard, code + 1]):
                record = records[unsigned(i)]
                for below in range(2):
                    second = unsigned((record >> (32 if below == 1 else 48)) & 0xFFFF)
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


@inner
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
def _count_pairs_of(board, code, counts):
    """How often each code stands on the right of this one, `counts[0]`, and below it, `counts[1]`."""
    shift, begin = 2 * board.bits, np.int64(0)
    for group in range(board.ends.shape[0]):
        stride = board.strides[group]
        for i in range(begin, board.ends[group] - stride):  # the last line is border
            if np.int64(board.cells[i]) >> shift == code:
                counts[0, np.int64(board.cells[i + 1]) >> shift] += 1
                counts[1, np.int64(board.cells[i + stride]) >> shift] += 1
        begin = board.ends[group]


@kernel
def _list_pairs(
    records, bounds, codebook_size, first_code, end_code, pairs, key_bounds, starts, nowhere, pool
):
    """Write a shard's positions of pairs where `starts` says, as far as that is not negative.

    Those of code are `key_bounds[code:code + 2]`. Other pairs are written to `nowhere`, again and again: a branch
    would be mispredicted.
    """
    cursors = np.zeros((2, codebook_size + 1, 2), np.int64)  # and how far to move after writing
    cursors[:, :, 0] = nowhere
    for code in range(first_code, end_code):
        first_key, end_key = key_bounds[code], key_bounds[code + 1]
        if first_key == end_key:
            continue
        for key in range(first_key, end_key):
            if starts[key] >= 0:
                below, second = pairs[key, 2], pairs[key, 1]
                cursors[below, second, 0], cursors[below, second, 1] = starts[key], 1
        for i in range(bounds[code], bounds[code + 1]):
            record = records[unsigned(i)]
            right, below = unsigned((record >> 48) & 0xFFFF), unsigned((record >> 32) & 0xFFFF)
            position = record & 0xFFFFFFFF
            at = cursors[0, right, 0]
            pool[unsigned(at)] = position
            cursors[0, right, 0] = at + cursors[0, right, 1]
            at = cursors[1, below, 0]
            pool[unsigned(at)] = position
            cursors[1, below, 0] = at + cursors[1, below, 1]
        for key in range(first_key, end_key):
            below, second = pairs[key, 2], pairs[key, 1]
            cursors[below, second, 0], cursors[below, second, 1] = nowhere, 0


def can_count_codes(options: Options, team: Team) -> bool:
    """Are the cells 4 bytes, and the keys those of the law, of one process?"""
    return (
        options.scoring == "frequency"
        and options.merge_rule == "shape"
        and team.processes.size == 1
        and all(s.board.bits == 8 and s.position_dtype == np.uint32 for s in team.shards)
    )


def count_codes(options: Options, shapes: Shapes, team: Team, limits: Limits) -> KeyTable:
    """Count the keys of single cells down to a theta that leaves enough of them; list those that find room."""
    needed = SORTED_BYTES * sum(len(shard.board.cells) for shard in team.shards)
    room, positions = usual_room(needed), NO_LIMIT
    if options.memory_limit is not None:
        positions = team.room_for_positions(options.memory_limit) // 2
        room = max(_LEAST_ROOM, needed // _MOST_TURNS, positions * team.shards[0].bytes_a_position)
    counter = _CodeCounter(
        team, options.codebook_size, room, max(_FOUND_AT_ONCE, 4 * options.num_listed)
    )
    pairs, theta = counter.sample(options.min_count)
    totals = pairs[:, 3:].sum(axis=1) * counter.period
    theta = max(theta, _theta_from(totals, options))
    # merges seldom come down to theta: keys that are less frequent than this are listed if they do
    used = theta if theta == options.min_count else theta + theta // 3
    # where there are turns, only the sample says what finds room: what is listed may be some more, or less
    tier, listed = lowest_tier(totals[totals >= used], positions, used)
    team.make_pools(listed)
    keys = KeyTable(shapes, theta)
    keys.lower(tier)
    for turn in counter.turns:
        found = counter.pairs(turn, theta, pairs)
        below = found[:, 2]
        tokens, offsets = packed(np.stack([found[:, 0], found[:, 1], below, 1 - below], axis=1))
        kept = are_allowed(tokens, offsets, limits)
        totals = found[kept, 3:].sum(axis=1)
        keys.add(tokens[kept], offsets[kept], totals)
        counter.list_pairs(turn, found[kept], totals >= tier, keys)
    return keys


def _theta_from(totals: np.ndarray, options: Options) -> int:
    """A theta that leaves enough pairs with these counts."""
    if len(totals) <= options.num_listed:
        return options.min_count
    place = len(totals) - options.num_listed
    return max(options.min_count, int(np.partition(totals, place)[place]) // 2)


class _CodeCounter:
    """Counts the pairs of codes in all shards of this process.

    Args:
        team: the shards, whose tokens are single cells.
        room: bytes that the sorted cells may take at a time.
        at_once: the most pairs to find in a range of codes of the sample.

    Attributes:
        period: the sample is every so manieth block of the cells: all of them where they fit.
        turns: ranges of codes, whose cells fit; or one code, whose cells do not.
    """

    def __init__(self, team: Team, codebook_size: int, room: int, at_once: int):
        self._shards = team.shards
        self._each: Callable = team.each
        self._codebook_size = codebook_size
        self._at_once = at_once
        self._counts = self._count(1)
        ends = np.cumsum(self._counts.sum(axis=0))
        self._most = max(1, room // SORTED_BYTES)
        self.turns = _cuts(ends, self._most)
        needed = -(-int(ends[-1]) // self._most)
        self.period = 1 if needed <= 1 else max(_SAMPLED, needed)
        self._records = np.empty(0, np.int64)
        self._bounds = np.empty((0, 0), np.int64)

    def _count(self, period: int) -> np.ndarray:
        counts = np.zeros((len(self._shards), self._codebook_size), np.int64)
        self._each(
            lambda i: _count_codes(self._shards[i].board, period, counts[i]),
            range(len(self._shards)),
        )
        return counts

    def sample(self, min_count: int) -> tuple[np.ndarray, int]:
        """The pairs of the sample, or the most frequent ones of millions; and the theta that these reach.

        Rows are (first, second, is it below, count in each shard), by first code.
        """
        counts = self._counts if self.period == 1 else self._count(self.period)
        least = min_count if self.period == 1 else 1
        every = (0, self._codebook_size)
        self._sort(self.period, every, counts)
        found = self._each(
            lambda codes: self._pairs_of(codes, least, self._at_once), self._ranges(every)
        )
        reached = max(reached for _, reached in found)
        pairs = np.concatenate([pairs for pairs, _ in found])
        theta = min_count if reached == least else reached * self.period
        return pairs[pairs[:, 3:].sum(axis=1) >= reached], theta

    def pairs(self, turn: tuple[int, int], least: int, sample: np.ndarray) -> np.ndarray:
        """The pairs of a turn's codes that occur `least` times, as `sample` gives them."""
        if self.period == 1:
            return sample[sample[:, 3:].sum(axis=1) >= least]
        if self._is_too_large(turn):
            return self._pairs_of_one(turn[0], least)
        self._sort(1, turn, self._counts)

        def all_of(codes: tuple[int, int]) -> np.ndarray:
            reached, at_once = least + 1, self._at_once
            while reached > least:
                pairs, reached = self._pairs_of(codes, least, at_once)
                at_once *= 4
            return pairs

        return np.concatenate(self._each(all_of, self._ranges(turn)))

    def _pairs_of(self, codes: tuple[int, int], least: int, at_once: int) -> tuple[np.ndarray, int]:
        found = np.empty((at_once, 3 + len(self._shards)), np.int64)
        n, least = _frequent_pairs(
            self._records, self._bounds, self._codebook_size, *codes, least, found
        )
        return found[:n].copy(), least

    def _is_too_large(self, turn: tuple[int, int]) -> bool:
        return int(self._counts[:, turn[0] : turn[1]].sum()) > self._most

    def _pairs_of_one(self, code: int, least: int) -> np.ndarray:
        counts = np.zeros((len(self._shards), 2, 1 << 16), np.int64)  # the border has a code, too
        self._each(
            lambda i: _count_pairs_of(self._shards[i].board, code, counts[i]),
            range(len(self._shards)),
        )
        below, second = np.nonzero(counts.sum(axis=0)[:, : self._codebook_size] >= least)
        return np.column_stack(
            [np.full_like(second, code), second, below, *counts[:, below, second]]
        )

    def list_pairs(
        self, turn: tuple[int, int], pairs: np.ndarray, listed: np.ndarray, keys: KeyTable
    ) -> None:
        """Enter pairs of a turn's codes, the last ones of `keys`, into the shards, and list some of them."""
        key_bounds = np.searchsorted(pairs[:, 0], np.arange(self._codebook_size + 1))
        which = keys.size - len(pairs) + np.flatnonzero(listed)

        def write(i: int) -> None:
            shard = self._shards[i]
            if self._is_too_large(turn):
                shard.add_lists(pairs[:, 3 + i], np.zeros(len(pairs), bool), keys)
                shard.list_codes(which, keys)
                return
            starts = shard.add_lists(pairs[:, 3 + i], listed, keys)
            _list_pairs(
                self._records, self._bounds[i], self._codebook_size, *turn, pairs, key_bounds, starts,
                len(shard.pool) - 1, shard.pool,
            )  # fmt: skip

        self._each(write, range(len(self._shards)))

    def _sort(self, period: int, codes: tuple[int, int], counts: np.ndarray) -> None:
        """Sort the cells of these codes in every `period`-th block, of which there are `counts`."""
        own = np.zeros_like(counts)
        own[:, codes[0] : codes[1]] = counts[:, codes[0] : codes[1]]
        ends = np.cumsum(own.reshape(-1)).reshape(own.shape)
        self._bounds = np.concatenate([ends[:, :1] - own[:, :1], ends], axis=1)
        needed = int(ends[-1, -1])
        if needed > len(self._records):
            self._records = np.empty(0, np.int64)
            self._records = np.empty(needed, np.int64)
        cursors = self._bounds[:, :-1].copy()
        self._each(
            lambda i: _sort_by_code(
                self._shards[i].board,
                period,
                self._codebook_size,
                *codes,
                cursors[i],
                self._records,
            ),
            range(len(self._shards)),
        )

    def _ranges(self, turn: tuple[int, int]) -> list[tuple[int, int]]:
        """A turn's codes, cut into a range of about as many cells for each shard's thread."""
        ends = np.cumsum(self._counts[:, turn[0] : turn[1]].sum(axis=0))
        cuts = _even_cuts(ends, len(self._shards))
        return [(turn[0] + begin, turn[0] + end) for begin, end in cuts]


def _cuts(ends: np.ndarray, most: int) -> list[tuple[int, int]]:
    """Cut items into ranges of at most that total, or of one item, given their cumulated sizes."""
    cuts, taken = [0], 0
    while cuts[-1] < len(ends):
        end = int(np.searchsorted(ends, taken + most, side="right"))
        cuts.append(max(end, cuts[-1] + 1))
        taken = int(ends[cuts[-1] - 1])
    return list(itertools.pairwise(cuts))


def _even_cuts(ends: np.ndarray, parts: int) -> list[tuple[int, int]]:
    """Cut items into at most `parts` ranges of about the same total, given their cumulated sizes."""
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, parts) // max(1, parts), side="right")
    cuts = np.unique(np.concatenate([[0], inner, [len(ends)]]))
    return [(int(begin), int(end)) for begin, end in itertools.pairwise(cuts)]
