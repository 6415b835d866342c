"""cells → keys, counts and positions: counting from scratch, at the start and whenever the heap runs dry.

Three passes over the cells keep memory bounded: a sketch (each key adds to one of a few million counters,
so a counter is an upper bound), an exact count of the keys whose counter reaches the threshold, and the
positions of those that are kept. The rows of the exact table are (tokens, offset, count, cursor).
"""

from __future__ import annotations

import numpy as np

from ._jit import kernel

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
    h = (tokens >> 32) * 0x9E3779B1 + (tokens & 0xFFFFFFFF) * 0x85EBCA6B + offset * 0x2545F491
    return h ^ (h >> 23)


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
def insert(table, n, tokens, offset):
    """The table (doubled if it got full), the number of keys in it, and the row of the key."""
    h = find(table, tokens, offset)
    if table[h, 0] == -1:
        if 2 * n >= table.shape[0]:
            old = table
            table = new_table(4 * old.shape[0])
            for i in range(old.shape[0]):
                if old[i, 0] != -1:
                    h = find(table, old[i, 0], old[i, 1])
                    table[h] = old[i]
            h = find(table, tokens, offset)
        table[h, 0] = tokens
        table[h, 1] = offset
        table[h, 2] = 0
        table[h, 3] = -1
        n += 1
    return table, n, h


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
def _visit(mode, first, second, row, col, p, sketch, by_pair, theta, table, n, pool):
    """One adjacency, the earlier token at p."""
    tokens, offset = tokens_of(first, second), offset_of(row, col)
    if mode == LIST:
        h = find(table, tokens, offset)
        if table[h, 0] != -1:
            pool[table[h, 3]] = p
            table[h, 3] += 1
        return table, n
    bucket = hash_of(tokens, 0 if by_pair else offset) & (sketch.shape[0] - 1)
    if mode == SKETCH:
        if sketch[bucket] < SATURATED:
            sketch[bucket] += 1
    elif sketch[bucket] >= theta:
        table, n, h = insert(table, n, tokens, offset)
        table[h, 2] += 1
    return table, n


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
    sketch,  # (power of two,) uint32
    by_pair,  # the sketch counts a pair's keys together, whatever their offset
    theta,
    table,
    n,
    pool,
):
    """Visit every unordered pair of adjacent tokens once, in the raster order of the earlier one."""
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    around = np.empty(max(4, perimeters.shape[0]), np.int64)
    line, group, row = 0, 0, -1
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
        for col in range(stride - 1):
            p = line + col
            v = np.int64(cells[p])
            here = (row << bits) | col
            if v & low != here:
                continue
            a = v >> wide
            if a < codebook_size:
                right, down = np.int64(cells[p + 1]), np.int64(cells[p + stride])
                if right != sentinel and right & low > here:
                    table, n = _visit(
                        mode, a, right >> wide, ((right >> bits) & mask_col) - row,
                        (right & mask_col) - col, p, sketch, by_pair, theta, table, n, pool,
                    )  # fmt: skip
                if down != sentinel and down & low > here and down != right:
                    table, n = _visit(
                        mode, a, down >> wide, ((down >> bits) & mask_col) - row,
                        (down & mask_col) - col, p, sketch, by_pair, theta, table, n, pool,
                    )  # fmt: skip
                continue
            seen = 0
            for k in range(perimeter_of[a], perimeter_of[a + 1]):
                u = np.int64(cells[p + perimeters[k, 0] * stride + perimeters[k, 1]])
                if u == sentinel or u & low <= here:
                    continue
                j = 0
                while j < seen and around[j] != u:
                    j += 1
                if j == seen:
                    around[seen] = u
                    seen += 1
                    table, n = _visit(
                        mode, a, u >> wide, ((u >> bits) & mask_col) - row, (u & mask_col) - col,
                        p, sketch, by_pair, theta, table, n, pool,
                    )  # fmt: skip
        line += stride
    return table, n


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
