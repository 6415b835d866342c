"""codes → merges: the trainer of the image BPE.

Source: the law of `naive.py`, made incremental. Keys are counted once; a merge then touches only the
neighbours of its own occurrences, which are listed by key. Only keys with at least `theta` occurrences are
listed; when none is left, everything is counted afresh with a lower theta. The grids are split among
processes and threads, one shard each, and only counts pass between them: the result does not depend on how.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import counting, first_count
from .grids import GridSource, open_grids
from .keys import KeyTable
from .processes import OneProcess, Processes
from .shapes import Shapes
from .shard import Shard
from .spatial import SpatialKeyTable

SCORINGS = ("frequency", "spatial")
MERGE_RULES = ("shape", "pair")

_LISTED_KEYS = 20_000
_LARGEST_SKETCH = 22  # in powers of two: 16 MB, which a processor's last cache holds
_FEW_OCCURRENCES = 1_000  # below, waking the threads takes longer than the merge


@dataclass(frozen=True)
class Checkpoint:
    """A training up to some rank.

    Attributes:
        merges: (m, 4) int32, the rules so far.
        counts: (m,) int64, how often each occurred when it was chosen.
    """

    merges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        checkpoint: the rules so far, and their counts (views into the trainer's arrays).
        num_grids: the number of grids, of all processes.
        num_cells: their cells.
        num_tokens: the tokens that the rules so far leave.
    """

    checkpoint: Checkpoint
    num_grids: int
    num_cells: int
    num_tokens: int

    @property
    def tokens_per_grid(self) -> float:
        return self.num_tokens / self.num_grids


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
    spatial_weight: float = 0.3,
    spatial_sigma: float = 1.0,
    num_threads: int | None = None,
    memory_limit: int | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[Progress], None] | None = None,
    processes: Processes | None = None,
) -> np.ndarray:
    """Learn the merge rules of an image BPE.

    The first call on a machine compiles the kernels, which takes some seconds; the machine code is kept on
    disk. Without numba the same code runs as plain Python, about a hundred times slower.

    Args:
        grids: codes in [0, codebook_size): an integer array (N, H, W), which may be memory-mapped; a
            sequence of integer arrays (h, w) of mixed sizes; `CodeShards`; or the path of a `.npy` file or
            of parquet shards. They are read block by block, and never copied as a whole.
        num_merges: how many rules to learn at most.
        codebook_size: K, the number of codes.
        min_count: training stops when no key occurs this often.
        max_cells: the most cells that a token may have.
        max_token_extent: the most rows and the most columns that a token's bounding box may have; not with
            `merge_rule="pair"`, whose tokens have no fixed shape.
        scoring: `"frequency"` (Being-VL-0), the count; or `"spatial"` (Being-VL-0.5), the count and how
            constant the relative position of the pair is: `spatial.py` says what is computed, and where
            the paper is silent. Not with `merge_rule="pair"`.
        merge_rule: `"shape"`, the law; or `"pair"`, the paper's Algorithm 4.1: a merge is keyed by the two
            ids alone, the one whose anchor comes first standing first, whatever their offset. The offsets
            of its rules are (0, 0).
        spatial_weight: α of the spatial scoring, at least 0.
        spatial_sigma: σ of the spatial scoring, in cells, more than 0.
        num_threads: threads of this process, by default one for each CPU that it may use. The result does
            not depend on it.
        memory_limit: bytes that cells and positions may take, as far as listing fewer keys at a time can
            keep them there; by default enough keys are listed that they need not be counted again.
        checkpoint: what an earlier call with the same grids and options had learned; goes on from there.
        progress: called after each merge, and once where a checkpoint has been taken up.
        processes: the processes that train together, each called with the same arguments; by default this
            one alone. The result does not depend on their number.

    Returns:
        (M, 4) int32: first, second, row_offset, col_offset of each rule in rank order.

    Raises:
        ValueError: an option or a code is out of its range, grids have another form, or the checkpoint was
            made from other grids.
    """
    _check_options(
        num_merges=(num_merges, 0),
        codebook_size=(codebook_size, 1),
        min_count=(min_count, 1),
        max_cells=(max_cells, 1),
        max_token_extent=(max_token_extent, 1),
        num_threads=(num_threads, 1),
        memory_limit=(memory_limit, 1),
    )
    _check_modes(scoring, merge_rule, max_token_extent, spatial_weight, spatial_sigma)
    trainer = Trainer(
        open_grids(grids, codebook_size),
        num_merges=num_merges,
        codebook_size=codebook_size,
        min_count=min_count,
        max_cells=max_cells,
        max_token_extent=max_token_extent,
        spatial=(spatial_weight, spatial_sigma) if scoring == "spatial" else None,
        merge_rule=merge_rule,
        num_threads=num_threads or _available_cpus(),
        memory_limit=memory_limit,
        processes=processes or OneProcess(),
    )
    with trainer:
        return trainer.run(checkpoint, progress)


