"""shards, threads and processes: who does the work of a training."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .grids import GridSource
from .processes import Processes
from .shapes import Shapes
from .shard import Shard


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
        vocab_size: int,
        num_threads: int,
        processes: Processes,
    ):
        areas = source.sizes.prod(axis=1)
        begin, end = _even_bounds(areas, processes.size)[processes.rank : processes.rank + 2]
        parts = _even_bounds(areas[begin:end], max(1, min(num_threads, end - begin)))
        bounds = [begin + part for part in parts]
        self._executor = ThreadPoolExecutor(len(bounds) - 1) if len(bounds) > 2 else None
        self.shards: list[Shard] = self.each(
            lambda bound: Shard(source, *bound, shapes, vocab_size),
            list(itertools.pairwise(bounds)),
        )
        self.processes = processes
        self.num_shards = int(processes.sum(np.array([len(self.shards)]))[0])

    def each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """The results for all items, each in a thread of its own."""
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

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
