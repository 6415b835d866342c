"""token ids so far → the grid of the image that they leave open, row by row of a batch.

Source: point 8 of the law of the image BPE: the ids alone say where the next token goes. It differs from
replaying every sequence at every step in that it remembers the last step's grids by their ids, so beams
may be reordered, dropped and duplicated without it being told.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from .image_bpe import ImageBPE
from .image_bpe_placement import GridState
from .vocabulary import VocabularyLayout


class OpenImageTracker:
    """Follows the last image of each sequence.

    Args:
        layout: the vocabulary.
        image_bpe: the merge rules.
        grid_size: (height, width) of the images, in cells.
        boi_token_id, eoi_token_id: the tokens that open and close an image.
    """

    def __init__(
        self,
        layout: VocabularyLayout,
        image_bpe: ImageBPE,
        grid_size: tuple[int, int],
        boi_token_id: int,
        eoi_token_id: int,
    ):
        self.grid_size = grid_size
        self._layout = layout
        self._image_bpe = image_bpe
        self._boi_token_id = boi_token_id
        self._eoi_token_id = eoi_token_id
        self._known: dict[bytes, GridState] = {}

    def open_at(self, ids: np.ndarray) -> int | None:
        """Index behind the last boi of a sequence, (length,) int64; None where no image is open."""
        marks = np.flatnonzero((ids == self._boi_token_id) | (ids == self._eoi_token_id))
        if len(marks) == 0 or ids[marks[-1]] == self._eoi_token_id:
            return None
        return int(marks[-1]) + 1

    def states(self, input_ids: np.ndarray) -> list[GridState | ValueError | None]:
        """The open grid of each sequence, (batch, length) int64.

        None where no image is open; the error, not raised, where the ids since boi are no legal image.
        A returned state must not be changed.
        """
        now: dict[bytes, GridState] = {}
        found: list[GridState | ValueError | None] = []
        for ids in input_ids:
            start = self.open_at(ids)
            if start is None:
                found.append(None)
                continue
            try:
                found.append(self._state(np.ascontiguousarray(ids[start:]), now))
            except ValueError as error:
                found.append(error)
        self._known = now
        return found

    def _state(self, ids: np.ndarray, now: dict[bytes, GridState]) -> GridState:
        key = ids.tobytes()
        state = now.get(key) or self._known.get(key)
        if state is None:
            parent = self._known.get(ids[:-1].tobytes()) if len(ids) else None
            if parent is None:
                state, ids = GridState(self._image_bpe, *self.grid_size), ids
            else:
                state, ids = copy.copy(parent), ids[-1:]
                state.codes = parent.codes.copy()
            for token_id in ids.tolist():
                state.append(self._layout.visual_id(token_id))
        now[key] = state
        return state


def image_token_positions(
    input_ids: torch.Tensor,
    layout: VocabularyLayout,
    image_bpe: ImageBPE,
    grid_size: tuple[int, int],
    *,
    boi_token_id: int,
    eoi_token_id: int,
    known: torch.LongTensor | None = None,
    strict: bool = True,
) -> torch.LongTensor:
    """Row and column of each image token's anchor in its grid, −1 at every other token.

    All images have the size `grid_size`, except those that end within `known`; the last may be unfinished.

    Args:
        input_ids: (batch, length) long.
        known: (batch, n, 2) long, the positions of the first n tokens.
        strict: raise on ids that are no image; else give −1 from there on, as for the beams of score
            -inf that beam search fills up with.

    Returns:
        (batch, length, 2) long, on the device of `input_ids`.

    Raises:
        ValueError: an image token outside an image, or ids that do not fit the grid.
    """
    positions = np.full((*input_ids.shape, 2), -1, dtype=np.int64)
    num_known = 0 if known is None else known.shape[1]
    if known is not None:
        positions[:, :num_known] = known.cpu().numpy()
    for b, ids in enumerate(input_ids.tolist()):
        state = None
        for i, token_id in enumerate(ids):
            if token_id == boi_token_id:
                ends_within_known = eoi_token_id in ids[i:num_known]
                state = None if ends_within_known else GridState(image_bpe, *grid_size)
            elif token_id == eoi_token_id:
                state = None
            elif layout.first_code_id <= token_id < layout.size:
                if state is not None and not state.finished:
                    positions[b, i] = state.next_anchor
                    try:
                        state.append(layout.visual_id(token_id))
                    except ValueError as error:
                        if strict:
                            raise ValueError(f"input_ids[{b}, {i}]: {error}") from None
                        state = None
                elif strict and i >= num_known:
                    raise ValueError(
                        f"input_ids[{b}, {i}] is image token {token_id} outside an image of "
                        f"{grid_size[0]}x{grid_size[1]} cells"
                    )
    return torch.from_numpy(positions).to(input_ids.device)
