"""keys of codes → their positions, when these are needed: the most frequent keys first, tier by tier.

After the first count every key down to theta is known with its count, and counts are kept up to date whether or not
a key's positions are listed. Where a memory limit leaves no room for all of them, the first count lists the most
frequent keys alone. What has fewer occurrences than this tier cannot be chosen, so its positions may wait. When
no key reaches the tier, the cells are read once more: two single cells side by side are an occurrence of the
key of their codes, whatever happened around them. By then merges have taken many of those, and keys that
never come to their turn are never listed. So a tight memory limit costs some passes over the cells, where
counting everything afresh would cost more than all merges.

Only keys of two codes wait; those of merged tokens are listed when they are made, since finding them again would
need every shape.
"""

from __future__ import annotations

import numpy as np

from .._jit import inlined, kernel

_BLOCK = 1024  # cells: their pairs that pass the filter stay in the nearest cache
FILTER_BITS = 18  # 32 KB


@inlined
def _hash_of_codes(first, second, below):
    return first * 0x9E3779B1 + second * 0x85EBCA77 + below * 0xC2B2AE3D


@kernel
def aim(tokens, offsets, cursors, filter_words, table):
    """Enter keys of codes with the cursors of their positions: rows of `table` are (name, cursor), -2 if free."""
    table[:, 0] = -2
    for i in range(tokens.shape[0]):
        first, second, below = tokens[i] >> 32, tokens[i] & 0xFFFFFFFF, offsets[i] >> 17
        h = _hash_of_codes(first, second, below) >> 13
        bit = h & ((1 << FILTER_BITS) - 1)
        filter_words[bit >> 5] |= np.uint32(1 << (bit & 31))
        slot = h & (table.shape[0] - 1)
        while table[slot, 0] != -2:
            slot = (slot + 1) & (table.shape[0] - 1)
        table[slot, 0] = (((first << 21) | second) << 1) | below
        table[slot, 1] = cursors[i]


@kernel
def list_codes(board, filter_words, table, pool):
    """Write the positions of the keys in `table` into the pool.

    Most pairs are of no key in the table: a filter in the nearest cache says so without a branch, which would
    be mispredicted. Ids of merged tokens may pass it, and are not in the table.
    """
    cells, wide = board.cells, 2 * board.bits
    mask, filter_mask = table.shape[0] - 1, (1 << FILTER_BITS) - 1
    passed = np.empty(2 * _BLOCK, np.int64)
    begin = np.int64(0)
    for group in range(board.ends.shape[0]):
        stride = board.strides[group]
        stop = board.ends[group] - stride  # the last line is border
        for start in range(begin, stop, _BLOCK):
            n = 0
            for i in range(start, min(start + _BLOCK, stop)):
                first = np.int64(cells[i]) >> wide
                for below in range(2):
                    second = np.int64(cells[i + (stride if below == 1 else 1)]) >> wide
                    bit = (_hash_of_codes(first, second, below) >> 13) & filter_mask
                    passed[n] = (i << 1) | below
                    n += (np.int64(filter_words[bit >> 5]) >> (bit & 31)) & 1
            for k in range(n):
                i, below = passed[k] >> 1, passed[k] & 1
                first = np.int64(cells[i]) >> wide
                second = np.int64(cells[i + (stride if below == 1 else 1)]) >> wide
                name = (((first << 21) | second) << 1) | below
                slot = (_hash_of_codes(first, second, below) >> 13) & mask
                while table[slot, 0] != -2 and table[slot, 0] != name:
                    slot = (slot + 1) & mask
                if table[slot, 0] == name:
                    pool[table[slot, 1]] = i
                    table[slot, 1] += 1
        begin = board.ends[group]


@kernel
def book_unlisted(lengths, losses, n):
    """Take losses, rows (key, loss), off the keys whose positions are not listed: see `Shard`."""
    for i in range(n):
        if lengths[losses[i, 0]] < 0:
            lengths[losses[i, 0]] += losses[i, 1]


def lowest_tier(counts: np.ndarray, room: int, theta: int) -> tuple[int, int]:
    """The lowest tier whose keys find room for their positions.

    If those with the highest count find none, that count: their positions then take more than `room`.

    Args:
        counts: of the keys whose positions are not listed.
        room: positions.
        theta: no tier is lower.

    Returns:
        the tier, and how many positions it has.
    """
    falling = np.sort(counts)[::-1]
    ends = np.cumsum(falling)
    fitting = int(np.searchsorted(ends, room, side="right"))
    if fitting == len(falling):
        return theta, int(falling.sum())
    tier = min(int(falling[fitting]) + 1, int(falling[0]))
    return tier, int(falling[falling >= tier].sum())
