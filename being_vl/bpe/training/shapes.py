"""merge rules → token shapes: the cells of each token and the cells around them.

A token's shape follows from its id alone (law, 2). Offsets are (row, col) from the anchor, int32.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel

_SINGLE = np.zeros((1, 2), np.int32)
_CROSS = np.array([[-1, 0], [0, -1], [0, 1], [1, 0]], np.int32)


@kernel
def _join(one, other, row_offset, col_offset):
    """The cells of two shapes, the other moved by an offset, in raster order; and the cells around them."""
    top, bottom, left, right = 0, 0, 0, 0
    for i in range(one.shape[0]):
        bottom, left, right = max(bottom, one[i, 0]), min(left, one[i, 1]), max(right, one[i, 1])
    for i in range(other.shape[0]):
        row, col = other[i, 0] + row_offset, other[i, 1] + col_offset
        bottom, left, right = max(bottom, row), min(left, col), max(right, col)
    height, width = bottom - top + 3, right - left + 3
    inside = np.zeros((height, width), np.bool_)
    for i in range(one.shape[0]):
        inside[one[i, 0] + 1, one[i, 1] - left + 1] = True
    for i in range(other.shape[0]):
        inside[other[i, 0] + row_offset + 1, other[i, 1] + col_offset - left + 1] = True
    cells = np.empty((one.shape[0] + other.shape[0], 2), np.int32)
    around = np.empty((2 * cells.shape[0] + 2, 2), np.int32)
    n = m = 0
    for row in range(height):
        for col in range(width):
            if inside[row, col]:
                cells[n, 0], cells[n, 1] = row - 1, col + left - 1
                n += 1
            elif (
                (row > 0 and inside[row - 1, col])
                or (row + 1 < height and inside[row + 1, col])
                or (col > 0 and inside[row, col - 1])
                or (col + 1 < width and inside[row, col + 1])
            ):
                around[m, 0], around[m, 1] = row - 1, col + left - 1
                m += 1
    return cells, around[:m].copy()


class Shapes:
    """The shapes of `codebook_size` single cells and of the merges added to them.

    With `merge_rule="pair"` a token has a number of cells, but no shape.
    """

    def __init__(self, codebook_size: int, vocab_size: int, merge_rule: str):
        self.codebook_size = codebook_size
        self.merge_rule = merge_rule
        self.size = codebook_size
        self._cells: list[np.ndarray] = []
        self._perimeters: list[np.ndarray] = []
        self.num_cells = np.ones(vocab_size, np.int64)
        # first and last row, first and last column: the anchor is in row 0 and column 0
        self.box = np.zeros((vocab_size, 4), np.int64)

    def cells(self, token: int) -> np.ndarray:
        """(n, 2) int32, in raster order."""
        return _SINGLE if token < self.codebook_size else self._cells[token - self.codebook_size]

    def perimeter(self, token: int) -> np.ndarray:
        """(n, 2) int32: the cells that share an edge with the token."""
        return (
            _CROSS if token < self.codebook_size else self._perimeters[token - self.codebook_size]
        )

    def all_perimeters(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Where each token's rows begin and end, (tokens + 1,), all rows, (_, 2), and the most of a token.

        With `merge_rule="pair"` there are no rows, and the most is a bound.
        """
        if self.merge_rule == "pair":
            most = 2 * int(self.num_cells.max()) + 2
            return np.zeros(1, np.int64), np.empty((0, 2), np.int32), most
        lengths = [0] * self.codebook_size + [len(rows) for rows in self._perimeters]
        bounds = np.append(0, np.cumsum(lengths)).astype(np.int64)
        rows = np.concatenate([np.empty((0, 2), np.int32), *self._perimeters])
        return bounds, rows, max(lengths)

    def add(self, rule: np.ndarray) -> int:
        """Add the token of a rule (first, second, row_offset, col_offset); returns its id."""
        first, second, row_offset, col_offset = (int(value) for value in rule)
        token = self.size
        self.size += 1
        self.num_cells[token] = self.num_cells[first] + self.num_cells[second]
        if self.merge_rule == "pair":
            return token
        cells, perimeter = _join(self.cells(first), self.cells(second), row_offset, col_offset)
        self._cells.append(cells)
        self._perimeters.append(perimeter)
        self.box[token] = self.boxes(np.array([[first, second, row_offset, col_offset]]))[0]
        return token

    def boxes(self, keys: np.ndarray) -> np.ndarray:
        """The bounding boxes, (n, 4), that the tokens of keys (n, 4) would have."""
        one, other = self.box[keys[:, 0]], self.box[keys[:, 1]]
        other = other + keys[:, [2, 2, 3, 3]]
        boxes = np.maximum(one, other)
        boxes[:, [0, 2]] = np.minimum(one, other)[:, [0, 2]]
        return boxes
