"""cells → a table of listed keys: counting what stands beside what, over all shards.

Which keys are listed is a matter of memory and time alone: those with at least theta occurrences, theta being
half the count of the key ranked 2 · num_merges (or 20,000, if that is more). The rules do not depend on it.
"""

from __future__ import annotations

import functools

import numpy as np

from . import counting, first_count
from .keys import KeyTable
from .shapes import Shapes
from .spatial import SpatialKeyTable
from .state import Options
from .team import Team

_LISTED_KEYS = 20_000
_LARGEST_SKETCH = 22  # in powers of two: 16 MB, which a processor's last cache holds


class Lister:
    """Counts and lists keys for a training; its shards hold the positions."""

    def __init__(self, options: Options, shapes: Shapes, team: Team, num_cells: int):
        self._options = options
        self._shapes = shapes
        self._team = team
        self._num_cells = num_cells

    def list_keys(self, num_tokens: int, below: int | None) -> KeyTable:
        """Count all keys, and list those with at least a theta that leaves enough of them.

        `below` is the last theta, if that one was too high.
        """
        if below is None and self._can_count_codes():
            return self._count_codes()
        return self._count_afresh(num_tokens, below)

    def list_only(self, columns: np.ndarray) -> KeyTable:
        """Count and list these keys alone."""
        tokens, offsets = counting.packed(columns)
        slots = np.zeros(1 << max(10, (8 * len(columns)).bit_length()), np.uint32)
        counting.mark(slots, tokens, offsets)
        num_slots = counting.number_slots(slots, 1)
        found, by_shard, totals = self._count_slots(False, slots, num_slots)
        known = {tuple(row) for row in columns.tolist()}
        kept = np.array([tuple(row) in known for row in found.tolist()], bool)
        keys = KeyTable(self._options.vocab_size, 1, 1, self._options.merge_rule)
        keys.add(found[kept], totals[kept])
        self._list_keys(False, slots, num_slots, found[kept], by_shard[:, kept])
        return keys

    def kept(self, columns: np.ndarray, totals: np.ndarray, theta: int) -> np.ndarray:
        """Which keys to list: those that reach theta and may be chosen; by pairs for spatial scoring."""
        if self._options.scoring == "frequency":
            return self._eligible(columns) & (totals >= theta)
        _, pairs = np.unique(columns[:, :2], axis=0, return_inverse=True)
        pairs = pairs.reshape(-1)
        return np.bincount(pairs, totals)[pairs] >= theta

    def add(self, keys: KeyTable, columns: np.ndarray, totals: np.ndarray) -> None:
        """Add keys that `kept` has chosen, sorted for spatial scoring."""
        if isinstance(keys, SpatialKeyTable):
            keys.add_pairs(columns, totals, self._eligible(columns))
        else:
            keys.add(columns, totals)

    def _count_afresh(self, num_tokens: int, below: int | None) -> KeyTable:
        """Count all keys, and list those with at least a theta that leaves enough of them."""
        by_pair = self._options.scoring == "spatial"
        size = 1 << min(_LARGEST_SKETCH, max(10, (num_tokens // 4).bit_length()))
        sketches = self._team.each(lambda shard: shard.sketch(by_pair, size), self._team.shards)
        sketch = sketches.pop()
        while sketches:
            sketch += sketches.pop()
        sketch = self._team.processes.sum(sketch)
        bins = counting.histogram(sketch, min(1 << 20, int(sketch.max()) + 2))
        # a token has three later neighbours on average at most: the graph of neighbours is planar
        exact = sketch.max() < counting.SATURATED
        pairs = int(sketch.sum(dtype=np.int64)) if exact else 3 * num_tokens
        theta = self._theta_from(bins, pairs, below)
        num_slots = counting.number_slots(sketch, theta)
        columns, by_shard, totals = self._count_slots(by_pair, sketch, num_slots)
        kept = self.kept(columns, totals, theta)
        columns, by_shard, totals = columns[kept], by_shard[:, kept], totals[kept]
        keys = self._new_keys(theta)
        self.add(keys, columns, totals)
        self._list_keys(by_pair, sketch, num_slots, columns, by_shard)
        return keys

    def _can_count_codes(self) -> bool:
        return (
            self._shapes.size == self._shapes.codebook_size
            and self._options.scoring == "frequency"
            and self._options.merge_rule == "shape"
            and self._team.processes.size == 1
            and first_count.fits(
                self._shapes.codebook_size, self._num_cells, len(self._team.shards)
            )
        )

    def _count_codes(self) -> KeyTable:
        """Count and list the keys of single cells; theta is chosen by those side by side."""
        size = self._shapes.codebook_size
        right, theta = self._count_direction(False, None)
        down, _ = self._count_direction(True, theta)
        columns = np.concatenate([right[0], down[0]])
        by_shard = np.concatenate([right[1], down[1]], axis=1)
        kept = self._eligible(columns)
        columns, by_shard = columns[kept], by_shard[:, kept]
        keys = KeyTable(self._options.vocab_size, theta, theta, self._options.merge_rule)
        keys.add(columns, by_shard.sum(axis=0))
        cursors = [
            np.append(shard.make_pool(counts), shard.starts)
            for shard, counts in zip(self._team.shards, by_shard, strict=True)
        ]
        for is_down in (False, True):
            numbers = first_count.pair_numbers(columns, size, is_down)
            write = functools.partial(first_count.list_direction, is_down, numbers)
            self._team.each(write, list(zip(self._team.shards, cursors, strict=True)))
        return keys

    def _count_direction(
        self, down: bool, theta: int | None
    ) -> tuple[tuple[np.ndarray, np.ndarray], int]:
        """The keys of single cells in one direction and their counts by shard; theta, if it was None."""
        size = self._shapes.codebook_size
        count = functools.partial(first_count.count_direction, down)
        tables = self._team.each(count, self._team.shards)
        if theta is None:
            bins = 2 * first_count.histogram_of(tables, size)
            theta = self._theta_from(bins, 2 * self._num_cells, None)
        return first_count.frequent_pairs(tables, size, down, theta), theta

    def _count_slots(
        self, by_pair: bool, slots: np.ndarray, num_slots: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The keys that fall on slots, sorted, (n, 4); their counts by shard; and in all processes."""
        found = self._team.each(
            lambda shard: shard.count(by_pair, slots, num_slots), self._team.shards
        )
        own = np.concatenate([part for part, _ in found])
        if self._team.num_shards == 1:
            order = np.lexsort(own.T[::-1])
            return own[order], found[0][1][order][None], found[0][1][order]
        columns = np.unique(self._team.processes.join(own), axis=0)
        _, places = np.unique(np.concatenate([columns, own]), axis=0, return_inverse=True)
        places = places.reshape(-1)[len(columns) :]
        by_shard = np.zeros((len(self._team.shards), len(columns)), np.int64)
        begin = 0
        for counts, (part, found_counts) in zip(by_shard, found, strict=True):
            counts[places[begin : begin + len(part)]] = found_counts
            begin += len(part)
        return columns, by_shard, self._team.processes.sum(by_shard.sum(axis=0))

    def _list_keys(
        self,
        by_pair: bool,
        slots: np.ndarray,
        num_slots: int,
        columns: np.ndarray,
        by_shard: np.ndarray,
    ) -> None:
        self._team.each(
            lambda item: item[0].list_keys(by_pair, slots, num_slots, columns, item[1]),
            list(zip(self._team.shards, by_shard, strict=True)),
        )

    def _theta_from(self, bins: np.ndarray, pairs: int, below: int | None) -> int:
        """Choose theta by how many counters hold each value, of `pairs` in all; lower than `below`."""
        at_least = np.cumsum(bins[::-1])[::-1]
        target = max(2 * self._options.num_merges, _LISTED_KEYS)
        theta = (int(np.searchsorted(-at_least, -target, side="right")) - 1) // 2
        if below is not None:
            theta = min(theta, below // 2)
        if self._options.memory_limit is not None:
            theta = max(theta, self._theta_within_memory(bins, pairs))
            if below is not None:
                theta = min(theta, below * 3 // 4)
        return max(theta, self._options.min_count)

    def _theta_within_memory(self, bins: np.ndarray, pairs: int) -> int:
        """The lowest theta whose positions fit beside the cells."""
        positions = pairs - np.cumsum(bins * np.arange(len(bins)))
        cells = sum(shard.num_bytes for shard in self._team.shards)
        room = max(0, self._options.memory_limit - cells) / (
            1.125 * self._team.shards[0].bytes_a_position
        )
        too_many = positions > room * self._team.processes.size
        return int(np.count_nonzero(too_many)) + 1

    def _new_keys(self, theta: int) -> KeyTable:
        if self._options.scoring == "frequency":
            return KeyTable(self._options.vocab_size, theta, theta, self._options.merge_rule)
        return SpatialKeyTable(
            self._options.vocab_size,
            theta,
            min_count=self._options.min_count,
            weight=self._options.spatial_weight,
            sigma=self._options.spatial_sigma,
        )

    def _eligible(self, columns: np.ndarray) -> np.ndarray:
        """Which keys, (n, 4), make a token within the limits."""
        eligible = np.ones(len(columns), bool)
        if self._options.max_cells is not None:
            sizes = self._shapes.num_cells[columns[:, :2]].sum(axis=1)
            eligible &= sizes <= self._options.max_cells
        if self._options.max_token_extent is not None:
            box = self._shapes.boxes(columns)
            extent = np.maximum(box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]) + 1
            eligible &= extent <= self._options.max_token_extent
        return eligible
