"""an event, set by another thread, a time or a text → the end of a generation."""

import threading
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


class StopOnEvent(StoppingCriteria):
    """Ends all rows of a batch at the next token, once an event is set by another thread."""

    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Token ids (batch, length) → whether each row ends, bool (batch,)."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)


class StopOutsideImages(StoppingCriteria):
    """Ends a row where one of `criteria` says so, but not inside an image or a video, which is finished first."""

    def __init__(self, config: Any):
        pairs = (
            (config.boi_token_id, config.eoi_token_id),
            (config.bov_token_id, config.eov_token_id),
        )
        self._marks = [pair for pair in pairs if None not in pair]
        self.criteria = StoppingCriteriaList()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Token ids (batch, length) → whether each row ends, bool (batch,)."""
        ends = self.criteria(input_ids, scores, **kwargs)
        if not ends.any():
            return ends
        places = torch.arange(1, input_ids.shape[1] + 1, device=input_ids.device)
        for begin, end in self._marks:
            last_begin, last_end = (((input_ids == mark) * places).amax(1) for mark in (begin, end))
            ends = ends & (last_begin <= last_end)
        return ends
