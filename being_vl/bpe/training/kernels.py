"""one merge rule → changed cells and changed counts: the inner loop of the trainer.

The law is `naive.py`; this is its incremental form. Arrays in, arrays out.

A cell is `token << 2s | row << s | col`: the token that covers it and that token's anchor, s being 8 or
16 bits. Every grid has a border of `sentinel` cells, so that a neighbour needs no bounds check. A cell's
token only ever grows, and its id with it: so a listed position whose cells still carry the two ids of its
key is an occurrence, and any other is stale.

Around one rule (a, b) → c, a neighbour is its *view* (t, row, col): its token and its anchor relative to
c's. A small hash table maps each view to the listed key of a that it takes part in, to the one of b, and
to the count of the new key with c. Its rows are (view, stamp, keys of a and b, count of c); a row is in
use when its stamp is the current one, so a new rule needs no clearing.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel, prefetch

_BIAS = 1 << 16
_AHEAD = 12  # positions between asking for a cache line and using it


@kernel
def view_of(token, row, col):
    """A neighbour's token and relative anchor in one integer; rows and columns lie in ±65535."""
    return (token << 34) | ((row + _BIAS) << 17) | (col + _BIAS)


@kernel
def slot_of(table, mask, stamp, view):
    """The row of a view, or the free row where it belongs."""
    h = (view >> 34) * 0x9E3779B1 + (view & 0x3FFFFFFFF) * 0x2545F49
    h = ((((h ^ (h >> 29)) & 0x3FFFFFFF) * 0x6C078965) >> 20) & mask
    while table[h, 1] == stamp and table[h, 0] != view:
        h = (h + 1) & mask
    return h


@kernel
def open_slot(table, mask, stamp, view, used, n_used):
    """The row of a view, made if it is new."""
    h = slot_of(table, mask, stamp, view)
    if table[h, 1] != stamp:
        table[h, 0] = view
        table[h, 1] = stamp
        table[h, 2] = 0
        table[h, 3] = 0
        used[n_used] = h
        n_used += 1
    return h, n_used


