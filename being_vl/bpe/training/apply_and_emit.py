"""merge rules → changed cells, what older keys lose, new keys and their positions.

The law is `naive.py`; this is its incremental form. Arrays in, arrays out.

A cell is `token << 2s | row << s | col`: the token that covers it and that token's anchor, s being 8 or
16 bits. With the anchor in it, two cells belong to one token exactly when they are equal, and a neighbour's
place in the grid is known without a search. Every grid has a border of `sentinel` cells, so that looking
at a neighbour needs no bounds check. A cell's token only ever grows, and its id with it: so a listed
position whose cells still carry the two ids of its key is an occurrence, and any other is stale.

Around one rule (a, b) → c, a neighbour is its *view*: its token, and its anchor relative to c's. Each view
has a row, found by a small hash table that lives as long as the rule:

    view | count of the new key, entries in the log << 32 | losses of (a, view), of (b, view) << 32 | slot

The log holds (row, position) for every neighbour of every merge. So when the counts are known, the
positions of new keys are written by one pass over the log, and the cells, which seldom are in the
processor's cache, are visited once. A key's positions lie together in the pool, in the order in which they
were found; they are written once, when its newer token is made, since a later merge can only take from them.

Cost of a merge: one look at each cell around it, one row for each neighbour.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._jit import inlined, inner, kernel, prefetch, unsigned
from .choose import BIAS, find_hashed, hash_of, may_be_known, offset_of, tokens_of

_AHEAD = 6  # positions between asking for a cache line and using it; of more, lines leave the cache before
_CLOSED_AT_ONCE = 64  # rows whose keys are asked for before the first of them is looked up
_LOW = 0xFFFFFFFF
_BOTH = (1 << 32) | 1


class Board(NamedTuple):
    """The grids of one shard; grids of one width stand together."""

    cells: np.ndarray  # (n,) uint32 or int64
    ring: np.ndarray  # (n,) for merge_rule="pair": each token's cells, linked in a ring; else (0,)
    ends: np.ndarray  # (groups,) int64: where each group of grids of one width ends
    strides: np.ndarray  # (groups,) int64: their width and the border
    bits: int  # s
    sentinel: int


class Batch(NamedTuple):
    """Rules that are merged one after the other, no two of which share a token."""

    keys: np.ndarray  # (n,) int64, their numbers
    rules: np.ndarray  # (n, 5) int64: a, b, row offset, column offset, c; offsets of 0 for "pair"
    # (_, 3) int32, the cells around each c: row, column, 1 touches a | 2 touches b
    around: np.ndarray
    around_ends: np.ndarray  # (n + 1,) int64


class Limits(NamedTuple):
    """Which tokens may be learned."""

    num_cells: np.ndarray  # (vocab_size,) int64
    boxes: np.ndarray  # (vocab_size, 4) int64: first and last row, first and last column
    max_cells: int
    max_extent: int


class Traces(NamedTuple):
    """What a batch left behind in one shard. Arrays may be longer than what is in use."""

    rows: np.ndarray  # (_, 4) int64, see above
    log_rows: np.ndarray  # (_,) int32
    log_positions: np.ndarray  # (_,) like positions: where the new key's first token has its anchor
    losses: np.ndarray  # (_, 2) int64: key number, loss
    late: np.ndarray  # (_, 3) int64: tokens, offset, loss of keys made in this batch
    candidates: np.ndarray  # (_, 3) int64: rule << 55 | view, row, count of what may be listed
    slots: np.ndarray  # (power of two,) int32: the hash table, empty between rules
    # (n + 1, 6) int64: after each rule, the length in use of the first six but slots'
    ends: np.ndarray


ROWS, LOG, MERGED, LOSSES, LATE, CANDIDATES = range(6)


def empty_traces(position_dtype: type) -> Traces:
    return Traces(
        rows=np.empty((1 << 10, 4), np.int64),
        log_rows=np.empty(1 << 12, np.int32),
        log_positions=np.empty(1 << 12, position_dtype),
        losses=np.empty((1 << 10, 2), np.int64),
        late=np.empty((1 << 6, 3), np.int64),
        candidates=np.empty((1 << 6, 3), np.int64),
        slots=np.zeros(1 << 12, np.int32),
        ends=np.zeros((1, 6), np.int64),
    )


@inlined
def view_of(token, row, col):
    """A neighbour's token and relative anchor in one integer; rows and columns lie in ±65535."""
    return (token << 34) | ((row + BIAS) << 17) | (col + BIAS)


