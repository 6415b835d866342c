"""token ids so far → the grid of the image that they leave open, row by row of a batch.

Source: point 8 of the law of the image BPE: the ids alone say where the next token goes. It differs from
replaying every sequence at every step in that it remembers the last step's grids by their ids, so beams
may be reordered, dropped and duplicated without it being told.
"""

from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from ..vocabulary import VocabularyLayout
from .image_bpe import ImageBPE
from .placement import GridState


@dataclass(eq=False)
class OpenImageTracker:
    """Follows the last image of each sequence.

    Args:
        grid_size: (height, width) of the images, in cells.
        boi_token_id, eoi_token_id: the tokens that open and close an image.
        bov_token_id, eov_token_id: the same for a video, whose frames are images; None where there are none.
        key_frame_interval: one in so many frames of a video holds no repeat code, the first in any case.

    Raises:
        ValueError: a side is below 1, or the rules' tokens have no shape.
    """

    layout: VocabularyLayout
    image_bpe: ImageBPE
    grid_size: tuple[int, int]
    boi_token_id: int
    eoi_token_id: int
    _: KW_ONLY
    bov_token_id: int | None = None
    eov_token_id: int | None = None
    key_frame_interval: int | None = None

    def __post_init__(self) -> None:
        self._empty = [
            GridState(self.image_bpe, *self.grid_size, may_repeat=repeats)
            for repeats in (False, True)
        ]
        self._known: dict[tuple[bytes, bool], GridState] = {}

    def open_at(self, ids: np.ndarray) -> int | None:
        """Index behind the last boi of a sequence, (length,) int64; None where no image is open."""
        return _behind(ids, self.boi_token_id, self.eoi_token_id)

    def video_at(self, ids: np.ndarray) -> int | None:
        """Index behind the last bov of a sequence, (length,) int64; None where no video is open."""
        return _behind(ids, self.bov_token_id, self.eov_token_id)

    def num_frames(self, ids: np.ndarray) -> int:
        """Frames of the open video of a sequence, the open one included; -1 where no video is open."""
        start = self.video_at(ids)
        return -1 if start is None else int((ids[start:] == self.boi_token_id).sum())

    def may_repeat(self, num_frames: Any) -> Any:
        """Whether the last of so many frames (an int or a tensor; -1: an image alone) may hold the repeat code."""
        interval = self.key_frame_interval
        return (num_frames > 1) & (True if interval is None else (num_frames - 1) % interval != 0)

    def states(self, input_ids: np.ndarray) -> list[GridState | ValueError | None]:
        """The open grid of each sequence, (batch, length) int64.

        None where no image is open; the error, not raised, where the ids since boi are no legal image.
        A returned state must not be changed.
        """
        now: dict[tuple[bytes, bool], GridState] = {}
        found: list[GridState | ValueError | None] = []
        for ids in input_ids:
            start = self.open_at(ids)
            if start is None:
                found.append(None)
                continue
            try:
                may_repeat = self.may_repeat(self.num_frames(ids))
                found.append(self._state(np.ascontiguousarray(ids[start:]), may_repeat, now))
            except ValueError as error:
                found.append(error)
        self._known = now  # of this step alone: sequences that were dropped are forgotten
        return found

    def _state(
        self, ids: np.ndarray, may_repeat: bool, now: dict[tuple[bytes, bool], GridState]
    ) -> GridState:
        key = ids.tobytes(), may_repeat
        state = now.get(key) or self._known.get(key)
        if state is None:
            parent = self._known.get((ids[:-1].tobytes(), may_repeat)) if len(ids) else None
            if parent is None:
                parent = self._empty[may_repeat]
            else:
                ids = ids[-1:]
            state = parent.copy()
            for token_id in ids.tolist():
                state.append(self.layout.visual_id(token_id))
        now[key] = state
        return state


def _behind(ids: np.ndarray, begin_id: int | None, end_id: int | None) -> int | None:
    """Index behind the last begin token that no end token follows."""
    if begin_id is None:
        return None
    marks = np.flatnonzero((ids == begin_id) | (ids == end_id))
    return int(marks[-1]) + 1 if len(marks) and ids[marks[-1]] == begin_id else None
