"""flat tokens → flat grids, compiled: arrays in, arrays out, the GIL released.

Source: point 8 of the law of the image BPE. The cells of a token are written without a check of each against
the border: one look at the token's bounding box does.
"""

from collections.abc import Callable

import numpy as np

from .._jit import explain_compilation, kernel
from ..shapes import TokenTable, split_position

u = np.uint64  # unsigned indices are faster: see encode.py


def grid_decoder(codebook_size: int, table: TokenTable) -> Callable[..., tuple[np.ndarray, bool]]:
    """`decode_grids` with the vocabulary's arguments given."""
    row, col = split_position(table.position)
    begins = table.start[:-1]
    last_row, last_col = (np.maximum.reduceat(side, begins) for side in (row, col))
    box = np.stack([last_row, np.minimum.reduceat(col, begins), last_col], axis=1)

    def decode(*grids: np.ndarray) -> tuple[np.ndarray, bool]:
        with explain_compilation(decode_grids):
            return decode_grids(*grids, codebook_size, table.start, row, col, table.code, box)

    return decode


@kernel
def decode_grids(ids, counts, heights, widths, codebook_size, start, row, col, code, box):
    """Decode sequences of ids that lie one after another.

    Args:
        ids: int64; counts, heights, widths: int64, one a grid.
        start, row, col, code: the cells of id v are [start[v]:start[v + 1]] of the others.
        box: int32 (V, 3), last row, first column and last column of each token.

    Returns:
        int32 codes of all grids, and whether the ids cover each grid exactly; where not, the codes mean nothing.
    """
    codes = np.full((heights * widths).sum(), -1, dtype=np.int32)
    vocab_size = len(start) - 1
    read = 0
    base = 0
    for grid in range(len(counts)):
        height, width = heights[u(grid)], widths[u(grid)]
        size = height * width
        anchor, anchor_row, row_end = 0, 0, width
        for i in range(counts[u(grid)]):
            token = ids[u(read + i)]
            while anchor < size and codes[u(base + anchor)] >= 0:
                anchor += 1
            if token < 0 or token >= vocab_size or anchor == size:
                return codes, False
            if token < codebook_size:
                codes[u(base + anchor)] = token
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
                return codes, False
            for k in range(start[u(token)], start[u(token + 1)]):
                at = base + anchor + row[u(k)] * width + col[u(k)]
                if codes[u(at)] >= 0:
                    return codes, False
                codes[u(at)] = code[u(k)]
        while anchor < size and codes[u(base + anchor)] >= 0:
            anchor += 1
        if anchor < size:
            return codes, False
        read += counts[u(grid)]
        base += size
    return codes, True