@inlined
def key_of_view(view, own, row_offset, col_offset):
    """The packed key of a token and its neighbour, the token standing at (row, col), int64, of the view's origin."""
    other = view >> 34
    row = ((view >> 17) & 0x1FFFF) - BIAS - row_offset
    col = (view & 0x1FFFF) - BIAS - col_offset
    if row > 0 or (row == 0 and col > 0):
        return tokens_of(own, other), offset_of(row, col)
    return tokens_of(other, own), offset_of(-row, -col)


@inlined
def _slot_of(view, mask):
    """The token moves down to between the bits that relative rows and columns, small numbers, change."""
    return ((((view ^ (view >> 29)) & 0x3FFFFFFF) * 0x6C078965) >> 20) & mask


@inlined
def row_of(view, slots, mask, rows, n_rows):
    """Where the row of a view begins in flat `rows`, made if it is new (then it is row `n_rows`)."""
    slot = unsigned(_slot_of(view, mask))
    while slots[slot] != 0:
        row = np.int64(slots[slot]) * 4 - 4
        if rows[unsigned(row)] == view:
            return row
        slot = unsigned((np.int64(slot) + 1) & mask)
    slots[slot] = n_rows + 1
    row = 4 * n_rows
    rows[unsigned(row)], rows[unsigned(row + 1)] = view, 0
    rows[unsigned(row + 2)], rows[unsigned(row + 3)] = 0, slot
    return row


@inner
def widen(slots, mask, rows, begin, end):
    """Quadruple the part of the hash table in use."""
    for row in range(begin, end):
        slots[rows[row, 3]] = 0
    mask = 4 * mask + 3
    if mask >= slots.shape[0]:
        slots = np.zeros(mask + 1, np.int32)
    for row in range(begin, end):
        slot = _slot_of(rows[row, 0], mask)
        while slots[slot] != 0:
            slot = (slot + 1) & mask
        slots[slot] = row + 1
        rows[row, 3] = slot
    return slots, mask


@inner
def longer(array, length):
    """The array with room for `length` entries."""
    if length <= array.shape[0]:
        return array
    enlarged = np.empty(2 * length, array.dtype)
    for i in range(array.shape[0]):  # a slice would take a second longer to compile
        enlarged[i] = array[i]
    return enlarged


@inner
def longer_rows(array, length):
    if length <= array.shape[0]:
        return array
    enlarged = np.empty((2 * length, array.shape[1]), array.dtype)
    for i in range(array.shape[0]):
        for j in range(array.shape[1]):
            enlarged[i, j] = array[i, j]
    return enlarged


@kernel
def is_allowed(tokens, offset, limits):
    """Does a key make a token within the limits?"""
    first, second = tokens >> 32, tokens & _LOW
    if limits.num_cells[first] + limits.num_cells[second] > limits.max_cells:
        return False
    row, col = offset >> 17, (offset & 0x1FFFF) - BIAS
    boxes = limits.boxes
    height = max(boxes[first, 1], boxes[second, 1] + row) - min(
        boxes[first, 0], boxes[second, 0] + row
    )
    width = max(boxes[first, 3], boxes[second, 3] + col) - min(
        boxes[first, 2], boxes[second, 2] + col
    )
    return max(height, width) < limits.max_extent


