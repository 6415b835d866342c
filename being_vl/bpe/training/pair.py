"""one pair of ids → changed cells and their neighbours: what the paper's mode does differently.

Source: "From Pixels to Tokens", Algorithm 4.1 with B.1 and B.2: a merge is keyed by the two ids alone. So
a token's shape does not follow from its id: the cells of each token are linked in a ring, and its
neighbours are found by walking it. What else is said in `apply_and_emit.py` holds here, with three differences: a
view's offset is (0, 1) for a later neighbour and (0, -1) for an earlier one; a position is listed once for
each neighbour that makes it an occurrence; and a batch is one rule.
"""

from __future__ import annotations

import numpy as np

from .._jit import inner, kernel
from .apply_and_emit import (
    Traces,
    close_rule,
    group_of,
    longer,
    longer_rows,
    mask_for,
    row_of,
    view_of,
    widen,
)
from .choose import offset_of, tokens_of

_BOTH = (1 << 32) | 1


@inner
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
                around = longer(around, n + 1)
                around[n] = u
                n += 1
        q = np.int64(ring[q])
        if q == p:
            return around, n


@kernel
def apply_pair(
    board, pool, starts, lengths, batch, least, limits, index, traces
):  # fmt: skip
    """Merge the occurrences of (a, b) in raster order of a, then of b; see `apply_and_emit.apply_rules`."""
    cells, ring, bits, sentinel = board.cells, board.ring, board.bits, board.sentinel
    a, b, c = batch.rules[0, 0], batch.rules[0, 1], batch.rules[0, 4]
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    rows, log_rows, log_positions = traces.rows, traces.log_rows, traces.log_positions
    slots = traces.slots
    n_rows = n_log = n_merged = zero = np.int64(0)
    start, length = starts[batch.keys[0]], lengths[batch.keys[0]]
    mask = mask_for(length, slots)
    around = np.empty(64, np.int64)
    for at in range(start, start + length):
        p = np.int64(pool[at])
        v = np.int64(cells[p])
        if v >> wide != a:
            continue
        stride = board.strides[group_of(board.ends, p)]
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
        n_merged += 1

        rows = longer_rows(rows, n_rows + 2 * n)
        log_rows = longer(log_rows, n_log + n)
        log_positions = longer(log_positions, n_log + n)
        while 2 * (n_rows + 2 * n) > mask:
            slots, mask = widen(slots, mask, rows, zero, n_rows)
        flat = rows.reshape(-1)
        for j in range(n):
            u = around[j]
            t, here = u >> wide, u & low
            after_p = 1 if here > v & low else -1
            after_q = 1 if here > w & low else -1
            position = p
            if after_p < 0:
                position = p + (((u >> bits) & mask_col) - row) * stride + (u & mask_col) - col
            if t == c:
                if j < n_a:
                    flat[row_of(view_of(a, 0, -after_p), slots, mask, flat, n_rows) + 1] -= 1
                if touches_b[j]:
                    flat[row_of(view_of(b, 0, -after_q), slots, mask, flat, n_rows) + 1] -= 1
                h = row_of(view_of(c, 0, 1), slots, mask, flat, n_rows)
            else:
                if touches_b[j]:
                    # the neighbour may lie between the two anchors: to b it is another view than to c
                    h = row_of(view_of(t, 0, after_q), slots, mask, flat, n_rows)
                    n_rows += h == 4 * n_rows
                    flat[h + 2] += 1 << 32
                h = row_of(view_of(t, 0, after_p), slots, mask, flat, n_rows)
                if j < n_a:
                    flat[h + 2] += 1
            n_rows += h == 4 * n_rows
            flat[h + 1] += _BOTH
            log_rows[n_log] = h >> 2
            log_positions[n_log] = position
            n_log += 1
    marks = np.zeros((2, 6), np.int64)
    losses, n_losses, late, n_late, candidates, n_candidates = close_rule(
        batch, zero, n_rows, c, least, limits, index, rows, slots, zero,
        traces.losses, zero, traces.late, zero, traces.candidates, zero,
    )  # fmt: skip
    marks[1, 0], marks[1, 1], marks[1, 2] = n_rows, n_log, n_merged
    marks[1, 3], marks[1, 4], marks[1, 5] = n_losses, n_late, n_candidates
    return Traces(rows, log_rows, log_positions, losses, late, candidates, slots, marks)


@inner
def pairs_of_line(cells, ring, line, row, columns, stride, bits, sentinel, pairs):
    """The pairs whose earlier token has its anchor in `columns` of a line; see `scan.scan`."""
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
                pairs[n, 0] = tokens_of(v >> wide, u >> wide)
                pairs[n, 1] = offset_of(0, 1)
                pairs[n, 2] = p
                n += 1
    return n
