"""shards, threads and processes: who does the work of a training, and what they tell each other.

Under `torchrun` or `accelerate launch` each process holds its own grids, and all of them the same table of
keys. A batch of merges sends what each key has lost, the neighbours of the new tokens that may be frequent
enough, and their counts.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from .grids import GridSource
from .shapes import Shapes
from .shard import Shard


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


class Team:
    """This process's shards, one for each thread, and the other processes.

    Attributes:
        shards: of this process.
        processes: this one and the others.
        num_shards: of all processes.
    """

    def __init__(
        self,
        source: GridSource,
        shapes: Shapes,
        num_threads: int,
        processes: Processes,
        frugal: bool,
    ):
        areas = source.sizes.prod(axis=1)
        begin, end = _even_bounds(areas, processes.size)[processes.rank : processes.rank + 2]
        parts = _even_bounds(areas[begin:end], max(1, min(num_threads, end - begin)))
        bounds = [begin + part for part in parts]
        self._executor = ThreadPoolExecutor(len(bounds) - 2) if len(bounds) > 2 else None
        self.shards: list[Shard] = self.each(
            lambda bound: Shard(source, bound[0], bound[1], shapes, frugal),
            list(itertools.pairwise(bounds)),
        )
        self.processes = processes
        self.num_shards = int(processes.sum(np.array([len(self.shards)]))[0])

    def each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results for all items: the first in this thread, each other one in a thread of its own.

        Waiting is left to the operating system: a thread that spins takes the processor from the one that
        it waits for.
        """
        if self._executor is None:
            return [function(item) for item in items]
        others = [self._executor.submit(function, item) for item in items[1:]]
        return [function(item) for item in items[:1]] + [other.result() for other in others]

    def room_for_positions(self, memory_limit: int, beside: int = 0) -> float:
        """How many positions this process may hold beside its cells and other `beside` bytes."""
        cells = sum(shard.num_bytes for shard in self.shards)
        return max(0, memory_limit - cells - beside) / (1.125 * self.shards[0].bytes_a_position)

    def close(self) -> None:
        if self._executor is not None:
            self._executor.shutdown()


def _even_bounds(areas: np.ndarray, parts: int) -> list[int]:
    """Where to cut grids of these areas into parts of about the same number of cells."""
    ends = np.cumsum(areas)
    total = int(ends[-1]) if len(ends) else 0
    inner = [
        int(np.searchsorted(ends, total * part // parts, side="right")) for part in range(1, parts)
    ]
    return [0, *inner, len(areas)]