@kernel
def are_allowed(tokens, offsets, limits):
    """Which packed keys make a token within the limits."""
    allowed = np.empty(tokens.shape[0], np.bool_)
    for i in range(tokens.shape[0]):
        allowed[i] = is_allowed(tokens[i], offsets[i], limits)
    return allowed


@inlined
def group_of(ends, position):
    group = 0
    while position >= ends[group]:
        group += 1
    return group


@inner
def mask_for(length, slots):
    """A small table stays in the nearest cache: begin with what a list of that length may need."""
    mask = np.int64(255)
    while mask < 2 * length and 2 * mask < slots.shape[0]:
        mask = 2 * mask + 1
    return mask


@inner
def close_rule(
    batch, i, n_rows, first_new, least, limits, index, rows, slots, begin,
    losses, n_losses, late, n_late, candidates, n_candidates,
):  # fmt: skip
    """Turn the rows of rule i into losses of listed keys and candidates for listing; empty the slots.

    Keys that hold a token of this batch (an id from `first_new`) are not listed yet: their losses wait.
    """
    most = n_rows - begin
    losses = longer_rows(losses, n_losses + 2 * most)
    late = longer_rows(late, n_late + 2 * most)
    candidates = longer_rows(candidates, n_candidates + most)
    n_losses, n_late, n_candidates = _close_rows(
        batch.rules[i], i, n_rows, first_new, least, limits, index, rows, slots, begin,
        losses, n_losses, late, n_late, candidates, n_candidates,
    )  # fmt: skip
    return losses, n_losses, late, n_late, candidates, n_candidates


@inner
def _close_rows(
    rule, i, n_rows, first_new, least, limits, index, rows, slots, begin,
    losses, n_losses, late, n_late, candidates, n_candidates,
):  # fmt: skip
    a, b, c = rule[0], rule[1], rule[4]
    row_offset, col_offset = rule[2], rule[3]
    at_origin = np.int64(0)  # numba would compile `key_of_view` once more for a literal
    # of keys that may be known: hash, tokens, offset and loss
    asked = np.empty((2 * _CLOSED_AT_ONCE, 4), np.int64)
    slot_mask = index.slots.shape[0] - 1
    for start in range(begin, n_rows, _CLOSED_AT_ONCE):
        n_asked = 0
        for row in range(start, min(start + _CLOSED_AT_ONCE, n_rows)):
            view = rows[row, 0]
            slots[rows[row, 3]] = 0
            rows[row, 3] = -1
            lost = rows[row, 2]
            for side in range(2):
                loss = lost >> 32 if side == 1 else lost & _LOW
                if loss == 0:
                    continue
                if side == 0:
                    key_tokens, key_offset = key_of_view(view, a, at_origin, at_origin)
                else:
                    key_tokens, key_offset = key_of_view(view, b, row_offset, col_offset)
                if view >> 34 >= first_new:
                    late[n_late, 0], late[n_late, 1], late[n_late, 2] = key_tokens, key_offset, loss
                    n_late += 1
                    continue
                h = hash_of(key_tokens, key_offset)
                prefetch(index.slots, h & slot_mask)
                asked[n_asked, 0], asked[n_asked, 1] = h, key_tokens
                asked[n_asked, 2], asked[n_asked, 3] = key_offset, loss
                n_asked += may_be_known(index, h)
            count = rows[row, 1] & _LOW
            if count >= least:
                key_tokens, key_offset = key_of_view(view, c, at_origin, at_origin)
                if is_allowed(key_tokens, key_offset, limits):
                    candidates[n_candidates, 0], candidates[n_candidates, 1] = (i << 55) | view, row
                    candidates[n_candidates, 2] = count
                    n_candidates += 1
        for k in range(n_asked):
            key = find_hashed(index, asked[k, 0], asked[k, 1], asked[k, 2])
            if key >= 0:
                losses[n_losses, 0], losses[n_losses, 1] = key, asked[k, 3]
                n_losses += 1
    return n_losses, n_late, n_candidates


