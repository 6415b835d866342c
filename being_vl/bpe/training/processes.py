"""processes: who else does the work of a training, and what they tell each other.

Under `torchrun` or `accelerate launch` each process holds its own grids, and all of them the same table of
keys. A batch of merges sends what each key has lost, the neighbours of the new tokens that may be frequent
enough, and their counts.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Processes(Protocol):
    """The processes of one training.

    Attributes:
        rank: the number of this one.
        size: how many there are.
    """

    rank: int
    size: int

    def sum(self, values: np.ndarray) -> np.ndarray:
        """The sum over all processes of an integer array of the same shape in each."""
        ...

    def join(self, values: np.ndarray) -> np.ndarray:
        """The int64 arrays of all processes, (n, …) of any n, one after the other in rank order."""
        ...

    def close(self) -> None:
        """Wait for the others, then let go: a process that just ended would abort those still talking."""
        ...


class OneProcess:
    """A single process: every exchange is a no-op."""

    rank, size = 0, 1

    def sum(self, values: np.ndarray) -> np.ndarray:
        return values

    def join(self, values: np.ndarray) -> np.ndarray:
        return values

    def close(self) -> None:
        pass


class GlooProcesses:
    """The processes of `torch.distributed`, over gloo, from the environment that the launcher set."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        self._group = distributed.new_group(backend="gloo")
        self._distributed = distributed
        self.rank = distributed.get_rank()
        self.size = distributed.get_world_size()

    def sum(self, values: np.ndarray) -> np.ndarray:
        import torch

        # gloo adds no unsigned integers; the bits of a sum are the same
        signed = values.view(f"i{values.itemsize}") if values.dtype.kind == "u" else values
        total = torch.from_numpy(signed.copy())
        self._distributed.all_reduce(total, group=self._group)
        return total.numpy().view(values.dtype)

    def join(self, values: np.ndarray) -> np.ndarray:
        import torch

        lengths = np.zeros(self.size, np.int64)
        lengths[self.rank] = len(values)
        lengths = self.sum(lengths)
        longest = int(lengths.max())
        own = torch.zeros((longest, *values.shape[1:]), dtype=torch.int64)
        own[: len(values)] = torch.from_numpy(np.ascontiguousarray(values))
        parts = [torch.empty_like(own) for _ in range(self.size)]
        self._distributed.all_gather(parts, own, group=self._group)
        return np.concatenate(
            [part.numpy()[:length] for part, length in zip(parts, lengths, strict=True)]
        )

    def close(self) -> None:
        self._distributed.barrier(group=self._group)
        self._distributed.destroy_process_group()
