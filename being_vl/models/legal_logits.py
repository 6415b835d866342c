"""logits → legal logits: text alone, or what keeps each image and frame decodable.

Source: the mask of point 8 of the law of the image BPE, and of point "Time" for the frames of a video.
"""

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from ..bpe.grid_tracking import OpenImageTracker
from .configuration_being_vl import SPECIAL_IDS
from .grid_mask import GridMask


class TextOnlyLogitsProcessor(LogitsProcessor):
    """Masks codes, merges, the begin and end tokens of images and videos, and their placeholders."""

    supports_continuous_batching = True  # it looks at no ids

    def __init__(self, config: Any):
        special = {getattr(config, name) for name in SPECIAL_IDS} - {None}
        ids = np.unique([*special, *range(config.layout.first_code_id, config.layout.size)])
        runs = np.split(ids, np.flatnonzero(np.diff(ids) > 1) + 1)
        # Slices, since a list of ids would be copied to the device at every step.
        self._runs = [slice(int(run[0]), int(run[-1]) + 1) for run in runs]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for ids in self._runs:
            scores[:, ids] = -torch.inf
        return scores


class ImageGridLogitsProcessor(LogitsProcessor):
    """Leaves only what keeps each image, or each frame of a video, a legal cover of its grid.

    Outside an image it leaves text, and boi if a whole image still fits into the budget (interleaved), or
    boi alone (image only); for a video bov, then boi until there are as many frames as asked for, then eov. Inside
    it leaves the tokens that fit at the first uncovered cell, and once none is uncovered, eoi alone.

    Args:
        tracker: follows the images of the batch.
        config: of the model, see [`ImageVocabularyConfig`].
        prompt_length: ids given, not generated.
        max_new_tokens: None for one image or video and nothing else; else the budget for interleaved text.
        num_frames: of the video; None where none is asked for.
    """

    def __init__(
        self,
        tracker: OpenImageTracker,
        config: Any,
        *,
        prompt_length: int,
        max_new_tokens: int | None,
        num_frames: int | None = None,
    ):
        self._tracker = tracker
        self._config = config
        self._layout = config.layout
        self._mask = GridMask(tracker)
        self._prompt_length = prompt_length
        self._max_new_tokens = max_new_tokens
        self._num_frames = num_frames

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        mask, layout = self._mask, self._layout
        mask.advance(input_ids)
        text, special, is_free = self._allowed(input_ids)
        goes_on = (mask.is_open & ~mask.is_full)[:, None]
        visual = is_free[:, None] | goes_on & mask.legal_visual_ids()

        # The passes over the whole vocabulary are what a step costs: one fill, one maximum.
        codes = slice(layout.first_code_id, layout.size)
        filled = scores.masked_fill(~text[:, None], -torch.inf)
        filled[:, codes] = scores[:, codes].masked_fill(~visual, -torch.inf)
        for token_id, rows in special.items():
            filled[:, token_id] = scores[:, token_id].masked_fill(~rows, -torch.inf)
        # Another processor may have ruled out all that is legal here; the grid comes first.
        is_stuck = filled.amax(dim=1) == -torch.inf
        filled[:, codes].masked_fill_(is_stuck[:, None] & visual, 0)
        for token_id, rows in special.items():
            filled[:, token_id].masked_fill_(is_stuck & rows, 0)
        return filled

    def _allowed(
        self, input_ids: torch.Tensor
    ) -> tuple[torch.Tensor, dict[int, torch.Tensor], torch.Tensor]:
        """Which rows may go on with text, with each of the special ids, and with anything; bool (batch,)."""
        mask, config = self._mask, self._config
        is_outside = ~mask.is_open
        # Beam search fills up with beams of score -inf, whose ids mean nothing and never win.
        is_free = mask.is_illegal
        bov = eov = is_free
        if self._num_frames is not None:  # one video, behind which nothing matters
            is_free = is_free | is_outside & self._is_generated(input_ids, config.eov_token_id)
            in_video = is_outside & (mask.num_frames >= 0)
            text, bov = is_free, is_free | is_outside & (mask.num_frames < 0)
            boi = is_free | in_video & (mask.num_frames < self._num_frames)
            eov = is_free | in_video & (mask.num_frames >= self._num_frames)
        elif self._max_new_tokens is None:  # one image
            is_free = is_free | is_outside & self._is_generated(input_ids, config.eoi_token_id)
            text, boi, bov, eov = is_free, is_free | is_outside, is_free, is_free
        else:
            left = self._max_new_tokens - (input_ids.shape[1] - self._prompt_length)
            fits = left >= image_token_bound(*self._tracker.grid_size)
            text, boi = is_free | is_outside, is_free | is_outside & fits
        # In the order of SPECIAL_IDS: placeholders are never generated, an image ends when its grid is full.
        rows = (boi, is_free | mask.is_full, is_free, bov, eov, is_free)
        named = zip((getattr(config, name) for name in SPECIAL_IDS), rows, strict=True)
        return text, {token_id: row for token_id, row in named if token_id is not None}, is_free

    def _is_generated(self, input_ids: torch.Tensor, token_id: int) -> torch.Tensor:
        return (input_ids[:, self._prompt_length :] == token_id).any(dim=1)


def image_token_bound(height: int, width: int) -> int:
    """The most tokens that an image of this size takes: one a cell, boi and eoi."""
    return height * width + 2
