"""rows → order: batches of similar length, in an order that a resumed run repeats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler


class EpochSeededLengthGroupedSampler(LengthGroupedSampler):
    """transformers' `LengthGroupedSampler`, whose order follows from a seed and the epoch alone.

    The original draws from torch's global generator, so a run that goes on from a checkpoint would see
    other batches than the run that was stopped.

    Args:
        seed: with the epoch, decides the order.
        kwargs: `LengthGroupedSampler`'s.
    """

    def __init__(self, *, seed: int, **kwargs: Any):
        super().__init__(**kwargs, generator=torch.Generator())
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator.manual_seed(self.seed + self.epoch)
        return super().__iter__()
