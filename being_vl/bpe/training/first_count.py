"""codes → keys, counts and positions: the first count, when every token is a single cell.

Then a key is a pair of codes, side by side or one above the other, and one table of codebook_size² counters
for each of the two directions takes the place of the sketch and the hash table of `counting.py`: two plain
passes over the cells instead of three. Worth its memory where there are many more cells than counters.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel, prefetch
from . import counting
from .shard import Shard

_AHEAD = 32
_BYTES_A_CELL = 4.5  # as much as the positions will take later
_SMALL = 1 << 24
_ROWS_AT_ONCE = 256
_RIGHT, _DOWN = np.array([[0, 1], [1, 0]])


@kernel
def _count_pairs(cells, ends, strides, wide, sentinel, codebook_size, down, table):
    begin = 0
    for group in range(ends.shape[0]):
        step = strides[group] if down else 1
        last = ends[group] - strides[group]  # the border below
        for i in range(begin, last):
            if i + _AHEAD < last:
                u, v = np.int64(cells[i + _AHEAD]), np.int64(cells[i + _AHEAD + step])
                if u != sentinel and v != sentinel:
                    prefetch(table, (u >> wide) * codebook_size + (v >> wide))
            u, v = np.int64(cells[i]), np.int64(cells[i + step])
            if u != sentinel and v != sentinel:
                table[(u >> wide) * codebook_size + (v >> wide)] += 1
        begin = ends[group]


@kernel
def _list_pairs(cells, ends, strides, wide, sentinel, codebook_size, down, numbers, cursors, pool):
    """`numbers` maps a pair to its place in `cursors`; place 0 is for pairs not listed, and stays put."""
    begin = 0
    for group in range(ends.shape[0]):
        step = strides[group] if down else 1
        last = ends[group] - strides[group]
        for i in range(begin, last):
            if i + _AHEAD < last:
                u, v = np.int64(cells[i + _AHEAD]), np.int64(cells[i + _AHEAD + step])
                if u != sentinel and v != sentinel:
                    prefetch(numbers, (u >> wide) * codebook_size + (v >> wide))
            u, v = np.int64(cells[i]), np.int64(cells[i + step])
            if u != sentinel and v != sentinel:
                number = np.int64(numbers[(u >> wide) * codebook_size + (v >> wide)])
                pool[cursors[number]] = i
                cursors[number] += number != 0
        begin = ends[group]


def fits(codebook_size: int, num_cells: int, num_shards: int) -> bool:
    """Is the table of each shard small, or small beside the cells?"""
    table = 4 * codebook_size**2
    return table <= _SMALL or num_shards * table <= _BYTES_A_CELL * num_cells


def count_direction(down: bool, shard: Shard) -> np.ndarray:
    """The counts of all pairs of codes in one direction, (codebook_size²,) uint32."""
    table = np.zeros(shard.codebook_size**2, np.uint32)
    _count_pairs(*shard.grid_arrays(), shard.codebook_size, down, table)
    return table


def frequent_pairs(
    tables: list[np.ndarray], codebook_size: int, down: bool, theta: int
) -> tuple[np.ndarray, np.ndarray]:
    """The keys of at least theta occurrences in all shards: columns (n, 4), counts by shard (shards, n)."""
    squares = [table.reshape(codebook_size, codebook_size) for table in tables]
    columns, counts = [np.empty((0, 4), np.int64)], [np.empty((len(tables), 0), np.int64)]
    for begin in range(0, codebook_size, _ROWS_AT_ONCE):
        parts = [square[begin : begin + _ROWS_AT_ONCE] for square in squares]
        total = parts[0] if len(parts) == 1 else sum(part.astype(np.int64) for part in parts)
        first, second = np.nonzero(total >= theta)
        offsets = np.broadcast_to(_DOWN if down else _RIGHT, (len(first), 2))
        columns.append(np.column_stack([first + begin, second, offsets]))
        counts.append(np.array([part[first, second] for part in parts], np.int64))
    return np.concatenate(columns), np.concatenate(counts, axis=1)


def histogram_of(tables: list[np.ndarray], codebook_size: int) -> np.ndarray:
    """How many pairs have each count in all shards; the last bin holds all larger ones."""
    rows = _ROWS_AT_ONCE * codebook_size
    bins = np.zeros(1 << 20, np.int64)
    for begin in range(0, len(tables[0]), rows):
        total = tables[0][begin : begin + rows]
        for table in tables[1:]:
            total = total + table[begin : begin + rows]
        bins += counting.histogram(total, len(bins))
    return bins


def pair_numbers(columns: np.ndarray, codebook_size: int, down: bool) -> np.ndarray:
    """For each pair of codes 1 + its row in `columns`, or 0: (codebook_size²,) uint32."""
    numbers = np.zeros(codebook_size**2, np.uint32)
    own = np.flatnonzero(columns[:, 2] == down)
    numbers[columns[own, 0] * codebook_size + columns[own, 1]] = own + 1
    return numbers


def list_direction(down: bool, numbers: np.ndarray, shard: tuple[Shard, np.ndarray]) -> None:
    """Write a shard's positions of listed keys in one direction.

    With the shard come its cursors, one more than keys: the first one's place is not in use.
    """
    of, cursors = shard
    _list_pairs(*of.grid_arrays(), of.codebook_size, down, numbers, cursors, of.pool)
