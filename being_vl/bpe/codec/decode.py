"""flat tokens → flat grids, compiled: arrays in, arrays out, the GIL released.

Source: point 8 of the law of the image BPE. The cells of a token are written without a check of each against
the border: one look at the token's bounding box does.
"""

from __future__ import annotations

import numpy as np

from .._jit import explain_compilation, kernel
from ..shapes import TokenTable, split_position
from .plain import OK, OUT_OF_RANGE, OVER_BORDER, OVERLAP, TOO_FEW, TOO_MANY

u = np.uint64  # unsigned indices are faster: see encode.py


class KernelDecoder:
    """Decodes tokens of fixed shape with the compiled kernel."""

    def __init__(self, codebook_size: int, table: TokenTable):
        row, col = split_position(table.position)
        begins = table.start[:-1]
        box = np.stack(
            [
                np.maximum.reduceat(row, begins),
                np.minimum.reduceat(col, begins),
                np.maximum.reduceat(col, begins),
            ],
            axis=1,
        )
        self._vocabulary = (codebook_size, table.start, row, col, table.code, box)

    def decode(
        self, ids: np.ndarray, counts: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As PlainCodec.decode."""
        with explain_compilation(decode_grids):
            return decode_grids(ids, counts, heights, widths, *self._vocabulary)


@kernel
def decode_grids(ids, counts, heights, widths, codebook_size, start, row, col, code, box):
    """Decode sequences of ids that lie one after another.

    Args:
        ids: int64; counts, heights, widths: int64, one a grid.
        start, row, col, code: the cells of id v are [start[v]:start[v + 1]] of the others.
        box: int32 (V, 3), last row, first column and last column of each token.

    Returns:
        int32 codes of all grids, what is wrong with each grid, and at which of its ids.
    """
    codes = np.full((heights * widths).sum(), -1, dtype=np.int32)
    status = np.zeros(len(counts), dtype=np.int64)
    index = np.zeros(len(counts), dtype=np.int64)
    vocab_size = len(start) - 1
    read = 0
    base = 0
    for grid in range(len(counts)):
        height, width = heights[u(grid)], widths[u(grid)]
        size = height * width
        anchor, anchor_row, row_end = 0, 0, width
        state, i = OK, 0
        while i < counts[u(grid)]:
            token = ids[u(read + i)]
            if token < 0 or token >= vocab_size:
                state = OUT_OF_RANGE
                break
            while anchor < size and codes[u(base + anchor)] >= 0:
                anchor += 1
            if anchor == size:
                state = TOO_MANY
                break
            if token < codebook_size:
                codes[u(base + anchor)] = token
                i += 1
                continue
            while anchor >= row_end:
                anchor_row += 1
                row_end += width
            anchor_col = anchor - row_end + width
            if (
                anchor_row + box[u(token), 0] >= height
                or anchor_col + box[u(token), 1] < 0
                or anchor_col + box[u(token), 2] >= width
            ):
                state = OVER_BORDER
                break
            for k in range(start[u(token)], start[u(token + 1)]):
                at = base + anchor + row[u(k)] * width + col[u(k)]
                if codes[u(at)] >= 0:
                    state = OVERLAP
                    break
                codes[u(at)] = code[u(k)]
            if state != OK:
                break
            i += 1
        if state == OK:
            while anchor < size and codes[u(base + anchor)] >= 0:
                anchor += 1
            if anchor < size:
                state = TOO_FEW
        status[u(grid)], index[u(grid)] = state, i
        read += counts[u(grid)]
        base += size
    return codes, status, index