@inlined
def _around(around, begin, end, stride, flat):
    """The cells around a token as steps in a grid of that stride."""
    for k in range(begin, end):
        flat[k - begin] = around[k, 0] * stride + around[k, 1]


@inner
def _merge_positions(
    cells,
    bits,
    sentinel,
    ends,
    strides,
    pool,
    at,  # from this place of the pool
    end,
    rule,  # (5,) int64
    shape_starts,
    shape_offsets,
    codebook_size,
    around,  # of all rules
    around_begin,
    touches_around,  # (n,) int64 for the cells around this rule's token: 1 touches a, 1 << 32 touches b
    slots,
    mask,
    rows,
    n_rows,
    row_limit,
    log_rows,
    log_positions,
    n_log,
):
    """Merge a rule's occurrences as long as rows, slots and log surely have room for one more.

    The caller makes room, since an array that is replaced in the loop has its references counted at every merge, by
    calls and atomic instructions. Returns the place in the pool that was reached, how many rows and entries of the log
    there are then, and how many occurrences were merged.
    """
    a, b, c = rule[0], rule[1], rule[4]
    row_offset, col_offset = rule[2], rule[3]
    wide, mask_col = 2 * bits, (1 << bits) - 1
    low = (1 << wide) - 1
    size = touches_around.shape[0]
    rows = rows.reshape(-1)  # an index of one dimension needs no multiplication
    log_limit = log_rows.shape[0] - size
    near = np.empty(size, np.int64)
    neighbours = np.empty(size, np.int64)
    touches = np.empty(size, np.int64)
    begin_of_group, end_of_group = np.int64(0), np.int64(0)
    stride, step = np.int64(0), np.int64(0)
    n_merged = np.int64(0)
    while at < end:
        # a position's own line first, and of those that are not stale the lines around it
        if at + 2 * _AHEAD < end:
            prefetch(cells, np.int64(pool[unsigned(at + 2 * _AHEAD)]))
        if at + _AHEAD < end:
            ahead = np.int64(pool[unsigned(at + _AHEAD)])
            if np.int64(cells[unsigned(ahead)]) >> wide == a:
                prefetch(cells, ahead - stride - 1)
                prefetch(cells, ahead + stride + 1)
                prefetch(cells, ahead + step + row_offset * stride)
        p = np.int64(pool[unsigned(at)])
        at += 1
        v = np.int64(cells[unsigned(p)])
        if v >> wide != a:
            continue
        if p < begin_of_group or p >= end_of_group:
            group = group_of(ends, p)
            begin_of_group = np.int64(0) if group == 0 else ends[group - 1]
            end_of_group, stride = ends[group], strides[group]
            step = row_offset * stride + col_offset
            _around(around, around_begin, around_begin + size, stride, near)
        w = np.int64(cells[unsigned(p + step)])
        if w >> wide != b:
            continue
        if n_rows > row_limit or n_log > log_limit:
            at -= 1
            break

        n = 0
        for k in range(size):
            u = np.int64(cells[unsigned(p + near[unsigned(k)])])
            if u == sentinel:
                continue
            touch = touches_around[unsigned(k)]
            j = 0
            while j < n and neighbours[unsigned(j)] != u:
                j += 1
            if j == n:
                neighbours[unsigned(n)] = u
                touches[unsigned(n)] = touch
                n += 1
            else:
                touches[unsigned(j)] |= touch

        x = (c << wide) | (v & low)
        if a < codebook_size:
            cells[unsigned(p)] = x
        else:
            for k in range(shape_starts[a - codebook_size], shape_starts[a - codebook_size + 1]):
                cells[unsigned(p + shape_offsets[k, 0] * stride + shape_offsets[k, 1])] = x
        q = p + step
        if b < codebook_size:
            cells[unsigned(q)] = x
        else:
            for k in range(shape_starts[b - codebook_size], shape_starts[b - codebook_size + 1]):
                cells[unsigned(q + shape_offsets[k, 0] * stride + shape_offsets[k, 1])] = x
        n_merged += 1

        row, col = (v >> bits) & mask_col, v & mask_col
        for j in range(n):
            u = neighbours[unsigned(j)]
            t, dr, dc = u >> wide, ((u >> bits) & mask_col) - row, (u & mask_col) - col
            touch = touches[unsigned(j)]
            # -1 for an anchor before p, else 0: a branch would be mispredicted
            before = ((dr << 17) + dc) >> 63
            position = p + ((dr * stride + dc) & before)
            if t == c:
                # Made by this rule a moment ago, when a and b here were its neighbours: they are no
                # more. What (a, a), (a, b), … lost by it was booked then.
                if touch & 1:
                    rows[row_of(view_of(a, -dr, -dc), slots, mask, rows, n_rows) + 1] -= 1
                if touch >> 32:
                    other = view_of(b, row_offset - dr, col_offset - dc)
                    rows[row_of(other, slots, mask, rows, n_rows) + 1] -= 1
                if before != 0:
                    dr, dc = -dr, -dc
                touch = 0
            h = row_of(view_of(t, dr, dc), slots, mask, rows, n_rows)
            n_rows += h == 4 * n_rows
            rows[unsigned(h + 1)] += _BOTH
            rows[unsigned(h + 2)] += touch
            log_rows[unsigned(n_log)] = h >> 2
            log_positions[unsigned(n_log)] = position
            n_log += 1
    return at, n_rows, n_log, n_merged