@kernel
def grow(table, mask, stamp, used, n_used):
    """Quadruple the part of the table in use; the array too, where it is too short."""
    rows = np.empty((n_used, 4), np.int64)
    for i in range(n_used):
        for j in range(4):
            rows[i, j] = table[used[i], j]
    mask = 4 * mask + 3
    if mask >= table.shape[0]:
        table = np.zeros((mask + 1, 4), np.int64)
        used = np.empty((mask + 1) // 2 + 1, np.int64)
    stamp += 1
    n = 0
    for i in range(n_used):
        h, n = open_slot(table, mask, stamp, rows[i, 0], used, n)
        table[h, 2] = rows[i, 2]
        table[h, 3] = rows[i, 3]
    return table, mask, stamp, used


@kernel
def flat_offsets(offsets, stride, shift_row, shift_col):
    """Offsets (row, col) moved by a constant, as steps in a grid of that stride."""
    flat = np.empty(offsets.shape[0], np.int64)
    for k in range(offsets.shape[0]):
        flat[k] = (offsets[k, 0] + shift_row) * stride + offsets[k, 1] + shift_col
    return flat


@kernel
def group_of(ends, position):
    group = 0
    while position >= ends[group]:
        group += 1
    return group


@kernel
def apply_rule(
    cells,  # (n,) uint32 or int64, changed in place
    ends,  # (groups,) int64: where each group of grids of one width ends
    strides,  # (groups,) int64
    bits,  # s
    sentinel,
    positions,  # of the rule's key; the merged ones are compacted to its front
    rule,  # (5,) int64: a, b, row offset, column offset, c
    cells_a,  # (k, 2) int32 offsets of a's cells from its anchor; perimeters are the cells around them
    cells_b,
    perimeter_a,
    perimeter_b,
    views,  # (m,) int64: the views of listed keys of a and b
    sides,  # (m,) int64: 0 a key of a, 1 a key of b
    table,
    used,
    state,  # (3,) int64: stamp, mask, rows in use
):
    """Merge the occurrences of a rule in the order of their positions.

    Returns the table (it may have grown), its used rows, and how much the key of each view lost, followed
    by the number of merges. Afterwards column 3 of a used row holds the count of the new key of c and that neighbour.
    """
    a, b, row_offset, col_offset, c = rule[0], rule[1], rule[2], rule[3], rule[4]
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    stamp, mask, n_used = state[0] + 1, state[1], 0
    lost = np.zeros(views.shape[0] + 1, np.int64)
    for i in range(views.shape[0]):
        if 2 * n_used >= mask:
            table, mask, stamp, used = grow(table, mask, stamp, used, n_used)
        h, n_used = open_slot(table, mask, stamp, views[i], used, n_used)
        table[h, 2] |= (i + 1) << (32 * sides[i])

    around = np.empty(perimeter_a.shape[0] + perimeter_b.shape[0], np.int64)
    touches = np.empty(perimeter_a.shape[0] + perimeter_b.shape[0], np.int64)
    begin, end, stride, step = 0, 0, 0, 0
    near_a = near_b = inside_a = inside_b = np.empty(0, np.int64)
    merged = 0
    for i in range(positions.shape[0]):
        if i + _AHEAD < positions.shape[0]:
            ahead = np.int64(positions[i + _AHEAD])
            prefetch(cells, ahead)
            prefetch(cells, ahead - stride)
            prefetch(cells, ahead + stride)
        p = np.int64(positions[i])
        v = np.int64(cells[p])
        if v >> wide != a:
            continue
        if p < begin or p >= end:
            group = group_of(ends, p)
            begin, end, stride = (0 if group == 0 else ends[group - 1]), ends[group], strides[group]
            step = row_offset * stride + col_offset
            near_a = flat_offsets(perimeter_a, stride, 0, 0)
            near_b = flat_offsets(perimeter_b, stride, row_offset, col_offset)
            inside_a = flat_offsets(cells_a, stride, 0, 0)
            inside_b = flat_offsets(cells_b, stride, row_offset, col_offset)
        w = np.int64(cells[p + step])
        if w >> wide != b:
            continue

        n = 0
        for k in range(near_a.shape[0]):
            u = np.int64(cells[p + near_a[k]])
            if u == sentinel or u == w:
                continue
            j = 0
            while j < n and around[j] != u:
                j += 1
            if j == n:
                around[n] = u
                touches[n] = 1
                n += 1
        for k in range(near_b.shape[0]):
            u = np.int64(cells[p + near_b[k]])
            if u == sentinel or u == v:
                continue
            j = 0
            while j < n and around[j] != u:
                j += 1
            if j == n:
                around[n] = u
                touches[n] = 0
                n += 1
            touches[j] |= 2

        x = (c << wide) | (v & low)
        for k in range(inside_a.shape[0]):
            cells[p + inside_a[k]] = x
        for k in range(inside_b.shape[0]):
            cells[p + inside_b[k]] = x
        positions[merged] = p
        merged += 1

        if 2 * (n_used + 3 * n) >= mask:
            table, mask, stamp, used = grow(table, mask, stamp, used, n_used)
        row, col = (v >> bits) & mask_col, v & mask_col
        for j in range(n):
            u = around[j]
            t, dr, dc = u >> wide, ((u >> bits) & mask_col) - row, (u & mask_col) - col
            if t == c:
                # made by this rule a moment ago: it counted a and b as its neighbours
                if touches[j] & 1:
                    h = slot_of(table, mask, stamp, view_of(a, -dr, -dc))
                    table[h, 3] -= 1
                if touches[j] & 2:
                    h = slot_of(table, mask, stamp, view_of(b, row_offset - dr, col_offset - dc))
                    table[h, 3] -= 1
                if dr < 0 or (dr == 0 and dc < 0):
                    dr, dc = -dr, -dc
                h, n_used = open_slot(table, mask, stamp, view_of(c, dr, dc), used, n_used)
                table[h, 3] += 1
            else:
                h, n_used = open_slot(table, mask, stamp, view_of(t, dr, dc), used, n_used)
                table[h, 3] += 1
                keys = table[h, 2]
                if keys != 0:
                    if touches[j] & 1 and keys & 0xFFFFFFFF:
                        lost[(keys & 0xFFFFFFFF) - 1] += 1
                    if touches[j] & 2 and keys >> 32:
                        lost[(keys >> 32) - 1] += 1
    state[0], state[1], state[2] = stamp, mask, n_used
    lost[-1] = merged
    return table, used, lost


@kernel
def list_positions(
    cells, ends, strides, bits, sentinel, positions, c, perimeter, table, state, pool
):
    """Write the positions of the new keys of c: `positions` holds the anchors of all tokens c.

    Column 3 of a used row holds where the next position of its key goes in `pool`, or -1.
    """
    wide, mask_col = 2 * bits, (1 << bits) - 1
    stamp, mask = state[0], state[1]
    around = np.empty(perimeter.shape[0], np.int64)
    begin, end, stride = 0, 0, 0
    near = np.empty(0, np.int64)
    for i in range(positions.shape[0]):
        if i + _AHEAD < positions.shape[0]:
            ahead = np.int64(positions[i + _AHEAD])
            prefetch(cells, ahead)
            prefetch(cells, ahead - stride)
            prefetch(cells, ahead + stride)
        p = np.int64(positions[i])
        v = np.int64(cells[p])
        if p < begin or p >= end:
            group = group_of(ends, p)
            begin, end, stride = (0 if group == 0 else ends[group - 1]), ends[group], strides[group]
            near = flat_offsets(perimeter, stride, 0, 0)
        row, col = (v >> bits) & mask_col, v & mask_col
        n = 0
        for k in range(near.shape[0]):
            u = np.int64(cells[p + near[k]])
            if u == sentinel:
                continue
            j = 0
            while j < n and around[j] != u:
                j += 1
            if j < n:
                continue
            around[n] = u
            n += 1
            t, dr, dc = u >> wide, ((u >> bits) & mask_col) - row, (u & mask_col) - col
            after = dr > 0 or (dr == 0 and dc > 0)
            if t == c and not after:
                continue
            h = slot_of(table, mask, stamp, view_of(t, dr, dc))
            if table[h, 1] == stamp and table[h, 3] >= 0:
                pool[table[h, 3]] = p if after else p + dr * stride + dc
                table[h, 3] += 1


@kernel
def frequent_views(table, used, n_used, least):
    """The views of new keys with at least that count."""
    n = 0
    for i in range(n_used):
        if table[used[i], 3] >= least:
            n += 1
    views = np.empty(n, np.int64)
    n = 0
    for i in range(n_used):
        if table[used[i], 3] >= least:
            views[n] = table[used[i], 0]
            n += 1
    return views


@kernel
def counts_of_views(table, state, views):
    """How often the new keys of these views occur here."""
    counts = np.zeros(views.shape[0], np.int64)
    for i in range(views.shape[0]):
        h = slot_of(table, state[1], state[0], views[i])
        if table[h, 1] == state[0]:
            counts[i] = table[h, 3]
    return counts


@kernel
def aim_views(table, used, state, views, targets):
    """Set column 3 to where each kept view's positions go, and to -1 for all others."""
    for i in range(state[2]):
        table[used[i], 3] = -1
    for i in range(views.shape[0]):
        h = slot_of(table, state[1], state[0], views[i])
        if table[h, 1] == state[0]:
            table[h, 3] = targets[i]


@kernel
def compact(cells, wide, pool, starts, lengths, columns, counts, theta, n):
    """Move the lists of keys that still reach theta to the front of the pool; returns their total length.

    Lists that are mostly stale are cleaned on the way.
    """
    at = 0
    for key in range(n):
        length = lengths[key] if counts[key] >= theta else 0
        start, begin, first = starts[key], at, columns[key, 0]
        stale = 2 * counts[key] < length
        for i in range(start, start + length):
            if stale and np.int64(cells[np.int64(pool[i])]) >> wide != first:
                continue
            pool[at] = pool[i]
            at += 1
        starts[key] = begin
        lengths[key] = at - begin
    return at


@kernel
def keys_of_views(views, token):
    """The keys, (n, 4), of a token and its neighbours as it views them."""
    columns = np.empty((views.shape[0], 4), np.int64)
    for i in range(views.shape[0]):
        other = views[i] >> 34
        row, col = ((views[i] >> 17) & 0x1FFFF) - _BIAS, (views[i] & 0x1FFFF) - _BIAS
        if row > 0 or (row == 0 and col > 0):
            columns[i, 0], columns[i, 1], columns[i, 2], columns[i, 3] = token, other, row, col
        else:
            columns[i, 0], columns[i, 1], columns[i, 2], columns[i, 3] = other, token, -row, -col
    return columns
