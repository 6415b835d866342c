"""merge rules → token shapes, while they are being learned.

A token's shape follows from its id alone (law, 2), so it is laid down once, when its rule is chosen. The
cells of a merged token are those of its first part and those of its second part, moved by the rule's offset;
offsets are (row, col) from the anchor, int32.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel


@kernel
def _lay_cells(rules, codebook_size, starts, offsets, num_cells, boxes, token):
    """Append the cells and the bounding boxes of the tokens of `rules`, the first of which is `token`."""
    for i in range(rules.shape[0]):
        at = starts[token - codebook_size]
        top, bottom, left, right = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for side in range(2):
            part = rules[i, side]
            row, col = (rules[i, 2], rules[i, 3]) if side == 1 else (np.int64(0), np.int64(0))
            n = num_cells[part]
            if part < codebook_size:
                offsets[at, 0], offsets[at, 1] = row, col
            else:
                begin = starts[part - codebook_size]
                for k in range(n):
                    offsets[at + k, 0] = offsets[begin + k, 0] + row
                    offsets[at + k, 1] = offsets[begin + k, 1] + col
            at += n
            top, bottom = min(top, boxes[part, 0] + row), max(bottom, boxes[part, 1] + row)
            left, right = min(left, boxes[part, 2] + col), max(right, boxes[part, 3] + col)
        boxes[token, 0], boxes[token, 1] = top, bottom
        boxes[token, 2], boxes[token, 3] = left, right
        num_cells[token] = num_cells[rules[i, 0]] + num_cells[rules[i, 1]]
        token += 1
        starts[token - codebook_size] = at


@kernel
def _surround(token, end, codebook_size, first_cells, starts, offsets, boxes, around, ends):
    """The cells around the tokens [token, end), and which part of a token each of them touches.

    Rows of `around` are (row, col, touches): bit 0 for the first part, bit 1 for the second. A bitmap of the
    bounding box and a border of one cell holds a cell's part.
    """
    n = 0
    for i in range(end - token):
        begin, stop = starts[token + i - codebook_size], starts[token + i + 1 - codebook_size]
        top, left = boxes[token + i, 0] - 1, boxes[token + i, 2] - 1
        height, width = boxes[token + i, 1] - top + 2, boxes[token + i, 3] - left + 2
        parts = np.zeros((height, width), np.uint8)
        for k in range(begin, stop):
            part = 1 if k - begin < first_cells[i] else 2
            parts[offsets[k, 0] - top, offsets[k, 1] - left] = part
        for row in range(height):
            for col in range(width):
                if parts[row, col] != 0:
                    continue
                touches = 0
                if row > 0:
                    touches |= parts[row - 1, col]
                if row + 1 < height:
                    touches |= parts[row + 1, col]
                if col > 0:
                    touches |= parts[row, col - 1]
                if col + 1 < width:
                    touches |= parts[row, col + 1]
                if touches != 0:
                    around[n, 0], around[n, 1], around[n, 2] = row + top, col + left, touches
                    n += 1
        ends[i + 1] = n
    return n


class Shapes:
    """The shapes of `codebook_size` single cells and of the merges added to them, numbered as they are made.

    With `merge_rule="pair"` a token has a number of cells, but no shape.

    Attributes:
        size: how many tokens there are.
        capacity: how many there can be.
        visual_ids: (capacity,) int64, the law's number of each token; -1 until it is known.
        num_cells: (capacity,) int64.
        boxes: (capacity, 4) int64: first and last row, first and last column, relative to the anchor.
        starts, offsets: the cells of token t, t ≥ codebook_size, are
            `offsets[starts[t - codebook_size]:starts[t - codebook_size + 1]]`.
    """

    def __init__(self, codebook_size: int, capacity: int, merge_rule: str):
        self.codebook_size = codebook_size
        self.merge_rule = merge_rule
        self.size = codebook_size
        self.capacity = capacity
        self.visual_ids = np.full(capacity, -1, np.int64)
        self.visual_ids[:codebook_size] = np.arange(codebook_size)
        self.num_cells = np.ones(capacity, np.int64)
        self.boxes = np.zeros((capacity, 4), np.int64)
        self.starts = np.zeros(capacity - codebook_size + 1, np.int64)
        self.offsets = np.empty((1024, 2), np.int32)
        self._first_cells = np.zeros(capacity, np.int64)

    @property
    def total_cells(self) -> int:
        """The cells of all merged tokens together."""
        return int(self.num_cells[self.codebook_size : self.size].sum())

    def add(self, rules: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the tokens of rules, (n, 4), whose parts are known; returns the cells around each.

        The two arrays are (_, 3) int32, rows (row, col, touches), and (n + 1,), where each token's end.
        """
        begin = self.size
        self.size = begin + len(rules)
        sizes = self.num_cells[rules[:, 0]] + self.num_cells[rules[:, 1]]
        if self.merge_rule == "pair":
            self.num_cells[begin : self.size] = sizes
            return np.empty((0, 3), np.int32), np.zeros(len(rules) + 1, np.int64)
        needed = int(self.starts[begin - self.codebook_size] + sizes.sum())
        if needed > len(self.offsets):
            self.offsets = np.resize(self.offsets, (2 * needed, 2))
        self._first_cells[begin : self.size] = self.num_cells[rules[:, 0]]
        _lay_cells(
            rules, self.codebook_size, self.starts, self.offsets, self.num_cells, self.boxes, begin
        )
        return self.around(begin, self.size)

    def around(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells around the merged tokens [begin, end), as `add` returns them."""
        around = np.empty((int((2 * self.num_cells[begin:end] + 2).sum()), 3), np.int32)
        ends = np.zeros(end - begin + 1, np.int64)
        n = _surround(
            begin, end, self.codebook_size, self._first_cells[begin:end], self.starts, self.offsets,
            self.boxes, around, ends,
        )  # fmt: skip
        return around[:n], ends
