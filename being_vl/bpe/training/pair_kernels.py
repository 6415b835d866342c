"""one pair of ids → changed cells and changed counts: the inner loop of the paper's mode.

Source: "From Pixels to Tokens", Algorithm 4.1 with B.1 and B.2: a merge is keyed by the two ids alone. So
a token's shape does not follow from its id: the cells of each token are linked in a ring, and its
neighbours are found by walking it. What else is said in `kernels.py` holds here, with two differences: a
view's offset is (0, 1) for a later neighbour and (0, -1) for an earlier one, and a position is listed once
for each neighbour that makes it an occurrence.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel
from .kernels import group_of, grow, open_slot, slot_of, view_of


@kernel
def neighbours(cells, ring, stride, sentinel, p, skip, around, n):
    """Append the cell values of the tokens around the token at p to `around`; returns it and its length."""
    own = np.int64(cells[p])
    q = p
    while True:
        for k in range(4):
            step = (-stride, -1, 1, stride)[k]
            u = np.int64(cells[q + step])
            if u == sentinel or u == own or u == skip:
                continue
            j = 0
            while j < n and around[j] != u:
                j += 1
            if j == n:
                if n == around.shape[0]:
                    around = np.append(around, np.empty_like(around))
                around[n] = u
                n += 1
        q = np.int64(ring[q])
        if q == p:
            return around, n


@kernel
def apply_pair(
    cells, ring, ends, strides, bits, sentinel, positions, rule, views, sides, table, used, state
):
    """Merge the occurrences of (a, b) in raster order of a, then of b; see `kernels.apply_rule`."""
    a, b, c = rule[0], rule[1], rule[4]
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    stamp, mask, n_used = state[0] + 1, state[1], 0
    lost = np.zeros(views.shape[0] + 1, np.int64)
    for i in range(views.shape[0]):
        if 2 * n_used >= mask:
            table, mask, stamp, used = grow(table, mask, stamp, used, n_used)
        h, n_used = open_slot(table, mask, stamp, views[i], used, n_used)
        table[h, 2] |= (i + 1) << (32 * sides[i])

    around = np.empty(64, np.int64)
    merged = 0
    for i in range(positions.shape[0]):
        p = np.int64(positions[i])
        v = np.int64(cells[p])
        if v >> wide != a:
            continue
        stride = strides[group_of(ends, p)]
        around, n = neighbours(cells, ring, stride, sentinel, p, sentinel, around, 0)
        w = np.int64(-1)
        for j in range(n):
            u = around[j]
            if u >> wide == b and u & low > v & low and (w == -1 or u < w):
                w = u
        if w == -1:
            continue
        row, col = (v >> bits) & mask_col, v & mask_col
        q = p + (((w >> bits) & mask_col) - row) * stride + (w & mask_col) - col
        around, n_a = neighbours(cells, ring, stride, sentinel, p, w, around, 0)
        around, n = neighbours(cells, ring, stride, sentinel, q, v, around, n_a)
        touches_b = np.zeros(n, np.bool_)
        of_b, n_b = neighbours(cells, ring, stride, sentinel, q, v, np.empty(n + 1, np.int64), 0)
        for k in range(n_b):
            for j in range(n):
                if around[j] == of_b[k]:
                    touches_b[j] = True

        ring[p], ring[q] = ring[q], ring[p]
        x = (c << wide) | (v & low)
        end = p
        while True:
            cells[end] = x
            end = np.int64(ring[end])
            if end == p:
                break
        positions[merged] = p
        merged += 1

        if 2 * (n_used + 3 * n) >= mask:
            table, mask, stamp, used = grow(table, mask, stamp, used, n_used)
        for j in range(n):
            u = around[j]
            t, here = u >> wide, u & low
            after_p = 1 if here > v & low else -1
            after_q = 1 if here > w & low else -1
            if t == c:
                if j < n_a:
                    h = slot_of(table, mask, stamp, view_of(a, 0, -after_p))
                    table[h, 3] -= 1
                if touches_b[j]:
                    h = slot_of(table, mask, stamp, view_of(b, 0, -after_q))
                    table[h, 3] -= 1
                h, n_used = open_slot(table, mask, stamp, view_of(c, 0, 1), used, n_used)
                table[h, 3] += 1
                continue
            h, n_used = open_slot(table, mask, stamp, view_of(t, 0, after_p), used, n_used)
            table[h, 3] += 1
            if j < n_a and table[h, 2] & 0xFFFFFFFF:
                lost[(table[h, 2] & 0xFFFFFFFF) - 1] += 1
            if touches_b[j]:
                h = slot_of(table, mask, stamp, view_of(t, 0, after_q))
                if table[h, 1] == stamp and table[h, 2] >> 32:
                    lost[(table[h, 2] >> 32) - 1] += 1
    state[0], state[1], state[2] = stamp, mask, n_used
    lost[-1] = merged
    return table, used, lost


@kernel
def pairs_of_line(cells, ring, line, row, columns, stride, bits, sentinel, pairs):
    """The pairs whose earlier token has its anchor in `columns` of a line; see `counting.scan`."""
    wide = 2 * bits
    low = (1 << wide) - 1
    around = np.empty(64, np.int64)
    n = 0
    for col in range(columns[0], columns[1]):
        p = line + col
        v = np.int64(cells[p])
        if v & low != (row << bits) | col:
            continue
        around, found = neighbours(cells, ring, stride, sentinel, p, sentinel, around, 0)
        for j in range(found):
            u = around[j]
            if u & low > v & low:
                pairs[n, 0] = ((v >> wide) << 32) | (u >> wide)
                pairs[n, 1] = 1 + (1 << 16)
                pairs[n, 2] = p
                n += 1
    return n


@kernel
def list_pairs(cells, ring, ends, strides, bits, sentinel, positions, c, table, state, pool):
    """Write the positions of the new pairs of c; see `kernels.list_positions`."""
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    stamp, mask = state[0], state[1]
    around = np.empty(64, np.int64)
    for i in range(positions.shape[0]):
        p = np.int64(positions[i])
        v = np.int64(cells[p])
        stride = strides[group_of(ends, p)]
        row, col = (v >> bits) & mask_col, v & mask_col
        around, n = neighbours(cells, ring, stride, sentinel, p, sentinel, around, 0)
        for j in range(n):
            u = around[j]
            after = u & low > v & low
            if u >> wide == c and not after:
                continue
            h = slot_of(table, mask, stamp, view_of(u >> wide, 0, 1 if after else -1))
            if table[h, 1] == stamp and table[h, 3] >= 0:
                other = p + (((u >> bits) & mask_col) - row) * stride + (u & mask_col) - col
                pool[table[h, 3]] = p if after else other
                table[h, 3] += 1
