"""covered cells → which token fits next: the legality mask of image generation.

Source: point 8 of the law of the image BPE (the next token's anchor is the first uncovered cell). Differs
from trying every token in that tokens of one shape are judged together: 8,192 merges have a few hundred
shapes.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from .grids import check_side
from .shapes import TokenTable, split_position

if TYPE_CHECKING:
    from .image_bpe import ImageBPE


class ShapeTable:
    """The distinct shapes of a vocabulary, their cells end to end.

    Attributes:
        shape_of: int64 (vocab_size,), the shape of each visual id.
        rows, cols: int64 (cells,), position of each cell relative to the anchor.
        starts: int64 (shapes,), index of each shape's first cell.
    """

    def __init__(self, table: TokenTable):
        shapes: dict[bytes, int] = {}
        starts = table.start.tolist()
        self.shape_of = np.array(
            [
                shapes.setdefault(table.position[begin:end].tobytes(), len(shapes))
                for begin, end in itertools.pairwise(starts)
            ],
            dtype=np.int64,
        )
        positions = [np.frombuffer(shape, dtype=table.position.dtype) for shape in shapes]
        self.rows, self.cols = split_position(np.concatenate(positions).astype(np.int64))
        self.starts = np.concatenate([[0], np.cumsum([len(p) for p in positions])[:-1]])
        # Shapes overlap: thousands of cells lie at a few hundred places, so a shape is some words of bits.
        cells = np.stack([self.rows, self.cols], axis=1)
        offsets, place = np.unique(cells, axis=0, return_inverse=True)
        self._offset_rows, self._offset_cols = offsets.T.copy()
        has = np.zeros((len(positions), len(offsets)), dtype=bool)
        has[
            np.repeat(np.arange(len(positions)), [len(p) for p in positions]), place.reshape(-1)
        ] = True
        self._bits = _words(has)

    def fitting(self, covered: np.ndarray, anchor_row: int, anchor_col: int) -> np.ndarray:
        """bool (shapes,): those whose cells, anchored there, are all inside the grid and uncovered."""
        height, width = covered.shape
        rows, cols = self._offset_rows + anchor_row, self._offset_cols + anchor_col
        is_inside = (rows < height) & (cols >= 0) & (cols < width)
        blocked = ~is_inside
        blocked[is_inside] = covered[rows[is_inside], cols[is_inside]]
        return ~(self._bits & _words(blocked)).any(axis=1)


def _words(flags: np.ndarray) -> np.ndarray:
    """bool (…, n) → its bits, uint64 (…, ceil(n / 64))."""
    padded = np.zeros((*flags.shape[:-1], -(-flags.shape[-1] // 64) * 64), dtype=bool)
    padded[..., : flags.shape[-1]] = flags
    return np.packbits(padded, axis=-1).view(np.uint64)


class GridState:
    """A grid being covered token by token, as a model generates it.

    Args:
        bpe: the vocabulary (merge_rule "shape").
        height, width: of the grid, in cells.
        may_repeat: False for images and for first and key frames of a video, which hold no repeat code.

    Attributes:
        codes: int32 (height, width), -1 where no token lies yet.
        num_tokens: tokens placed so far.

    Raises:
        ValueError: the vocabulary cannot decode, or a side is below 1.
    """

    def __init__(self, bpe: ImageBPE, height: int, width: int, *, may_repeat: bool = True):
        height, width = check_side(height, "height"), check_side(width, "width")
        self._bpe = bpe
        self._shapes = bpe.shape_table()
        self._refused = None if may_repeat or bpe.repeat_code is None else bpe.repeating_ids()
        self.codes = np.full((height, width), -1, dtype=np.int32)
        self.num_tokens = 0
        self._anchor = 0

    @property
    def covered(self) -> np.ndarray:
        """bool (height, width)."""
        return self.codes >= 0

    @property
    def finished(self) -> bool:
        return self._anchor == self.codes.size

    @property
    def next_anchor(self) -> tuple[int, int] | None:
        """Row and column where the next token goes; None once finished."""
        return None if self.finished else divmod(self._anchor, self.codes.shape[1])

    def legal_mask(self) -> np.ndarray:
        """bool (vocab_size,): the visual ids that may come next; all False once finished."""
        fitting = self.fitting_shapes()[self._shapes.shape_of]
        return fitting if self._refused is None else fitting & ~self._refused

    def fitting_shapes(self) -> np.ndarray:
        """bool (shapes,): the shapes of [`ShapeTable`] for which there is room; all False once finished."""
        anchor = self.next_anchor
        if anchor is None:
            return np.zeros(len(self._shapes.starts), dtype=bool)
        return self._shapes.fitting(self.covered, *anchor)

    def append(self, visual_id: int) -> None:
        """Place a token at the next anchor.

        Raises:
            ValueError: naming the id and its position in the sequence, and leaving the state as it was.
        """
        height, width = self.codes.shape
        name = f"ids[{self.num_tokens}] is {visual_id}"
        if not 0 <= visual_id < self._bpe.vocab_size:
            raise ValueError(f"{name}, but visual ids lie in [0, {self._bpe.vocab_size})")
        anchor = self.next_anchor
        if anchor is None:
            raise ValueError(
                f"{name}, but the {height}x{width} grid is full after {self.num_tokens} ids"
            )
        if self._refused is not None and self._refused[visual_id]:
            raise ValueError(f"{name}, which repeats a frame before, but there is none to repeat")
        row, col = anchor
        cells = self._bpe.cells(visual_id)
        for cell_row, cell_col, _ in cells:
            r, c = row + cell_row, col + cell_col
            if r >= height or not 0 <= c < width:
                raise ValueError(
                    f"{name}: at row {row}, column {col} it runs over the border of the {height}x{width} grid"
                )
            if self.codes[r, c] >= 0:
                raise ValueError(
                    f"{name}: at row {row}, column {col} it overlaps the cells of earlier ids"
                )
        for cell_row, cell_col, code in cells:
            self.codes[row + cell_row, col + cell_col] = code
        self.num_tokens += 1
        flat = self.codes.reshape(-1)
        while self._anchor < flat.size and flat[self._anchor] >= 0:
            self._anchor += 1
