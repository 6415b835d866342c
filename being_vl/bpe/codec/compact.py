"""codes → fewer tokens than the merges give: a covering of the grid that looks for large tokens.

Any sequence of tokens that covers the grid exactly decodes, so the merges' own covering need not be used. All
places where a token fits are listed; the largest are placed first, then exchanges that save a token are made until
none does, or the rounds are over. Deterministic, never more tokens than the merges give, at twenty to fifty times
their work. The functions are compiled where numba is installed, and give the same result without it.
"""

from typing import Any

import numpy as np

from .._jit import explain_compilation, inlined, kernel
from ..grids import split_flat
from ..shapes import TokenTable, split_position

MAX_PLACES = 1 << 20  # per grid; on blank grids of rich vocabularies later tokens are then left out
ROUNDS = 4
_OPEN = -1


class CompactEncoder:
    """Encodes with coverings; takes and returns what the other codecs do."""

    def __init__(self, merges: np.ndarray, codebook_size: int, table: TokenTable, by_merges: Any):
        row, col = split_position(table.position)
        self._vocabulary = (np.array(merges), codebook_size, (table.start, row, col, table.code))
        self._by_merges = by_merges

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As PlainEncoder.encode."""
        merged = self._by_merges.encode(codes, heights, widths)
        with explain_compilation(cover_grids):
            covered = cover_grids(codes, heights, widths, *self._vocabulary)
        pairs = zip(split_flat(*covered), split_flat(*merged), strict=True)
        shorter = [ids if len(ids) < len(other) else other for ids, other in pairs]
        return np.concatenate(shorter), np.minimum(covered[1], merged[1])


@kernel
def cover_grids(codes, heights, widths, merges, codebook_size, table):
    """Cover grids that lie one after another in codes; ids int32 and int64 counts.

    merges is int32 (M, 4); table is start, row, col, code: the cells of id v are [start[v]:start[v + 1]]
    of the others.
    """
    head = np.full(codebook_size, -1, dtype=np.int64)
    ids = np.empty(len(codes), dtype=np.int32)
    counts = np.empty(len(heights), dtype=np.int64)
    read = 0
    written = 0
    for grid in range(len(heights)):
        height, width = heights[grid], widths[grid]
        size = height * width
        board = codes[read : read + size]
        token, place = list_places(board, height, width, merges, codebook_size, table, head)
        token, place = by_size_then_place(token, place, table[0], size)
        places = (token, place, width)
        owner = np.full(size, _OPEN, dtype=np.int32)  # which place lies on a cell
        for one in range(len(token)):
            if is_free(one, places, table, owner):
                lay(one, one, places, table, owner)
        improve(places, by_anchor(place, size), table, owner)
        before = written
        for at in range(size):
            one = owner[at]
            if one == _OPEN:
                ids[written] = board[at]
                written += 1
            elif place[one] == at:
                ids[written] = token[one]
                written += 1
        counts[grid] = written - before
        read += size
    return ids[:written].copy(), counts


@inlined
def list_places(board, height, width, merges, codebook_size, table, head):
    """Every place of every merged token in a grid, in order of ids and places."""
    start, row, col, code = table
    size = height * width
    following = np.empty(size, dtype=np.int64)  # the next cell of the same code
    for at in range(size - 1, -1, -1):
        following[at] = head[board[at]]
        head[board[at]] = at
    token = np.empty(4 * size + 16, dtype=np.int32)
    place = np.empty(4 * size + 16, dtype=np.int32)
    ends = np.zeros(len(merges) + 1, dtype=np.int64)  # of each rank's run of places
    used = 0
    for rank in range(len(merges)):
        # A merge lies wherever its first part does and the cells of its second fit. The places of a first part are
        # known by then (parts have lower ranks), in raster order; of a code, they are the list from `head`.
        first, second = merges[rank, 0], merges[rank, 1]
        is_code = first < codebook_size
        at = head[first] if is_code else ends[first - codebook_size]
        stop = -1 if is_code else ends[first - codebook_size + 1]
        while at != stop:
            anchor = at if is_code else np.int64(place[at])
            at = following[at] if is_code else at + 1
            y = anchor // width + merges[rank, 2]
            x = anchor % width + merges[rank, 3]
            for k in range(start[second], start[second + 1]):
                r, c = y + row[k], x + col[k]
                if r >= height or c < 0 or c >= width or board[r * width + c] != code[k]:
                    break
            else:
                if used == len(token):
                    token, place = doubled(token), doubled(place)
                token[used] = codebook_size + rank
                place[used] = anchor
                used += 1
        ends[rank + 1] = used
        if used > MAX_PLACES:
            break
    # `head` serves all grids of a call: only what this one has set is cleared, not the whole codebook.
    for at in range(size):
        head[board[at]] = -1
    return token[:used], place[:used]


@inlined
def doubled(array):
    larger = np.empty(2 * len(array), dtype=array.dtype)
    larger[: len(array)] = array
    return larger


@inlined
def by_size_then_place(token, place, start, cells):
    """Sort places given in order of ids: large tokens first, then raster order, then ids.

    Two stable counting sorts, the lesser key first: the same on every machine, in linear time.
    """
    key = np.empty(len(token), dtype=np.int64)
    for one in range(len(token)):
        key[one] = place[one]
    order = stable_order(key, cells)
    largest = 0
    for one in range(len(token)):
        key[one] = start[token[order[one]] + 1] - start[token[order[one]]]
        largest = max(largest, key[one])
    for one in range(len(token)):
        key[one] = largest - key[one]
    order = order[stable_order(key, largest + 1)]
    return token[order], place[order]


@inlined
def stable_order(key, bound):
    """Counting sort: the order of keys in [0, bound)."""
    begin = np.zeros(bound + 1, dtype=np.int64)
    for one in range(len(key)):
        begin[key[one] + 1] += 1
    for value in range(bound):
        begin[value + 1] += begin[value]
    order = np.empty(len(key), dtype=np.int64)
    for one in range(len(key)):
        order[begin[key[one]]] = one
        begin[key[one]] += 1
    return order


@inlined
def by_anchor(place, cells):
    """Lists of places by anchor, in their order: the first of a cell, and the next of a place."""
    first_at = np.full(cells, -1, dtype=np.int64)
    next_at = np.empty(len(place), dtype=np.int64)
    for one in range(len(place) - 1, -1, -1):
        next_at[one] = first_at[place[one]]
        first_at[place[one]] = one
    return first_at, next_at


@inlined
def is_free(one, places, table, owner):
    """Are all cells of a place open?"""
    token, place, width = places
    start, row, col, _ = table
    for k in range(start[token[one]], start[token[one] + 1]):
        if owner[place[one] + row[k] * width + col[k]] != _OPEN:
            return False
    return True


@inlined
def lay(mark, one, places, table, owner):
    """Write a mark on the cells of a place."""
    token, place, width = places
    start, row, col, _ = table
    for k in range(start[token[one]], start[token[one] + 1]):
        owner[place[one] + row[k] * width + col[k]] = mark


@inlined
def improve(places, by_anchor, table, owner):
    """Exchange laid tokens for others wherever that leaves fewer, for some rounds."""
    place = places[1]
    saved = owner.copy()  # what `owner` was before the exchange under trial; elsewhere they agree
    for _ in range(ROUNDS):
        changed = False
        for one in range(len(place)):
            if owner[place[one]] == one:
                continue
            gain, begin, end = exchange(one, places, by_anchor, table, owner)
            if gain > 0:
                saved[begin:end] = owner[begin:end]
                changed = True
            else:
                owner[begin:end] = saved[begin:end]
        if not changed:
            break


@inlined
def exchange(one, places, by_anchor, table, owner):
    """Place a token over those it overlaps, and fill the cells that this uncovers.

    Returns the tokens saved (negative if there are more), and the range of cells that may have changed.
    """
    token, place, width = places
    start, row, col, _ = table
    first_at, next_at = by_anchor
    begin, end = np.int64(place[one]), last_cell(one, places, table) + 1
    gain = start[token[one] + 1] - start[token[one]] - 1
    for k in range(start[token[one]], start[token[one] + 1]):
        other = owner[place[one] + row[k] * width + col[k]]
        if other != _OPEN:
            lay(_OPEN, other, places, table, owner)
            gain -= start[token[other] + 1] - start[token[other]] - 1
            begin = min(begin, np.int64(place[other]))
            end = max(end, last_cell(other, places, table) + 1)
    lay(one, one, places, table, owner)
    for at in range(begin, end):
        other = first_at[at] if owner[at] == _OPEN else np.int64(-1)
        while other >= 0:
            if is_free(other, places, table, owner):
                lay(other, other, places, table, owner)
                gain += start[token[other] + 1] - start[token[other]] - 1
                end = max(end, last_cell(other, places, table) + 1)
                break
            other = next_at[other]
    return gain, begin, end


@inlined
def last_cell(one, places, table):
    """The last cell of a place in raster order."""
    token, place, width = places
    start, row, col, _ = table
    k = start[token[one] + 1] - 1
    return np.int64(place[one] + row[k] * width + col[k])
