"""flat grids ↔ flat tokens, compiled: arrays in, arrays out, the GIL released.

Source: points 5 to 8 of the law of the image BPE. Differs from the law's wording in that a queue of ranks
replaces one pass per rule: a merge makes only rules of later ranks applicable, so one sweep over a bitset
of waiting ranks meets every rule once. Without numba this module imports, and nothing in it is to be called.

A grid lies in rows of `stride` cells, a power of two of at least twice its width, with one empty row above
and below. So two tokens of a grid have one flat distance for one offset and the reverse, and neighbours
are read without bounds checks.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .image_bpe_plain import OK, OUT_OF_RANGE, OVER_BORDER, OVERLAP, TOO_FEW, TOO_MANY

try:  # inside try: transformers demands what a checkpoint's module imports outside of one
    import numba
except ImportError:
    numba = None

HAVE_NUMBA = numba is not None

_logger = logging.getLogger(__name__)

_HASH = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64)
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_ONE, _SIX, _LOW6, _TOP6 = np.uint64(1), np.uint64(6), np.uint64(63), np.uint64(58)
_BIT_OF = np.zeros(64, dtype=np.int64)
for _bit in range(64):
    _BIT_OF[(0x03F79D71B4CB0A89 << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


def _jit(function: Callable[..., Any]) -> Callable[..., Any]:
    if numba is None:
        return function
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # no folder here is writable: compile in every process
        return numba.njit(nogil=True)(function)


@contextmanager
def explain_compilation(kernel: Any) -> Iterator[None]:
    """Say so when the first call of a kernel makes the caller wait."""
    if kernel.signatures:
        yield
        return
    notice = threading.Timer(
        2.0, _logger.warning, ["compiling the image BPE kernels, once on this machine"]
    )
    notice.daemon = True
    notice.start()
    try:
        yield
    finally:
        notice.cancel()


@_jit
def _mix(first, second, distance):
    return (
        np.uint64(first) * _HASH[0] + np.uint64(second) * _HASH[1] + np.uint64(distance) * _HASH[2]
    )


@_jit
def build_ranks(merges, distance, usable, table, bloom):
    """Fill the open-addressing table of (first, second, distance, rank) rows and its bit filter.

    table is int32 (2^n, 4) filled with -1, bloom uint64 (2^m,) of zeros; hash bits are taken from the top.
    """
    table_shift = _top_shift(len(table))
    bloom_shift = _top_shift(len(bloom) * 64)
    mask = len(table) - 1
    for rank in range(len(merges)):
        if not usable[rank]:
            continue
        mixed = _mix(merges[rank, 0], merges[rank, 1], distance[rank])
        bit = mixed >> bloom_shift
        bloom[np.int64(bit >> _SIX)] |= _ONE << (bit & _LOW6)
        slot = np.int64(mixed >> table_shift)
        while table[slot, 3] >= 0:
            slot = (slot + 1) & mask
        table[slot, 0] = merges[rank, 0]
        table[slot, 1] = merges[rank, 1]
        table[slot, 2] = distance[rank]
        table[slot, 3] = rank


@_jit
def _top_shift(size):
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return np.uint64(64 - bits)


@_jit
def _rank_of(first, second, distance, mixed, table, table_shift):
    mask = len(table) - 1
    slot = np.int64(mixed >> table_shift)
    while True:
        rank = table[slot, 3]
        if rank < 0:
            return np.int64(-1)
        if table[slot, 0] == first and table[slot, 1] == second and table[slot, 2] == distance:
            return np.int64(rank)
        slot = (slot + 1) & mask


@_jit
def _grown(array):
    larger = np.empty(2 * len(array), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@_jit
def encode_grids(
    codes,
    heights,
    widths,
    stride,
    codebook_size,
    merges,
    distance,
    table,
    bloom,
    start,
    cell,
    edge_start,
    edge,
):
    """Encode grids that lie one after another in codes.

    Args:
        codes: int32, raster order; heights, widths: int64, one a grid.
        stride: int64, a power of two ≥ 2 * max(widths).
        merges: int32 (M, 4); distance: int64 (M,), each rule's offset at this stride.
        table, bloom: as build_ranks fills them.
        start, cell: the cells of id v at this stride are cell[start[v]:start[v + 1]].
        edge_start, edge: the cells around the token of rank r, edge[edge_start[r]:edge_start[r + 1]];
            none for a token that no rule takes up.

    Returns:
        ids int32, one grid after another, and int64 counts.
    """
    size = (heights.max() + 2) * stride
    owner = np.empty(size, dtype=np.int32)  # the anchor of the token on a cell, -1 outside
    token = np.empty(size, dtype=np.int32)  # the id at an anchor, -1 elsewhere
    first_entry = np.full(
        len(merges) + 1, -1, dtype=np.int32
    )  # by rank, a list of anchors of `first`
    waiting = np.zeros(len(merges) // 64 + 1, dtype=np.uint64)  # a bit a rank: is its list filled?
    entry_next = np.empty(4096, dtype=np.int32)
    entry_at = np.empty(4096, dtype=np.int32)
    ids = np.empty(len(codes), dtype=np.int32)
    counts = np.empty(len(heights), dtype=np.int64)
    table_shift = _top_shift(len(table))
    bloom_shift = _top_shift(len(bloom) * 64)
    right, below = np.uint64(1) * _HASH[2], np.uint64(stride) * _HASH[2]
    read = 0
    written = 0
    for grid in range(len(heights)):
        height, width = heights[grid], widths[grid]
        size = (height + 2) * stride
        owner[:size] = -1
        token[:size] = -1
        while 2 * height * width > len(entry_at):
            entry_next, entry_at = _grown(entry_next), _grown(entry_at)
        entries = 0
        for row in range(height):
            for col in range(width):
                at = (row + 1) * stride + col
                code = codes[read]
                owner[at] = at
                token[at] = code
                part = np.uint64(code) * _HASH[0]
                for way in range(2):
                    if way == 0:
                        if col + 1 == width:
                            continue
                        other, step = codes[read + 1], np.int64(1)
                        mixed = part + np.uint64(other) * _HASH[1] + right
                    else:
                        if row + 1 == height:
                            continue
                        other, step = codes[read + width], stride
                        mixed = part + np.uint64(other) * _HASH[1] + below
                    bit = mixed >> bloom_shift
                    if (bloom[np.int64(bit >> _SIX)] >> (bit & _LOW6)) & _ONE:
                        rank = _rank_of(code, other, step, mixed, table, table_shift)
                        if rank >= 0:
                            entry_at[entries] = at
                            entry_next[entries] = first_entry[rank]
                            first_entry[rank] = entries
                            entries += 1
                            waiting[rank >> 6] |= _ONE << np.uint64(rank & 63)
                read += 1
        word = 0
        while word < len(waiting):
            bits = waiting[word]
            if bits == 0:
                word += 1
                continue
            lowest = bits & (~bits + _ONE)
            waiting[word] = bits ^ lowest
            rank = (word << 6) + _BIT_OF[np.int64((lowest * _DE_BRUIJN) >> _TOP6)]
            first, second, step = merges[rank, 0], merges[rank, 1], distance[rank]
            made = np.int32(codebook_size + rank)
            entry = first_entry[rank]
            first_entry[rank] = -1
            while entry >= 0:
                at = np.int64(entry_at[entry])
                entry = entry_next[entry]
                if first == second and token[at] == first:  # to the head of a chain a a a
                    while at >= step and token[at - step] == first:
                        at -= step
                while at + step < size and token[at] == first and token[at + step] == second:
                    other_at = at + step
                    token[at] = made
                    token[other_at] = -1
                    for k in range(start[second], start[second + 1]):
                        owner[other_at + cell[k]] = at
                    begin, end = edge_start[rank], edge_start[rank + 1]
                    while entries + end - begin > len(entry_at):
                        entry_next, entry_at = _grown(entry_next), _grown(entry_at)
                    last = np.int64(-1)
                    for k in range(begin, end):
                        near = np.int64(owner[at + edge[k]])
                        if near < 0 or near == last:
                            continue
                        last = near
                        if near < at:
                            low, one, two = near, token[near], made
                        else:
                            low, one, two = at, made, token[near]
                        apart = near + at - 2 * low
                        mixed = _mix(one, two, apart)
                        bit = mixed >> bloom_shift
                        if (bloom[np.int64(bit >> _SIX)] >> (bit & _LOW6)) & _ONE:
                            found = _rank_of(one, two, apart, mixed, table, table_shift)
                            if found >= 0:
                                entry_at[entries] = low
                                entry_next[entries] = first_entry[found]
                                first_entry[found] = entries
                                entries += 1
                                waiting[found >> 6] |= _ONE << np.uint64(found & 63)
                    if first != second:
                        break
                    at = other_at + step
        before = written
        for row in range(height):
            for at in range((row + 1) * stride, (row + 1) * stride + width):
                if token[at] >= 0:
                    ids[written] = token[at]
                    written += 1
        counts[grid] = written - before
    return ids[:written].copy(), counts


@_jit
def decode_grids(ids, counts, heights, widths, codebook_size, start, row, col, code, box):
    """Decode sequences of ids that lie one after another.

    Args:
        ids: int64; counts, heights, widths: int64, one a grid.
        start, row, col, code: the cells of id v are [start[v]:start[v + 1]] of the others.
        box: int32 (V, 3), last row, first column and last column of each token.

    Returns:
        int32 codes of all grids, what is wrong with each grid, and at which of its ids.
    """
    codes = np.full((heights * widths).sum(), -1, dtype=np.int32)
    status = np.zeros(len(counts), dtype=np.int64)
    index = np.zeros(len(counts), dtype=np.int64)
    vocab_size = len(start) - 1
    read = 0
    base = 0
    for grid in range(len(counts)):
        height, width = heights[grid], widths[grid]
        size = height * width
        anchor, anchor_row, row_end = 0, 0, width
        state, i = OK, 0
        while i < counts[grid]:
            token = ids[read + i]
            if token < 0 or token >= vocab_size:
                state = OUT_OF_RANGE
                break
            while anchor < size and codes[base + anchor] >= 0:
                anchor += 1
            if anchor == size:
                state = TOO_MANY
                break
            if token < codebook_size:
                codes[base + anchor] = token
                i += 1
                continue
            while anchor >= row_end:
                anchor_row += 1
                row_end += width
            anchor_col = anchor - row_end + width
            if (
                anchor_row + box[token, 0] >= height
                or anchor_col + box[token, 1] < 0
                or anchor_col + box[token, 2] >= width
            ):
                state = OVER_BORDER
                break
            for k in range(start[token], start[token + 1]):
                at = base + anchor + row[k] * width + col[k]
                if codes[at] >= 0:
                    state = OVERLAP
                    break
                codes[at] = code[k]
            if state != OK:
                break
            i += 1
        if state == OK:
            while anchor < size and codes[base + anchor] >= 0:
                anchor += 1
            if anchor < size:
                state = TOO_FEW
        status[grid], index[grid] = state, i
        read += counts[grid]
        base += size
    return codes, status, index
