"""an event, set by another thread → the end of a generation."""

import threading
from typing import Any

import torch
from transformers import StoppingCriteria


class StopOnEvent(StoppingCriteria):
    """Ends all rows of a batch at the next token, once an event is set.

    Args:
        event: what another thread sets.
    """

    def __init__(self, event: threading.Event):
        self._event = event

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Token ids (batch, length) → whether each row ends, bool (batch,)."""
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
