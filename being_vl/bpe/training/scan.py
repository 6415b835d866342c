"""cells → keys, counts and positions: counting tokens of any shape, whenever the heap runs dry.

Three passes over the cells keep memory bounded. The sketch: each key adds to one of a few million counters,
so a counter is an upper bound. The exact count: counters that reach the threshold become slots, and the
first key that falls on a slot is counted in its row; the few others of the slot go to a hash table. The
positions of those that are kept, by the same rows and table.

A row, of a slot or of the table, is (tokens, offset, count or cursor, step of the cursor). Slot 0 takes
what falls on no slot, so that the common cases share one branch.
"""

from __future__ import annotations

import numpy as np

from .._jit import inner, kernel, prefetch
from .choose import hash_of, offset_of, tokens_of
from .pair import pairs_of_line

SKETCH, COUNT, LIST = 0, 1, 2
# a sketch counter stops here, so that the sketches of 255 shards add up in 32 bits
SATURATED = 1 << 24


@kernel
def find(table, tokens, offset):
    """The row of a key, or the free row where it belongs (column 0 is -1)."""
    mask = table.shape[0] - 1
    h = hash_of(tokens, offset) & mask
    while table[h, 0] != -1 and (table[h, 0] != tokens or table[h, 1] != offset):
        h = (h + 1) & mask
    return h


@kernel
def new_table(size):
    table = np.empty((size, 4), np.int64)
    table[:, 0] = -1
    return table


@inner
def _enlarged(table):
    """The same keys in a table four times as large."""
    larger = new_table(4 * table.shape[0])
    for i in range(table.shape[0]):
        if table[i, 0] != -1:
            h = find(larger, table[i, 0], table[i, 1])
            for j in range(4):
                larger[h, j] = table[i, j]
    return larger


@kernel
def number_slots(sketch, theta):
    """Replace each counter that reaches theta by the number of its slot, others by 0; how many slots."""
    slots = 0
    for i in range(sketch.shape[0]):
        if sketch[i] >= theta:
            slots += 1
            sketch[i] = slots
        else:
            sketch[i] = 0
    return slots


@kernel
def mark(sketch, tokens, offsets):
    """Set the counters of these keys to 1."""
    for i in range(tokens.shape[0]):
        sketch[hash_of(tokens[i], offsets[i]) & (sketch.shape[0] - 1)] = 1


@kernel
def aim_keys(tokens, offsets, cursors, slots, by_pair, rows, table, nowhere):
    """Give each kept key its row, with the cursor of its positions; `nowhere` takes those of slot 0."""
    rows[:, 0] = -1
    rows[0, 2], rows[0, 3] = nowhere, 0
    for i in range(tokens.shape[0]):
        slot = slots[hash_of(tokens[i], 0 if by_pair else offsets[i]) & (slots.shape[0] - 1)]
        target, h = rows, np.int64(slot)
        if rows[h, 0] != -1:
            target, h = table, find(table, tokens[i], offsets[i])
        target[h, 0], target[h, 1] = tokens[i], offsets[i]
        target[h, 2], target[h, 3] = cursors[i], 1


@inner
def _add_to_sketch(pairs, n, by_pair, sketch):
    mask = sketch.shape[0] - 1
    for i in range(n):
        bucket = hash_of(pairs[i, 0], 0 if by_pair else pairs[i, 1]) & mask
        pairs[i, 3] = bucket
        prefetch(sketch, bucket)
    for i in range(n):
        bucket = pairs[i, 3]
        if sketch[bucket] < SATURATED:
            sketch[bucket] += 1


@inner
def _find_slots(pairs, n, by_pair, slots, rows):
    """Set column 3 to each pair's slot."""
    mask, flat = slots.shape[0] - 1, rows.reshape(-1)
    for i in range(n):
        bucket = hash_of(pairs[i, 0], 0 if by_pair else pairs[i, 1]) & mask
        pairs[i, 3] = bucket
        prefetch(slots, bucket)
    for i in range(n):
        slot = np.int64(slots[pairs[i, 3]])
        pairs[i, 3] = slot
        prefetch(flat, 4 * slot)


@inner
def _add_to_counts(pairs, n, rows, table):
    """Returns how many keys were new in the table."""
    new = 0
    for i in range(n):
        slot = pairs[i, 3]
        own = (rows[slot, 0] == pairs[i, 0]) & (rows[slot, 1] == pairs[i, 1])
        if own | (slot == 0):
            rows[slot, 2] += 1
        elif rows[slot, 0] == -1:
            rows[slot, 0], rows[slot, 1], rows[slot, 2] = pairs[i, 0], pairs[i, 1], 1
        else:
            h = find(table, pairs[i, 0], pairs[i, 1])
            if table[h, 0] == -1:
                table[h, 0], table[h, 1], table[h, 2] = pairs[i, 0], pairs[i, 1], 0
                new += 1
            table[h, 2] += 1
    return new


