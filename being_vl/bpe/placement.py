"""covered cells → which token fits next: the legality mask of image generation.

Source: point 8 of the law of the image BPE (the next token's anchor is the first uncovered cell). Differs
from trying every token in that tokens of one shape are judged together: 8,192 merges have a few hundred
shapes.
"""

from __future__ import annotations

import copy
import itertools
from typing import TYPE_CHECKING

import numpy as np

from .grids import check_integer
from .shapes import TokenTable, split_position

if TYPE_CHECKING:
    from .image_bpe import ImageBPE


_OPEN, _OUTSIDE = -1, -2  # of the cells of a grid and its border, beside codes


class ShapeTable:
    """The distinct shapes of a vocabulary, their cells end to end.

    Attributes:
        shape_of: int64 (vocab_size,), the shape of each visual id.
        rows, cols: int64 (cells,), position of each cell relative to the anchor.
        starts: int64 (shapes,), index of each shape's first cell.
        place_rows, place_cols: int64 (places,), the distinct positions, some (0, 0) more up to a multiple of 64.
        places_of: for each shape, the places of its cells in raster order.
    """

    def __init__(self, table: TokenTable):
        self._table = table
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
        ends = np.cumsum([len(p) for p in positions])
        self.starts = np.append(0, ends[:-1])
        # Shapes overlap: thousands of cells lie at a few hundred places. So a shape is some words of bits, one for each
        # place, and "does it fit?" is an AND with the bits of the blocked places, for all shapes at once.
        cells = np.stack([self.rows, self.cols], axis=1)
        places, place = np.unique(cells, axis=0, return_inverse=True)
        self.places_of = np.split(place.reshape(-1), ends[:-1])
        has = np.zeros((len(positions), -(-len(places) // 64) * 64), dtype=bool)
        for shape, at in enumerate(self.places_of):
            has[shape, at] = True
        self.place_rows, self.place_cols = np.zeros((2, has.shape[1]), dtype=np.int64)
        self.place_rows[: len(places)], self.place_cols[: len(places)] = places.T
        # (words, shapes): numpy then works along the shapes, which are many, not along the words, which are few.
        self._bits = np.packbits(has, axis=1).view(np.uint64).T.copy()

    def codes_of(self, visual_id: int) -> np.ndarray:
        """int32 (cells,): the codes of a token's cells in raster order."""
        return self._table.code[self._table.start[visual_id] : self._table.start[visual_id + 1]]

    def free_of(self, blocked: np.ndarray) -> np.ndarray:
        """bool (shapes,): those that lie at none of the blocked places, bool (places,)."""
        words = np.packbits(blocked).view(np.uint64)
        return np.bitwise_or.reduce(self._bits & words[:, None], axis=0) == 0

    def fitting(self, covered: np.ndarray, anchor_row: int, anchor_col: int) -> np.ndarray:
        """bool (shapes,): those whose cells, anchored there, are all inside the grid and uncovered."""
        height, width = covered.shape
        rows, cols = self.place_rows + anchor_row, self.place_cols + anchor_col
        is_inside = (rows < height) & (cols >= 0) & (cols < width)
        blocked = ~is_inside
        blocked[is_inside] = covered[rows[is_inside], cols[is_inside]]
        return self.free_of(blocked)


class GridState:
    """A grid being covered token by token, as a model generates it.

    Args:
        may_repeat: False for images and for first and key frames of a video, which hold no repeat code.

    Attributes:
        num_tokens: tokens placed so far.

    Raises:
        ValueError: the vocabulary cannot decode, or a side is below 1.
    """

    def __init__(self, bpe: ImageBPE, height: int, width: int, *, may_repeat: bool = True):
        height, width = check_integer(height, "height"), check_integer(width, "width")
        shapes = bpe.shape_table()
        self._bpe, self._shapes = bpe, shapes
        self._refused = None if may_repeat or bpe.repeat_code is None else bpe.repeating_ids()
        # Around the grid lies a border as wide as shapes reach, so that a place is one number, inside or not.
        rows, cols = (
            np.minimum(shapes.place_rows, height),
            np.clip(shapes.place_cols, -width, width),
        )
        reach = int(np.abs(cols).max())
        stride = width + reach
        self._shape, self._stride, self._first = (height, width), stride, reach
        self._grid = np.full(
            2 * reach + (height + int(rows.max())) * stride, _OUTSIDE, dtype=np.int32
        )
        self._places = rows * stride + cols
        self.codes[:] = _OPEN
        self.num_tokens = 0
        self._left = height * width
        self._anchor = reach

    def copy(self) -> GridState:
        """A state of its own, equal to this one."""
        other = copy.copy(self)
        other._grid = self._grid.copy()
        return other

    @property
    def codes(self) -> np.ndarray:
        """int32 (height, width), -1 where no token lies yet."""
        height, width = self._shape
        cells = self._grid[self._first : self._first + height * self._stride]
        return cells.reshape(height, self._stride)[:, :width]

    @property
    def covered(self) -> np.ndarray:
        """bool (height, width)."""
        return self.codes >= 0

    @property
    def finished(self) -> bool:
        return not self._left

    @property
    def next_anchor(self) -> tuple[int, int] | None:
        """Row and column where the next token goes; None once finished."""
        return divmod(self._anchor - self._first, self._stride) if self._left else None

    def legal_mask(self) -> np.ndarray:
        """bool (vocab_size,): the visual ids that may come next; all False once finished."""
        fitting = self.fitting_shapes()[self._shapes.shape_of]
        return fitting if self._refused is None else fitting & ~self._refused

    def fitting_shapes(self) -> np.ndarray:
        """bool (shapes,): the shapes of [`ShapeTable`] for which there is room; all False once finished."""
        if self.finished:
            return np.zeros(len(self._shapes.starts), dtype=bool)
        return self._shapes.free_of(self._grid[self._places + self._anchor] != _OPEN)

    def append(self, visual_id: int) -> None:
        """Place a token at the next anchor; a ValueError that names it and its position leaves the state as it was."""
        height, width = self._shape
        name = f"ids[{self.num_tokens}] is {visual_id}"
        if not 0 <= visual_id < self._bpe.vocab_size:
            raise ValueError(f"{name}, but visual ids lie in [0, {self._bpe.vocab_size})")
        if self.finished:
            raise ValueError(
                f"{name}, but the {height}x{width} grid is full after {self.num_tokens} ids"
            )
        if self._refused is not None and self._refused[visual_id]:
            raise ValueError(f"{name}, which repeats a frame before, but there is none to repeat")
        shapes, grid = self._shapes, self._grid
        cells = self._places[shapes.places_of[shapes.shape_of[visual_id]]] + self._anchor
        taken = grid[cells]
        if (taken != _OPEN).any():
            first = taken[taken != _OPEN][0]
            what = (
                f"runs over the border of the {height}x{width} grid"
                if first == _OUTSIDE
                else "overlaps the cells of earlier ids"
            )
            row, col = divmod(self._anchor - self._first, self._stride)
            raise ValueError(f"{name}: at row {row}, column {col} it {what}")
        grid[cells] = shapes.codes_of(visual_id)
        self.num_tokens += 1
        self._left -= len(cells)
        while self._left and grid[self._anchor] != _OPEN:
            self._anchor += 1
