"""The dense algorithm of the image BPE: what the paper describes and the authors' released code does.

It is written here from its description with numba, without what is not the algorithm: for every merge a V×V
matrix of neighbours is counted afresh over all images, its largest entry above the diagonal is the pair, and
all images are rewritten. The first merge looks right, down and diagonally; afterwards an image is its raster
sequence.
"""

from __future__ import annotations

import time

import numba
import numpy as np


@numba.njit(cache=True)
def _count_grids(grids, matrix):
    for grid in grids:
        height, width = grid.shape
        for i in range(height):
            for j in range(width):
                if j + 1 < width:
                    matrix[grid[i, j], grid[i, j + 1]] += 1
                if i + 1 < height:
                    matrix[grid[i, j], grid[i + 1, j]] += 1
                if i + 1 < height and j + 1 < width:
                    matrix[grid[i, j], grid[i + 1, j + 1]] += 1


@numba.njit(cache=True)
def _count_rows(rows, lengths, matrix):
    for i in range(rows.shape[0]):
        for j in range(lengths[i] - 1):
            matrix[rows[i, j], rows[i, j + 1]] += 1


@numba.njit(cache=True)
def _largest_above_diagonal(matrix, size):
    best, first, second = 0, -1, -1
    for i in range(size):
        for j in range(i + 1, size):
            if matrix[i, j] > best:
                best, first, second = matrix[i, j], i, j
    return best, first, second


@numba.njit(cache=True)
def _merge_rows(rows, lengths, first, second, new):
    for i in range(rows.shape[0]):
        read = write = 0
        while read < lengths[i]:
            token = rows[i, read]
            if token == first and read + 1 < lengths[i] and rows[i, read + 1] == second:
                token = new
                read += 1
            rows[i, write] = token
            write += 1
            read += 1
        lengths[i] = write


@numba.njit(cache=True)
def _merge_grids(grids, rows, lengths, first, second, new):
    """The first merge: `first` with a `second` on its right, else below it."""
    height, width = grids.shape[1:]
    for n in range(grids.shape[0]):
        taken = np.zeros((height, width), np.bool_)
        flat = grids[n].copy()
        for i in range(height):
            for j in range(width):
                if flat[i, j] != first or taken[i, j]:
                    continue
                if j + 1 < width and flat[i, j + 1] == second and not taken[i, j + 1]:
                    flat[i, j], taken[i, j + 1] = new, True
                elif i + 1 < height and flat[i + 1, j] == second and not taken[i + 1, j]:
                    flat[i, j], taken[i + 1, j] = new, True
        length = 0
        for i in range(height):
            for j in range(width):
                if not taken[i, j]:
                    rows[n, length] = flat[i, j]
                    length += 1
        lengths[n] = length


class Dense:
    """The dense algorithm, one merge at a time; `rank` is where it stands."""

    def __init__(self, grids: np.ndarray, codebook_size: int, num_merges: int):
        self.size = codebook_size
        self.grids = grids.astype(np.int32)
        self.rows = self.grids.reshape(len(grids), -1).copy()
        self.lengths = np.full(len(grids), self.rows.shape[1])
        self.matrix = np.zeros((codebook_size + num_merges,) * 2, np.int32)
        self.rules: list[tuple[int, int]] = []

    def step(self) -> float:
        """One merge; its CPU seconds."""
        started = time.process_time()
        matrix = self.matrix[: self.size, : self.size]
        matrix[...] = 0
        if self.rules:
            _count_rows(self.rows, self.lengths, matrix)
        else:
            _count_grids(self.grids, matrix)
        _, first, second = _largest_above_diagonal(matrix, self.size)
        apply_dense(self.grids, self.rows, self.lengths, self.rules, (first, second), self.size)
        self.rules.append((first, second))
        self.size += 1
        return time.process_time() - started


def apply_dense(grids, rows, lengths, done, rule, new) -> None:
    """Apply a rule of the dense algorithm; the first one is two-dimensional."""
    if done:
        _merge_rows(rows, lengths, *rule, new)
    else:
        _merge_grids(grids, rows, lengths, *rule, new)


def dense_tokens(grids: np.ndarray, rules: list[tuple[int, int]], codebook_size: int) -> float:
    """Tokens per image under the rules of the dense algorithm."""
    grids = grids.astype(np.int32)
    rows, lengths = grids.reshape(len(grids), -1).copy(), np.full(len(grids), grids[0].size)
    for rank, rule in enumerate(rules):
        apply_dense(grids, rows, lengths, rank > 0, rule, codebook_size + rank)
    return float(lengths.mean())
