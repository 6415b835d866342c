"""cells → keys, counts and positions: counting from scratch, at the start and whenever the heap runs dry.

Three passes over the cells keep memory bounded: a sketch (each key adds to one of a few million counters,
so a counter is an upper bound), an exact count of the keys whose counter reaches the threshold, and the
positions of those that are kept. The rows of the exact table are (tokens, offset, count, cursor).
"""

from __future__ import annotations

import numpy as np

from ._jit import kernel, prefetch

SKETCH, COUNT, LIST = 0, 1, 2
SATURATED = (
    1 << 24
)  # a sketch counter stops here, so that the sketches of 255 shards add up in 32 bits
_BIAS = 1 << 16


@kernel
def tokens_of(first, second):
    return (first << 32) | second


@kernel
def offset_of(row, col):
    """Rows are never negative in a key."""
    return (row << 17) | (col + _BIAS)


@kernel
def hash_of(tokens, offset):
    """Tokens stay below 2**24 and offsets below 2**33, so that no product leaves 63 bits."""
    h = (tokens >> 32) * 0x9E3779B1 + (tokens & 0xFFFFFFFF)
    h ^= h >> 29
    h = (h & 0xFFFFFFF) * 0x5851F42D + offset * 0x2545F491
    h ^= h >> 27
    return ((h & 0x3FFFFFFF) * 0x6C078965) >> 20


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


@kernel
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
def insert_all(table, tokens, offsets, cursors):
    """Put keys with their cursors into a table that is large enough."""
    for i in range(tokens.shape[0]):
        h = find(table, tokens[i], offsets[i])
        table[h, 0] = tokens[i]
        table[h, 1] = offsets[i]
        table[h, 2] = 0
        table[h, 3] = cursors[i]


@kernel
def _add_to_sketch(pairs, n, by_pair, sketch):
    mask = sketch.shape[0] - 1
    for i in range(n):
        bucket = hash_of(pairs[i, 0], 0 if by_pair else pairs[i, 1]) & mask
        pairs[i, 2] = bucket
        prefetch(sketch, bucket)
    for i in range(n):
        bucket = pairs[i, 2]
        if sketch[bucket] < SATURATED:
            sketch[bucket] += 1


@kernel
def _prefetch_rows(pairs, n, table):
    flat, mask = table.reshape(-1), table.shape[0] - 1
    for i in range(n):
        prefetch(flat, 4 * (hash_of(pairs[i, 0], pairs[i, 1]) & mask))


@kernel
def _add_to_table(pairs, n, by_pair, sketch, theta, table):
    """Count the pairs whose sketch counter reaches theta; returns how many keys were new."""
    mask, new = sketch.shape[0] - 1, 0
    for i in range(n):
        h = hash_of(pairs[i, 0], pairs[i, 1])
        bucket = (hash_of(pairs[i, 0], 0) if by_pair else h) & mask
        pairs[i, 2] = bucket
        prefetch(sketch, bucket)
    chosen = 0
    for i in range(n):
        if sketch[pairs[i, 2]] >= theta:
            pairs[chosen, 0], pairs[chosen, 1] = pairs[i, 0], pairs[i, 1]
            chosen += 1
    _prefetch_rows(pairs, chosen, table)
    for i in range(chosen):
        h = find(table, pairs[i, 0], pairs[i, 1])
        if table[h, 0] == -1:
            table[h, 0] = pairs[i, 0]
            table[h, 1] = pairs[i, 1]
            table[h, 2] = 0
            table[h, 3] = -1
            new += 1
        table[h, 2] += 1
    return new


@kernel
def _add_to_pool(pairs, n, table, pool):
    _prefetch_rows(pairs, n, table)
    for i in range(n):
        h = find(table, pairs[i, 0], pairs[i, 1])
        if table[h, 0] != -1:
            pool[table[h, 3]] = pairs[i, 2]
            table[h, 3] += 1


@kernel
def _pairs_of_line(
    cells, line, row, columns, stride, bits, sentinel, codebook_size, perimeter_of, perimeters, pairs
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
                pairs[n, 1] = offset_of(((right >> bits) & mask_col) - row, (right & mask_col) - col)
                pairs[n, 2] = p
                n += 1
            if down != sentinel and down & low > here and down != right:
                pairs[n, 0] = tokens_of(a, down >> wide)
                pairs[n, 1] = offset_of(((down >> bits) & mask_col) - row, (down & mask_col) - col)
                pairs[n, 2] = p
                n += 1
            continue
        for k in range(perimeter_of[a], perimeter_of[a + 1]):
            u = np.int64(cells[p + perimeters[k, 0] * stride + perimeters[k, 1]])
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
    cells,  # see kernels.py
    ends,
    strides,
    bits,
    sentinel,
    codebook_size,
    perimeter_of,  # (tokens + 1,) int64: the rows of `perimeters` that belong to each token
    perimeters,  # (_, 2) int32
    longest,  # the most rows that a token has there
    sketch,  # (power of two,) uint32
    by_pair,  # the sketch counts a pair's keys together, whatever their offset
    theta,
    table,
    pool,
):
    """Visit every unordered pair of adjacent tokens once, in the raster order of the earlier one.

    Returns the table (it may have grown) and the number of its keys.
    """
    columns_at_once = 64
    pairs = np.empty((columns_at_once * max(2, longest), 3), np.int64)
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
            n = _pairs_of_line(
                cells, line, row, (col, min(col + columns_at_once, stride - 1)), stride, bits,
                sentinel, codebook_size, perimeter_of, perimeters, pairs,
            )  # fmt: skip
            if mode == SKETCH:
                _add_to_sketch(pairs, n, by_pair, sketch)
            elif mode == COUNT:
                while 2 * (n_keys + n) > table.shape[0]:
                    table = _enlarged(table)
                n_keys += _add_to_table(pairs, n, by_pair, sketch, theta, table)
            else:
                _add_to_pool(pairs, n, table, pool)
        line += stride
    return table, n_keys


@kernel
def table_rows(table, n):
    """The keys of a table: (n, 3) of tokens, offset, count."""
    rows = np.empty((n, 3), np.int64)
    i = 0
    for h in range(table.shape[0]):
        if table[h, 0] != -1:
            for j in range(3):
                rows[i, j] = table[h, j]
            i += 1
    return rows


@kernel
def histogram(sketch, size):
    """How many counters hold each value; the last bin holds all larger ones."""
    bins = np.zeros(size, np.int64)
    for i in range(sketch.shape[0]):
        bins[min(np.int64(sketch[i]), size - 1)] += 1
    return bins