def _check_options(**options: tuple[Any, int]) -> None:
    for name, (value, least) in options.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def _check_modes(
    scoring: str, merge_rule: str, max_token_extent: int | None, weight: float, sigma: float
) -> None:
    if scoring not in SCORINGS:
        raise ValueError(f"scoring must be one of {SCORINGS}, got {scoring!r}")
    if merge_rule not in MERGE_RULES:
        raise ValueError(f"merge_rule must be one of {MERGE_RULES}, got {merge_rule!r}")
    if merge_rule == "pair" and scoring == "spatial":
        raise ValueError('scoring="spatial" needs the offsets that merge_rule="pair" forgets')
    if merge_rule == "pair" and max_token_extent is not None:
        raise ValueError('max_token_extent needs the shapes that merge_rule="pair" forgets')
    if not 0 <= weight < float("inf"):
        raise ValueError(f"spatial_weight must be a number of at least 0, got {weight!r}")
    if not 0 < sigma < float("inf"):
        raise ValueError(f"spatial_sigma must be a number of more than 0, got {sigma!r}")


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Trainer:
    """One training: the keys, the shapes, and this process's shards with their threads."""

    def __init__(
        self,
        source: GridSource,
        *,
        num_merges: int,
        codebook_size: int,
        min_count: int,
        max_cells: int | None,
        max_token_extent: int | None,
        spatial: tuple[float, float] | None,
        merge_rule: str,
        num_threads: int,
        memory_limit: int | None,
        processes: Processes,
    ):
        self.num_merges = num_merges
        self.min_count = min_count
        self.max_cells = max_cells
        self.max_token_extent = max_token_extent
        self.spatial = spatial
        self.merge_rule = merge_rule
        self.memory_limit = memory_limit
        self.processes = processes
        self.vocab_size = codebook_size + num_merges
        self.shapes = Shapes(codebook_size, self.vocab_size, merge_rule)
        self.num_grids = len(source.sizes)
        areas = source.sizes.prod(axis=1)
        self.num_cells = self.num_tokens = int(areas.sum())
        begin, end = _even_bounds(areas, processes.size)[processes.rank : processes.rank + 2]
        bounds = begin + np.array(
            _even_bounds(areas[begin:end], max(1, min(num_threads, end - begin)))
        )
        self._executor = ThreadPoolExecutor(len(bounds) - 1) if len(bounds) > 2 else None
        self.shards: list[Shard] = self._each(
            lambda bound: Shard(source, *bound, self.shapes, self.vocab_size),
            list(itertools.pairwise(bounds.tolist())),
        )
        self._num_shards = int(processes.sum(np.array([len(self.shards)]))[0])
        self.keys = KeyTable(self.vocab_size, 1, 1, merge_rule)

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._executor is not None:
            self._executor.shutdown()

    def _each(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if self._executor is None:
            return [function(item) for item in items]
        return list(self._executor.map(function, items))

    def run(
        self, checkpoint: Checkpoint | None, progress: Callable[[Progress], None] | None
    ) -> np.ndarray:
        merges = np.empty((self.num_merges, 4), np.int32)
        counts = np.empty(self.num_merges, np.int64)
        rank = 0
        if checkpoint is not None:
            rank = min(len(checkpoint.merges), self.num_merges)
            merges[:rank], counts[:rank] = checkpoint.merges[:rank], checkpoint.counts[:rank]
            if self.merge_rule == "pair":
                merges[:rank, 3] = 1
            self._replay(merges[:rank], counts[:rank])
            self._tell(progress, merges[:rank], counts[:rank])
        if rank == 0 and self._can_count_codes():
            self._count_codes()
        elif rank < self.num_merges:
            self._count_afresh(None)
        while rank < self.num_merges:
            key = self.keys.pop_best()
            if key < 0:
                if self.keys.theta <= self.min_count:
                    break
                self._count_afresh(self.keys.theta)
                continue
            merges[rank] = self.keys.columns[key]
            counts[rank] = self.keys.counts[key]
            self._merge(key, None)
            rank += 1
            self._tell(progress, merges[:rank], counts[:rank])
        return self._as_rules(merges[:rank])

    def _tell(
        self, progress: Callable[[Progress], None] | None, merges: np.ndarray, counts: np.ndarray
    ) -> None:
        if progress is not None:
            done = Checkpoint(self._as_rules(merges), counts)
            progress(Progress(done, self.num_grids, self.num_cells, self.num_tokens))

    def _as_rules(self, keys: np.ndarray) -> np.ndarray:
        """Inside, (0, 1) stands for the offset that `merge_rule="pair"` forgets; outside, (0, 0)."""
        return keys if self.merge_rule == "shape" else keys * np.array([1, 1, 0, 0], np.int32)

    def _replay(self, rules: np.ndarray, counts: np.ndarray) -> None:
        """Apply rules that are already known, listing no other keys, and check that their counts agree."""
        rules = rules.astype(np.int64)
        newer = rules[:, :2].max(axis=1)
        of_codes = rules[newer < self.shapes.codebook_size]
        self._count_only(np.unique(of_codes, axis=0))
        wanted: dict[int, list[np.ndarray]] = {}
        for rule, token in zip(rules, newer.tolist(), strict=True):
            wanted.setdefault(token, []).append(rule)
        numbers = {
            tuple(key): i for i, key in enumerate(self.keys.columns[: self.keys.size].tolist())
        }
        for rank, rule in enumerate(rules.tolist()):
            key = numbers.get(tuple(rule), -1)
            found = int(self.keys.counts[key]) if key >= 0 else 0
            if found != counts[rank]:
                raise ValueError(
                    f"the checkpoint was made from other grids: its merge {rank} occurs {found} times "
                    f"in these, and occurred {counts[rank]} times in those"
                )
            first = self.keys.size
            token = self.shapes.size
            self._merge(key, np.array(wanted.get(token, []), np.int64).reshape(-1, 4))
            for number in range(first, self.keys.size):
                numbers[tuple(self.keys.columns[number].tolist())] = number

    def _count_afresh(self, below: int | None) -> None:
        """Count all keys, and list those with at least a theta that leaves enough of them."""
        by_pair = self.spatial is not None
        size = 1 << min(_LARGEST_SKETCH, max(10, (self.num_tokens // 4).bit_length()))
        sketches = self._each(lambda shard: shard.sketch(by_pair, size), self.shards)
        sketch = sketches.pop()
        while sketches:
            sketch += sketches.pop()
        sketch = self.processes.sum(sketch)
        bins = counting.histogram(sketch, min(1 << 20, int(sketch.max()) + 2))
        theta = self._theta_from(bins, below)
        num_slots = counting.number_slots(sketch, theta)
        columns, by_shard, totals = self._count_slots(by_pair, sketch, num_slots)
        kept = self._kept(columns, totals, theta)
        columns, by_shard, totals = columns[kept], by_shard[:, kept], totals[kept]
        self.keys = self._new_keys(theta)
        self._add_keys(columns, totals)
        self._list_keys(by_pair, sketch, num_slots, columns, by_shard)

    def _can_count_codes(self) -> bool:
        return (
            self.spatial is None
            and self.merge_rule == "shape"
            and self.processes.size == 1
            and first_count.fits(self.shapes.codebook_size, self.num_cells, len(self.shards))
        )

    def _count_codes(self) -> None:
        """Count and list the keys of single cells; theta is chosen by those side by side."""
        size = self.shapes.codebook_size
        right, theta = self._count_direction(False, None)
        down, _ = self._count_direction(True, theta)
        columns = np.concatenate([right[0], down[0]])
        by_shard = np.concatenate([right[1], down[1]], axis=1)
        kept = self._eligible(columns)
        columns, by_shard = columns[kept], by_shard[:, kept]
        self.keys = KeyTable(self.vocab_size, theta, theta, self.merge_rule)
        self.keys.add(columns, by_shard.sum(axis=0))
        cursors = [
            np.append(shard.make_pool(counts), shard.starts)
            for shard, counts in zip(self.shards, by_shard, strict=True)
        ]
        for is_down in (False, True):
            numbers = first_count.pair_numbers(columns, size, is_down)
            write = functools.partial(first_count.list_direction, is_down, numbers)
            self._each(write, list(zip(self.shards, cursors, strict=True)))

    def _count_direction(
        self, down: bool, theta: int | None
    ) -> tuple[tuple[np.ndarray, np.ndarray], int]:
        """The keys of single cells in one direction and their counts by shard; theta, if it was None."""
        size = self.shapes.codebook_size
        count = functools.partial(first_count.count_direction, down)
        tables = self._each(count, self.shards)
        if theta is None:
            theta = self._theta_from(2 * first_count.histogram_of(tables, size), None)
        return first_count.frequent_pairs(tables, size, down, theta), theta

    def _count_only(self, columns: np.ndarray) -> None:
        """Count and list these keys alone."""
        tokens, offsets = counting.packed(columns)
        slots = np.zeros(1 << max(10, (8 * len(columns)).bit_length()), np.uint32)
        counting.mark(slots, tokens, offsets)
        num_slots = counting.number_slots(slots, 1)
        found, by_shard, totals = self._count_slots(False, slots, num_slots)
        known = {tuple(row) for row in columns.tolist()}
        kept = np.array([tuple(row) in known for row in found.tolist()], bool)
        self.keys = KeyTable(self.vocab_size, 1, 1, self.merge_rule)
        self.keys.add(found[kept], totals[kept])
        self._list_keys(False, slots, num_slots, found[kept], by_shard[:, kept])

    def _count_slots(
        self, by_pair: bool, slots: np.ndarray, num_slots: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The keys that fall on slots, sorted, (n, 4); their counts by shard; and in all processes."""
        found = self._each(lambda shard: shard.count(by_pair, slots, num_slots), self.shards)
        own = np.concatenate([part for part, _ in found])
        columns = np.unique(self.processes.join(own), axis=0)
        order = {tuple(row): i for i, row in enumerate(columns.tolist())}
        by_shard = np.zeros((len(self.shards), len(columns)), np.int64)
        for counts, (part, found_counts) in zip(by_shard, found, strict=True):
            counts[[order[tuple(row)] for row in part.tolist()]] = found_counts
        return columns, by_shard, self.processes.sum(by_shard.sum(axis=0))

    def _list_keys(
        self,
        by_pair: bool,
        slots: np.ndarray,
        num_slots: int,
        columns: np.ndarray,
        by_shard: np.ndarray,
    ) -> None:
        self._each(
            lambda item: item[0].list_keys(by_pair, slots, num_slots, columns, item[1]),
            list(zip(self.shards, by_shard, strict=True)),
        )

    def _theta_from(self, bins: np.ndarray, below: int | None) -> int:
        """Choose theta by how many counters hold each value; lower than `below`."""
        at_least = np.cumsum(bins[::-1])[::-1]
        target = max(2 * self.num_merges, _LISTED_KEYS)
        theta = (int(np.searchsorted(-at_least, -target, side="right")) - 1) // 2
        if below is not None:
            theta = min(theta, below // 2)
        if self.memory_limit is not None:
            theta = max(theta, self._theta_within_memory(bins))
            if below is not None:
                theta = min(theta, below - 1)
        return max(theta, self.min_count)

    def _theta_within_memory(self, bins: np.ndarray) -> int:
        """The lowest theta whose positions fit beside the cells."""
        positions = np.cumsum((bins * np.arange(len(bins)))[::-1])[::-1]
        cells = sum(shard.num_bytes for shard in self.shards)
        room = max(0, self.memory_limit - cells) // self.shards[0].bytes_a_position
        return int(np.argmax(positions <= room)) if (positions <= room).any() else len(bins)

    def _new_keys(self, theta: int) -> KeyTable:
        if self.spatial is None:
            return KeyTable(self.vocab_size, theta, theta, self.merge_rule)
        weight, sigma = self.spatial
        return SpatialKeyTable(
            self.vocab_size, theta, min_count=self.min_count, weight=weight, sigma=sigma
        )

    def _kept(self, columns: np.ndarray, totals: np.ndarray, theta: int) -> np.ndarray:
        """Which keys to list: those that reach theta and may be chosen; by pairs for spatial scoring."""
        if self.spatial is None:
            return (totals >= theta) & self._eligible(columns)
        _, pairs = np.unique(columns[:, :2], axis=0, return_inverse=True)
        pairs = pairs.reshape(-1)
        return np.bincount(pairs, totals)[pairs] >= theta

    def _add_keys(self, columns: np.ndarray, totals: np.ndarray) -> None:
        if isinstance(self.keys, SpatialKeyTable):
            self.keys.add_pairs(columns, totals, self._eligible(columns))
        else:
            self.keys.add(columns, totals)

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

    def _merge(self, key: int, only: np.ndarray | None) -> None:
        """Merge the occurrences of a key everywhere, and list the new keys that reach theta.

        With `only`, (n, 4), those keys are listed, whatever their counts.
        """
        keys = self.keys
        views, view_keys, sides = keys.views_of(key)
        token = self.shapes.add(keys.columns[key])
        rule = np.append(keys.columns[key], token)
        each = self._each if keys.counts[key] > _FEW_OCCURRENCES else _in_turn
        done = each(lambda shard: shard.apply(key, rule, views, sides), self.shards)
        changes = sum(np.append(lost, merged) for lost, merged in done)
        changes = self.processes.sum(changes)
        keys.subtract(view_keys, changes[:-1])
        keys.counts[key] = 0
        self.num_tokens -= int(changes[-1])

        candidates = self._candidates() if only is None else _views_of_keys(only, token)
        columns = _keys_of_views(candidates, token)
        if self.spatial is not None:
            order = np.lexsort(columns.T[::-1])
            candidates, columns = candidates[order], columns[order]
        by_shard = np.array([shard.counts_of_views(candidates) for shard in self.shards])
        totals = self.processes.sum(by_shard.sum(axis=0))
        kept = self._kept(columns, totals, keys.theta) if only is None else totals > 0
        if kept.any():
            if only is None:
                self._add_keys(columns[kept], totals[kept])
            else:
                keys.add(columns[kept], totals[kept])
            each(
                lambda item: item[0].keep(candidates[kept], item[1][kept], token, keys),
                list(zip(self.shards, by_shard, strict=True)),
            )

    def _candidates(self) -> np.ndarray:
        """The views of the last merge's new keys that may reach theta in all, sorted.

        A key with theta occurrences in all has its share in some shard. A pair may have them at several
        offsets, so for spatial scoring all views are candidates.
        """
        share = 1 if self.spatial is not None else -(-self.keys.theta // self._num_shards)
        views = [shard.frequent_views(share) for shard in self.shards]
        return np.unique(self.processes.join(np.concatenate(views)))


def _in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def _keys_of_views(views: np.ndarray, token: int) -> np.ndarray:
    """The keys, (n, 4), of a token and its neighbours as it views them (see kernels.py)."""
    other = views >> 34
    rows, cols = ((views >> 17) & 0x1FFFF) - (1 << 16), (views & 0x1FFFF) - (1 << 16)
    after = (rows > 0) | ((rows == 0) & (cols > 0))
    columns = np.empty((len(views), 4), np.int64)
    columns[:, 0] = np.where(after, token, other)
    columns[:, 1] = np.where(after, other, token)
    columns[:, 2] = np.where(after, rows, -rows)
    columns[:, 3] = np.where(after, cols, -cols)
    return columns


def _views_of_keys(columns: np.ndarray, token: int) -> np.ndarray:
    """The views of keys, (n, 4), of which a token is the newer part; the inverse of `_keys_of_views`."""
    first = columns[:, 0] == token
    sign = np.where(first, 1, -1)
    other = np.where(first, columns[:, 1], columns[:, 0])
    rows, cols = sign * columns[:, 2] + (1 << 16), sign * columns[:, 3] + (1 << 16)
    return np.unique((other << 34) | (rows << 17) | cols)


def _even_bounds(areas: np.ndarray, parts: int) -> list[int]:
    """Where to cut grids of these areas into parts of about the same number of cells."""
    ends = np.cumsum(areas)
    total = int(ends[-1]) if len(ends) else 0
    inner = [
        int(np.searchsorted(ends, total * part // parts, side="right")) for part in range(1, parts)
    ]
    return [0, *inner, len(areas)]
