"""codes → merges: the trainer of the image BPE.

Source: the law of `naive.py`, made incremental. Keys are counted once; a merge then touches only the
neighbours of its own occurrences, which are listed by key. Only keys with at least `theta` occurrences are
listed; when none is left, everything is counted afresh with a lower theta. The cells are split among
threads, one shard each, and only counts pass between them: the result does not depend on their number.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import counting
from .grids import GridSource, open_grids
from .keys import KeyTable
from .shapes import Shapes
from .shard import Shard

_LISTED_KEYS = 20_000
_FEW_OCCURRENCES = 1_000


@dataclass(frozen=True)
class TrainingState:
    """Where a training stands, for a progress bar or a checkpoint.

    Attributes:
        merges: (m, 4) int32, the rules so far.
        counts: (m,) int64, the count of each rule when it was chosen.
        num_cells: cells of all grids.
        num_tokens: tokens of all grids after these merges.
        num_grids: number of grids.
    """

    merges: np.ndarray
    counts: np.ndarray
    num_cells: int
    num_tokens: int
    num_grids: int


def train_merges(
    grids: Any,
    *,
    num_merges: int,
    codebook_size: int,
    min_count: int = 2,
    max_cells: int | None = None,
    max_token_extent: int | None = None,
    scoring: str = "frequency",
    merge_rule: str = "shape",
    num_threads: int | None = None,
    checkpoint: np.ndarray | None = None,
    progress: Callable[[TrainingState], None] | None = None,
) -> np.ndarray:
    """Learn the merge rules of an image BPE.

    Args:
        grids: codes in [0, codebook_size): an integer array (N, H, W), which may be memory-mapped; a
            sequence of integer arrays (h, w) of mixed sizes; or the path, or paths, of `.npy` or parquet
            files (see `grids.open_grids`). They are read block by block, and never copied as a whole.
        num_merges: how many rules to learn at most.
        codebook_size: K, the number of codes.
        min_count: training stops when no key occurs this often.
        max_cells: the most cells that a token may have.
        max_token_extent: the most rows and the most columns that a token's bounding box may have.
        scoring: `"frequency"`.
        merge_rule: `"shape"`, the law.
        num_threads: threads, by default one for each CPU that this process may use. The result does not
            depend on it.
        checkpoint: rules (m, 4) that an earlier call has learned from the same grids with the same
            options; training goes on from there.
        progress: called after each merge.

    Returns:
        (M, 4) int32: first, second, row_offset, col_offset of each rule in rank order.

    Raises:
        ValueError: an option or a code is out of its range, or grids have another form.
    """
    return Trainer(
        open_grids(grids),
        num_merges=num_merges,
        codebook_size=codebook_size,
        min_count=min_count,
        max_cells=max_cells,
        max_token_extent=max_token_extent,
        num_threads=num_threads,
    ).run(checkpoint, progress)


class Trainer:
    """One training: the keys, the shapes, and the shards with their threads."""

    def __init__(
        self,
        source: GridSource,
        *,
        num_merges: int,
        codebook_size: int,
        min_count: int,
        max_cells: int | None,
        max_token_extent: int | None,
        num_threads: int | None,
    ):
        self.num_merges = num_merges
        self.min_count = min_count
        self.max_cells = max_cells
        self.max_token_extent = max_token_extent
        vocab_size = codebook_size + num_merges
        self.shapes = Shapes(codebook_size, vocab_size)
        self.num_grids = len(source.sizes)
        if num_threads is None:
            num_threads = (
                len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
            )
        threads = max(1, min(num_threads, self.num_grids))
        bounds = _even_bounds(source.sizes.prod(axis=1), threads)
        self._executor = ThreadPoolExecutor(threads) if threads > 1 else None
        self.shards = self._each(
            lambda bound: Shard(source, *bound, codebook_size, vocab_size),
            list(itertools.pairwise(bounds)),
        )
        self.num_cells = self.num_tokens = sum(shard.num_cells for shard in self.shards)
        self.keys = KeyTable(vocab_size, 1)

    def _each(self, function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def run(
        self, checkpoint: np.ndarray | None, progress: Callable[[TrainingState], None] | None
    ) -> np.ndarray:
        merges = np.empty((self.num_merges, 4), np.int32)
        counts = np.empty(self.num_merges, np.int64)
        self._count_afresh(None)
        rank = 0
        while rank < self.num_merges:
            key = self.keys.pop_best()
            if key < 0:
                if self.keys.theta <= self.min_count:
                    break
                self._count_afresh(self.keys.theta)
                continue
            merges[rank] = self.keys.columns[key]
            counts[rank] = self.keys.counts[key]
            self._merge(key)
            rank += 1
            if progress is not None:
                progress(
                    TrainingState(
                        merges[:rank],
                        counts[:rank],
                        self.num_cells,
                        self.num_tokens,
                        self.num_grids,
                    )
                )
        return merges[:rank]

    def _count_afresh(self, below: int | None) -> None:
        """Count all keys, and list those with at least a theta that leaves enough of them."""
        size = 1 << min(24, max(10, (self.num_tokens // 4).bit_length()))
        sketches = self._each(lambda shard: shard.sketch(self.shapes, False, size), self.shards)
        sketch = sketches[0]
        for other in sketches[1:]:
            sketch += other
        theta = self._choose_theta(sketch, below)
        found = self._each(
            lambda shard: shard.count(self.shapes, False, sketch, theta), self.shards
        )
        columns = np.concatenate([part for part, _ in found])
        own = [number for number, (part, _) in enumerate(found) for _ in range(len(part))]
        counts = np.concatenate([part for _, part in found])
        columns, inverse = np.unique(columns, axis=0, return_inverse=True)
        by_shard = np.zeros((len(self.shards), len(columns)), np.int64)
        by_shard[own, inverse.reshape(-1)] = counts
        totals = by_shard.sum(axis=0)
        kept = (totals >= theta) & self._eligible(columns)
        self.keys = KeyTable(len(self.shapes.num_cells), theta)
        self.keys.add(columns[kept], totals[kept])
        self._each(
            lambda item: item[0].list_keys(self.shapes, columns[kept], item[1][kept]),
            list(zip(self.shards, by_shard, strict=True)),
        )

    def _choose_theta(self, sketch: np.ndarray, below: int | None) -> int:
        bins = counting.histogram(sketch, min(1 << 20, int(sketch.max()) + 2))
        at_least = np.cumsum(bins[::-1])[::-1]  # counters of at least each value
        target = max(2 * self.num_merges, _LISTED_KEYS)
        enough = int(np.searchsorted(-at_least, -target, side="right")) - 1
        theta = enough // 2
        if below is not None:
            theta = min(theta, below // 2)
        return max(theta, self.min_count)

    def _eligible(self, columns: np.ndarray) -> np.ndarray:
        """Which keys, (n, 4), make a token within the limits."""
        eligible = np.ones(len(columns), bool)
        if self.max_cells is not None:
            sizes = self.shapes.num_cells[columns[:, :2]].sum(axis=1)
            eligible &= sizes <= self.max_cells
        if self.max_token_extent is not None:
            box = self.shapes.boxes(columns)
            extent = np.maximum(box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]) + 1
            eligible &= extent <= self.max_token_extent
        return eligible

    def _merge(self, key: int) -> None:
        """Merge the occurrences of a key everywhere, and list the new keys that reach theta."""
        keys, shapes = self.keys, self.shapes
        views, view_keys, sides = keys.views_of(key)
        rule = np.append(keys.columns[key], shapes.add(keys.columns[key]))
        many = keys.counts[key] > _FEW_OCCURRENCES
        each = self._each if many else _in_turn
        done = each(lambda shard: shard.apply(key, rule, shapes, views, sides), self.shards)
        for lost, merged in done:
            keys.subtract(view_keys, lost)
            self.num_tokens -= merged
        keys.counts[key] = 0
        # a key with theta occurrences in all has its share in some shard
        share = -(-keys.theta // len(self.shards))
        candidates = np.unique(
            np.concatenate([shard.frequent_views(share) for shard in self.shards])
        )
        by_shard = np.array([shard.counts_of_views(candidates) for shard in self.shards])
        totals = by_shard.sum(axis=0)
        columns = _keys_of_views(candidates, int(rule[4]))
        kept = (totals >= keys.theta) & self._eligible(columns)
        if kept.any():
            keys.add(columns[kept], totals[kept])
            each(
                lambda item: item[0].keep(candidates[kept], item[1][kept], rule, shapes, keys),
                list(zip(self.shards, by_shard, strict=True)),
            )


def _in_turn(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    return [function(item) for item in items]


def _keys_of_views(views: np.ndarray, token: int) -> np.ndarray:
    """The keys, (n, 4), of a token and its neighbours as it views them (see kernels.py)."""
    other = views >> 34
    rows, cols = ((views >> 17) & 0x1FFFF) - (1 << 16), (views & 0x1FFFF) - (1 << 16)
    after = (rows > 0) | ((rows == 0) & (cols > 0))
    sign = np.where(after, 1, -1)
    return np.stack(
        [np.where(after, token, other), np.where(after, other, token), sign * rows, sign * cols],
        axis=1,
    )


def _even_bounds(areas: np.ndarray, parts: int) -> list[int]:
    """Where to cut grids of these areas into parts of about the same number of cells."""
    ends = np.cumsum(areas)
    total = int(ends[-1]) if len(ends) else 0
    inner = [int(np.searchsorted(ends, total * part // parts)) for part in range(1, parts)]
    return [0, *inner, len(areas)]
