"""rows → order: batches of similar length, in an order that a resumed run repeats.

Source: transformers' `LengthGroupedSampler`. It differs in two things. The order follows from a seed and
the epoch, not from torch's global generator, so a run that goes on from a checkpoint sees the batches that
the stopped run would have seen. And the batches of a chunk are shuffled: transformers leaves them sorted,
so that the length, and what goes with it, drifts over some fifty steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class LengthGroupedSampler(Sampler[int]):
    """Indices of rows, such that each run of `batch_size` has rows of similar length.

    Args:
        lengths: of the rows.
        batch_size: rows a step, gradient accumulation included.
        seed: with the epoch, decides the order.
        batches_per_chunk: rows are sorted by length within random chunks of so many batches.

    Raises:
        ValueError: there are no rows, or a size is not positive.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, batches_per_chunk: int = 50
    ):
        for name, value in (
            ("the number of rows", len(lengths)),
            ("batch_size", batch_size),
            ("batches_per_chunk", batches_per_chunk),
        ):
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.chunk_size = batch_size * batches_per_chunk
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for chunk in order.split(self.chunk_size):
            by_length = chunk[self.lengths[chunk].argsort(descending=True, stable=True)]
            batches += by_length.split(self.batch_size)
        # A short batch stays last, or it would shift the borders of all that follow.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[i].tolist()
        for batch in short:
            yield from batch.tolist()