@kernel
def apply_rules(
    board,
    pool,  # positions of all listed keys
    starts,  # (keys,) int64: where each key's positions start in the pool
    lengths,  # (keys,) int64
    batch,
    shape_starts,  # see Shapes
    shape_offsets,
    codebook_size,
    least,  # new keys with that many occurrences in this shard are candidates
    limits,
    index,  # not changed here, so that all threads may read it
    traces,
):
    """Merge the occurrences of each rule in the order of its positions; returns the traces."""
    rows, log_rows, log_positions = traces.rows, traces.log_rows, traces.log_positions
    losses, late, candidates, slots = traces.losses, traces.late, traces.candidates, traces.slots
    n_rules = batch.rules.shape[0]
    marks = np.zeros((n_rules + 1, 6), np.int64)
    # of one type from the start: numba would compile what they are passed to once more for a literal 0
    n_rows = n_log = n_merged = n_losses = n_late = n_candidates = np.int64(0)
    first_new = batch.rules[0, 4]
    for i in range(n_rules):
        first_row = n_rows
        at = starts[batch.keys[i]]
        end = at + lengths[batch.keys[i]]
        mask = mask_for(end - at, slots)
        begin, size = batch.around_ends[i], batch.around_ends[i + 1] - batch.around_ends[i]
        touches_around = np.empty(size, np.int64)
        for k in range(size):
            touch = np.int64(batch.around[begin + k, 2])
            touches_around[k] = (touch & 1) | ((touch >> 1) << 32)
        while at < end:
            rows = longer_rows(rows, n_rows + size)
            log_rows = longer(log_rows, n_log + size)
            log_positions = longer(log_positions, n_log + size)
            while 2 * (n_rows - first_row + size) > mask:
                slots, mask = widen(slots, mask, rows, first_row, n_rows)
            row_limit = min(rows.shape[0], first_row + mask // 2) - size
            at, n_rows, n_log, merged = _merge_positions(
                board.cells, board.bits, board.sentinel, board.ends, board.strides, pool, at, end,
                batch.rules[i], shape_starts, shape_offsets, codebook_size, batch.around, begin,
                touches_around, slots, mask, rows, n_rows, row_limit, log_rows, log_positions, n_log,
            )  # fmt: skip
            n_merged += merged
        losses, n_losses, late, n_late, candidates, n_candidates = close_rule(
            batch, i, n_rows, first_new, least, limits, index, rows, slots, first_row,
            losses, n_losses, late, n_late, candidates, n_candidates,
        )  # fmt: skip
        marks[i + 1, 0], marks[i + 1, 1], marks[i + 1, 2] = n_rows, n_log, n_merged
        marks[i + 1, 3], marks[i + 1, 4], marks[i + 1, 5] = n_losses, n_late, n_candidates
    return Traces(rows, log_rows, log_positions, losses, late, candidates, slots, marks)


@kernel
def emit_positions(traces, rules, rows, starts, lengths, first_key, pool, used):
    """Write the positions of new keys, numbered from `first_key`; returns the pool's length in use.

    `rules` and `rows` are those of the keys in this shard, in rule order; a row of -1 has no positions here.
    """
    n = rows.shape[0]
    for k in range(n):
        starts[first_key + k], lengths[first_key + k] = used, 0
        if rows[k] >= 0:
            length = traces.rows[rows[k], 1] >> 32
            traces.rows[rows[k], 3] = used
            lengths[first_key + k] = length
            used += length
    k = 0
    while k < n:
        rule = rules[k]
        for at in range(traces.ends[rule, 1], traces.ends[rule + 1, 1]):
            row = unsigned(traces.log_rows[unsigned(at)])
            cursor = traces.rows[row, 3]
            if cursor >= 0:
                pool[unsigned(cursor)] = traces.log_positions[unsigned(at)]
                traces.rows[row, 3] = cursor + 1
        while k < n and rules[k] == rule:
            k += 1
    return used


@kernel
def find_rows(traces, names, found, counts):
    """Find the rows in this shard of candidates of all shards, and add their counts.

    `names`, (n,), are rule << 55 | view, sorted; `found`, (n,), is set to a row, or to -1 where there is none.
    """
    n = names.shape[0]
    found[:] = -1
    begin = 0
    while begin < n:
        rule, end = names[begin] >> 55, begin
        while end < n and names[end] >> 55 == rule:
            end += 1
        for row in range(traces.ends[rule, 0], traces.ends[rule + 1, 0]):
            name = (rule << 55) | traces.rows[row, 0]
            lowest, beyond = begin, end
            while lowest < beyond:
                middle = (lowest + beyond) >> 1
                if names[middle] < name:
                    lowest = middle + 1
                else:
                    beyond = middle
            if lowest < end and names[lowest] == name:
                found[lowest] = row
                counts[lowest] += traces.rows[row, 1] & _LOW
        begin = end


@kernel
def keys_of_views(views, tokens):
    """The packed keys of new tokens and their neighbours as they view them."""
    n = views.shape[0]
    key_tokens, key_offsets = np.empty(n, np.int64), np.empty(n, np.int64)
    at_origin = np.int64(0)
    for i in range(n):
        key_tokens[i], key_offsets[i] = key_of_view(views[i], tokens[i], at_origin, at_origin)
    return key_tokens, key_offsets


@kernel
def compact(cells, wide, pool, starts, lengths, tokens, counts, theta, order, shards):
    """Move the lists of keys that still reach theta to the front of the pool; returns their total length.

    `order` holds the keys as their lists stand in the pool: a list moves to where those before it have been. Lists
    that are mostly stale are cleaned on the way; a key has about as many occurrences in each of `shards`. A
    negative length says that the key has no list yet.
    """
    at = 0
    for key in order:
        if lengths[key] < 0:
            continue
        length = lengths[key] if counts[key] >= theta else 0
        start, begin, first = starts[key], at, tokens[key] >> 32
        stale = 2 * counts[key] < length * shards
        for i in range(start, start + length):
            if stale and np.int64(cells[np.int64(pool[i])]) >> wide != first:
                continue
            pool[at] = pool[i]
            at += 1
        starts[key] = begin
        lengths[key] = at - begin
    return at