@inner
def _add_to_pool(pairs, n, rows, table, pool):
    for i in range(n):
        slot = pairs[i, 3]
        own = (rows[slot, 0] == pairs[i, 0]) & (rows[slot, 1] == pairs[i, 1])
        if own | (slot == 0):
            pool[rows[slot, 2]] = pairs[i, 2]
            rows[slot, 2] += rows[slot, 3]
        else:
            h = find(table, pairs[i, 0], pairs[i, 1])
            if table[h, 0] != -1:
                pool[table[h, 2]] = pairs[i, 2]
                table[h, 2] += 1


@inner
def _pairs_of_line(
    cells,
    line,
    row,
    columns,
    stride,
    bits,
    sentinel,
    codebook_size,
    around,
    around_ends,
    pairs,
):
    """The pairs whose earlier token has its anchor in `columns` of a line: how many there are."""
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    n = 0
    for col in range(columns[0], columns[1]):
        p = line + col
        v = np.int64(cells[p])
        here = (row << bits) | col
        if v & low != here:
            continue
        a, first = v >> wide, n
        if a < codebook_size:
            right, down = np.int64(cells[p + 1]), np.int64(cells[p + stride])
            if right != sentinel and right & low > here:
                pairs[n, 0] = tokens_of(a, right >> wide)
                pairs[n, 1] = offset_of(
                    ((right >> bits) & mask_col) - row, (right & mask_col) - col
                )
                pairs[n, 2] = p
                n += 1
            if down != sentinel and down & low > here and down != right:
                pairs[n, 0] = tokens_of(a, down >> wide)
                pairs[n, 1] = offset_of(((down >> bits) & mask_col) - row, (down & mask_col) - col)
                pairs[n, 2] = p
                n += 1
            continue
        for k in range(around_ends[a - codebook_size], around_ends[a - codebook_size + 1]):
            u = np.int64(cells[p + around[k, 0] * stride + around[k, 1]])
            if u == sentinel or u & low <= here:
                continue
            tokens = tokens_of(a, u >> wide)
            offset = offset_of(((u >> bits) & mask_col) - row, (u & mask_col) - col)
            j = first
            while j < n and (pairs[j, 1] != offset or pairs[j, 0] != tokens):
                j += 1
            if j == n:
                pairs[n, 0] = tokens
                pairs[n, 1] = offset
                pairs[n, 2] = p
                n += 1
    return n


@kernel
def scan(
    mode,  # SKETCH, COUNT or LIST
    board,
    codebook_size,
    around,  # (_, 3) int32 and (merged tokens + 1,) int64: the cells around each merged token
    around_ends,
    longest,  # the most neighbours that a token can have
    sketch,  # (power of two,) uint32: counters, later the numbers of slots
    by_pair,  # the sketch counts a pair's keys together, whatever their offset
    rows,
    table,
    pool,
):
    """Visit every unordered pair of adjacent tokens once, in the raster order of the earlier one.

    Returns the table, which may have grown.
    """
    cells, ring, ends, strides, bits, sentinel = board
    columns_at_once = 64
    pairs = np.empty((columns_at_once * max(2, longest), 4), np.int64)
    line, group, row, n_keys = 0, 0, -1, 0
    while line < cells.shape[0]:
        while line >= ends[group]:
            group += 1
            row = -1
        stride = strides[group]
        if cells[line] == sentinel:
            row = -1
            line += stride
            continue
        row += 1
        for col in range(0, stride - 1, columns_at_once):
            columns = (col, min(col + columns_at_once, stride - 1))
            if ring.shape[0] > 0:
                n = pairs_of_line(cells, ring, line, row, columns, stride, bits, sentinel, pairs)
            else:
                n = _pairs_of_line(
                    cells, line, row, columns, stride, bits, sentinel, codebook_size, around,
                    around_ends, pairs,
                )  # fmt: skip
            if mode == SKETCH:
                _add_to_sketch(pairs, n, by_pair, sketch)
                continue
            _find_slots(pairs, n, by_pair, sketch, rows)
            if mode == LIST:
                _add_to_pool(pairs, n, rows, table, pool)
                continue
            while 2 * (n_keys + n) > table.shape[0]:
                table = _enlarged(table)
            n_keys += _add_to_counts(pairs, n, rows, table)
        line += stride
    return table


@kernel
def histogram(sketch, size):
    """How many counters hold each value; the last bin holds all larger ones."""
    bins = np.zeros(size, np.int64)
    for i in range(sketch.shape[0]):
        bins[min(np.int64(sketch[i]), size - 1)] += 1
    return bins


@kernel
def places_of(part, keys):
    """Where the rows of `part` stand in `keys`; both are sorted by their first two columns."""
    places = np.empty(part.shape[0], np.int64)
    at = 0
    for i in range(part.shape[0]):
        while keys[at, 0] != part[i, 0] or keys[at, 1] != part[i, 1]:
            at += 1
        places[i] = at
    return places
