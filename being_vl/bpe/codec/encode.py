"""flat grids → flat tokens, compiled: arrays in, arrays out, the GIL released.

Source: points 5 to 7 of the law of the image BPE. Differs from the law's wording in that a queue of ranks
replaces one pass per rule: a merge makes only rules of later ranks applicable, so one sweep over a bitset
of waiting ranks meets every rule once. Without numba this module imports, and nothing in it is to be called.

A grid lies in rows of `stride` cells, a power of two of at least twice its width, with one empty row above
and below. So two tokens of a grid have one flat distance for one offset and the reverse, and neighbours
are read without bounds checks.
"""

from __future__ import annotations

import numpy as np

from .._jit import explain_compilation, inlined, kernel
from ..shapes import TokenTable, cells_around, flat_position, ragged

_HASH = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_ONE, _SIX, _LOW6, _TOP6 = np.uint64(1), np.uint64(6), np.uint64(63), np.uint64(58)
_BIT_OF = np.zeros(64, dtype=np.int64)
for _bit in range(64):
    _BIT_OF[(0x03F79D71B4CB0A89 << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


class KernelEncoder:
    """Encodes with the compiled kernel; merge_rule "shape" alone."""

    def __init__(self, merges: np.ndarray, codebook_size: int, table: TokenTable):
        self._merges = np.array(merges)
        self._codebook_size = codebook_size
        self._table = table
        self._by_stride: dict[int, tuple[np.ndarray, ...]] = {}

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As PlainCodec.encode."""
        stride = 1 << int(2 * widths.max() - 1).bit_length()
        if stride not in self._by_stride:
            self._by_stride[stride] = self._at_stride(stride)
        tables = self._by_stride[stride]
        with explain_compilation(encode_grids):
            return encode_grids(codes, heights, widths, stride, self._codebook_size, tables)

    def _at_stride(self, stride: int) -> tuple[np.ndarray, ...]:
        """What encode_grids takes after the codebook's size, for rows of this many cells."""
        table, merges = self._table, self._merges.astype(np.int64)
        step = merges[:, 2] * stride + merges[:, 3]
        usable = (np.abs(merges[:, 3]) < stride // 2) & (step < 1 << 31)  # no grid here has others
        second = merges[:, 1]
        sizes = table.start[second + 1] - table.start[second]
        cells_end = np.cumsum(sizes)
        cell = flat_position(table.position, stride)[ragged(table.start[second], sizes)]
        edge_start, edge = cells_around(table, self._merges, self._codebook_size)
        rules = np.zeros((len(merges), 8), dtype=np.int32)
        rules[:, :2] = merges[:, :2]
        rules[:, 2] = np.where(usable, step, -1)
        rules[:, 3], rules[:, 4] = cells_end - sizes, cells_end
        rules[:, 5], rules[:, 6] = edge_start[:-1], edge_start[1:]
        slots = np.full(1 << max(6, (2 * len(merges)).bit_length()), -1, dtype=np.int32)
        bloom = np.zeros(max(1, len(slots) // 4), dtype=np.uint64)
        build_ranks(rules, usable, slots, bloom)
        cell += np.repeat(step, sizes)
        return (
            rules,
            slots,
            bloom,
            cell.astype(np.int32),
            flat_position(edge, stride).astype(np.int32),
        )


# Columns of the table of rules: one row of 32 bytes, so one cache line, holds all about a rank.
FIRST, SECOND, STEP, CELLS, CELLS_END, EDGE, EDGE_END = range(7)


@inlined
def _top_shift(size):
    """How far to shift a hash right for an index below size, a power of two."""
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return np.uint64(64 - bits)


@inlined
def _mix(first, second, step):
    return np.uint64(first) * _HASH[0] + np.uint64(second) * _HASH[1] + np.uint64(step) * _HASH[2]


@kernel
def build_ranks(rules, usable, slots, bloom):
    """Fill the hash table of ranks and its bit filter.

    rules is int32 (M, 8); slots int32 (2^n,) of -1; bloom uint64 (2^m,) of zeros.
    """
    slot_shift, bloom_shift = _top_shift(len(slots)), _top_shift(64 * len(bloom))
    for rank in range(len(rules)):
        if usable[rank]:
            mixed = _mix(rules[rank, FIRST], rules[rank, SECOND], rules[rank, STEP])
            bit = mixed >> bloom_shift
            bloom[np.int64(bit >> _SIX)] |= _ONE << (bit & _LOW6)
            slot = np.int64(mixed >> slot_shift)
            while slots[slot] >= 0:
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = rank


@inlined
def _rank_of(first, second, step, mixed, rules, slots, slot_shift):
    """The rank of a rule, or -1."""
    slot = np.int64(mixed >> slot_shift)
    while True:
        rank = slots[slot]
        if rank < 0 or (
            rules[rank, FIRST] == first
            and rules[rank, SECOND] == second
            and rules[rank, STEP] == step
        ):
            return rank
        slot = (slot + 1) & (len(slots) - 1)


@inlined
def _wait(rank, at, entries, used, newest, waiting):
    """Note that the rule of this rank applies at this anchor; returns how many entries are used."""
    entries[used, 0] = at
    entries[used, 1] = newest[rank]
    newest[rank] = used
    waiting[rank >> 6] |= _ONE << np.uint64(rank & 63)
    return used + 1


@inlined
def _lay(codes, read, height, width, stride, vocabulary, board):
    """Lay a grid out, and note every rule that applies to two single cells."""
    rules, slots, bloom, _, _ = vocabulary
    owner, token, entries, newest, waiting = board
    slot_shift, bloom_shift = _top_shift(len(slots)), _top_shift(64 * len(bloom))
    right, below = _HASH[2], np.uint64(stride) * _HASH[2]
    owner[: (height + 2) * stride] = -1
    token[: (height + 2) * stride] = -1
    used = 0
    for row in range(height):
        at = (row + 1) * stride
        for col in range(width):
            code = codes[read]
            owner[at] = at
            token[at] = code
            part = np.uint64(code) * _HASH[0]
            if col + 1 < width:
                other = codes[read + 1]
                mixed = part + np.uint64(other) * _HASH[1] + right
                bit = mixed >> bloom_shift
                if (bloom[np.int64(bit >> _SIX)] >> (bit & _LOW6)) & _ONE:
                    rank = _rank_of(code, other, 1, mixed, rules, slots, slot_shift)
                    if rank >= 0:
                        used = _wait(rank, at, entries, used, newest, waiting)
            if row + 1 < height:
                other = codes[read + width]
                mixed = part + np.uint64(other) * _HASH[1] + below
                bit = mixed >> bloom_shift
                if (bloom[np.int64(bit >> _SIX)] >> (bit & _LOW6)) & _ONE:
                    rank = _rank_of(code, other, stride, mixed, rules, slots, slot_shift)
                    if rank >= 0:
                        used = _wait(rank, at, entries, used, newest, waiting)
            read += 1
            at += 1
    return used


@inlined
def _note_neighbours(at, made, begin, end, used, vocabulary, board):
    """Note every rule that applies to the token just made and one that touches it."""
    rules, slots, bloom, _, edge = vocabulary
    owner, token, entries, newest, waiting = board
    slot_shift, bloom_shift = _top_shift(len(slots)), _top_shift(64 * len(bloom))
    last = np.int64(-1)
    for k in range(begin, end):
        near = np.int64(owner[at + edge[k]])
        if near < 0 or near == last:
            continue
        last = near
        other = np.int64(token[near])
        if near < at:
            low, one, two, step = near, other, made, at - near
        else:
            low, one, two, step = at, made, other, near - at
        mixed = _mix(one, two, step)
        bit = mixed >> bloom_shift
        if (bloom[np.int64(bit >> _SIX)] >> (bit & _LOW6)) & _ONE:
            rank = _rank_of(one, two, step, mixed, rules, slots, slot_shift)
            if rank >= 0:
                used = _wait(rank, low, entries, used, newest, waiting)
    return used


@inlined
def _sweep(size, codebook_size, used, vocabulary, board):
    """Apply the waiting rules in rank order; returns whether entries were enough."""
    rules, _, _, cell, _ = vocabulary
    owner, token, entries, newest, waiting = board
    word = 0
    while word < len(waiting):
        bits = waiting[word]
        if bits == 0:
            word += 1
            continue
        lowest = bits & (~bits + _ONE)
        waiting[word] = bits ^ lowest
        rank = (word << 6) + _BIT_OF[np.int64((lowest * _DE_BRUIJN) >> _TOP6)]
        first, second, step = rules[rank, FIRST], rules[rank, SECOND], np.int64(rules[rank, STEP])
        cells, cells_end = rules[rank, CELLS], rules[rank, CELLS_END]
        begin, end = rules[rank, EDGE], rules[rank, EDGE_END]
        made = codebook_size + rank
        entry = newest[rank]
        newest[rank] = -1
        while entry >= 0:
            at = np.int64(entries[entry, 0])
            entry = entries[entry, 1]
            if first == second and token[at] == first:  # to the head of a chain a a a
                while at >= step and token[at - step] == first:
                    at -= step
            while at + step < size and token[at] == first and token[at + step] == second:
                token[at] = made
                token[at + step] = -1
                for k in range(cells, cells_end):
                    owner[at + cell[k]] = at
                if used + end - begin > len(entries):
                    return False
                used = _note_neighbours(at, made, begin, end, used, vocabulary, board)
                if first != second:
                    break
                at += 2 * step
    return True


@inlined
def _emit(height, width, stride, token, ids, written):
    """Write the tokens in raster order of their anchors; returns how many ids are written."""
    for row in range(height):
        for at in range((row + 1) * stride, (row + 1) * stride + width):
            ids[written] = token[at]
            written += token[at] >= 0
    return written


@kernel
def encode_grids(codes, heights, widths, stride, codebook_size, vocabulary):
    """Encode grids that lie one after another in codes.

    Args:
        codes: int32, raster order; heights, widths: int64, one a grid.
        stride: int64, a power of two ≥ 2 * max(widths).
        vocabulary: rules, slots, bloom, cell, edge. rules is int32 (M, 8): first, second, their distance
            at this stride, and the ranges of cell and edge; build_ranks fills slots and bloom; cell says
            where the cells of a rule's second part lie, edge where the cells around its token lie (none
            for a token that no rule takes up), both int32 from the anchor of the first.

    Returns:
        ids int32, one grid after another, and int64 counts.
    """
    size = (heights.max() + 2) * stride
    owner = np.empty(size, dtype=np.int32)  # the anchor of the token on a cell, -1 outside
    token = np.empty(size, dtype=np.int32)  # the id at an anchor, -1 elsewhere
    entries = np.empty((max(1024, 2 * (heights * widths).max()), 2), dtype=np.int32)  # anchor, next
    ids = np.empty(len(codes) + 1, dtype=np.int32)
    counts = np.empty(len(heights), dtype=np.int64)
    rules = vocabulary[0]
    newest = np.full(len(rules) + 1, -1, dtype=np.int32)  # by rank, the head of a list of entries
    waiting = np.zeros(len(rules) // 64 + 1, dtype=np.uint64)  # a bit a rank: is its list filled?
    read = 0
    written = 0
    for grid in range(len(heights)):
        height, width = heights[grid], widths[grid]
        while True:
            board = (owner, token, entries, newest, waiting)
            used = _lay(codes, read, height, width, stride, vocabulary, board)
            if _sweep((height + 2) * stride, codebook_size, used, vocabulary, board):
                break
            entries = np.empty((2 * len(entries), 2), dtype=np.int32)  # once more, with more
            newest[:] = -1
            waiting[:] = 0
        read += height * width
        end = _emit(height, width, stride, token, ids, written)
        counts[grid] = end - written
        written = end
    return ids[:written].copy(), counts
