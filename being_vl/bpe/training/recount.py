"""cells → a table of listed keys, counted afresh: whatever the tokens, the scoring and the merge rule are.

The first count of a training is `count.py` where that serves; this one is for the others, for a training
that goes on from a checkpoint, and for a heap that has run dry. `scan.py` has the passes over the cells.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import scan
from .apply_and_emit import Limits, are_allowed
from .choose import KeyTable, Shapes, packed
from .options import Options
from .shard import Shard, Team
from .spatial import SpatialKeyTable

_LARGEST_SKETCH = 22  # in powers of two: 16 MB, which a processor's last cache holds


class Recount:
    """Counts and lists keys for a training; its shards hold the positions."""

    def __init__(self, options: Options, shapes: Shapes, team: Team, limits: Limits):
        self._options = options
        self._shapes = shapes
        self._team = team
        self._limits = limits

    def list_only(self, columns: np.ndarray) -> KeyTable:
        """Count and list these keys alone."""
        tokens, offsets = packed(columns)
        slots = np.zeros(1 << max(10, (8 * len(columns)).bit_length()), np.uint32)
        scan.mark(slots, tokens, offsets)
        num_slots = scan.number_slots(slots, 1)
        found, by_shard, totals = self._count_slots(False, slots, num_slots)
        known = set(zip(tokens.tolist(), offsets.tolist(), strict=True))
        kept = np.array([tuple(key) in known for key in found.tolist()], bool)
        keys = KeyTable(self._shapes, 1)
        keys.add(found[kept, 0], found[kept, 1], totals[kept])
        self._list_keys(False, slots, num_slots, found[kept], by_shard[:, kept], keys)
        return keys

    def kept(
        self, tokens: np.ndarray, offsets: np.ndarray, totals: np.ndarray, theta: int
    ) -> np.ndarray:
        """Which keys to list: those that reach theta and may be chosen; by pairs for spatial scoring."""
        if self._options.scoring == "frequency":
            return self.is_allowed(tokens, offsets) & (totals >= theta)
        _, pairs = np.unique(tokens, return_inverse=True)
        return np.bincount(pairs, totals)[pairs] >= theta

    def add(
        self, keys: KeyTable, tokens: np.ndarray, offsets: np.ndarray, totals: np.ndarray
    ) -> None:
        """Add keys that `kept` has chosen, sorted for spatial scoring."""
        if isinstance(keys, SpatialKeyTable):
            keys.add_pairs(tokens, offsets, totals, self.is_allowed(tokens, offsets))
        else:
            keys.add(tokens, offsets, totals)

    def is_allowed(self, tokens: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Which packed keys make a token within the limits, (n,) bool."""
        return are_allowed(tokens, offsets, self._limits)

    def list_keys(self, num_tokens: int, below: int | None) -> KeyTable:
        """Count all keys, and list those with at least a theta that leaves enough of them.

        `below` is the last theta, if that one was too high.
        """
        by_pair = self._options.scoring == "spatial"
        size = 1 << min(_LARGEST_SKETCH, max(10, (num_tokens // 4).bit_length()))
        scanned = self._around()

        def sketch_of(shard: Shard) -> np.ndarray:
            counters = np.zeros(size, np.uint32)
            table = scan.new_table(2)
            self._scan(shard, scan.SKETCH, scanned, counters, by_pair, table, table)
            return counters

        sketches = self._team.each(sketch_of, self._team.shards)
        sketch = sketches.pop()
        while sketches:
            sketch += sketches.pop()
        sketch = self._team.processes.sum(sketch)
        bins = scan.histogram(sketch, min(1 << 20, int(sketch.max()) + 2))
        # a token has three later neighbours on average at most: the graph of neighbours is planar
        exact = sketch.max() < scan.SATURATED
        pairs = int(sketch.sum(dtype=np.int64)) if exact else 3 * num_tokens
        theta = self._theta_from(bins, pairs, below)
        num_slots = scan.number_slots(sketch, theta)
        found, by_shard, totals = self._count_slots(by_pair, sketch, num_slots)
        kept = self.kept(found[:, 0], found[:, 1], totals, theta)
        found, by_shard, totals = found[kept], by_shard[:, kept], totals[kept]
        keys = self._new_keys(theta)
        self.add(keys, found[:, 0], found[:, 1], totals)
        self._list_keys(by_pair, sketch, num_slots, found, by_shard, keys)
        return keys

    def _around(self) -> tuple[np.ndarray, np.ndarray, int]:
        """The cells around all merged tokens, and a bound on the neighbours of one."""
        most = 2 * int(self._shapes.num_cells.max(initial=1)) + 2
        if self._options.merge_rule == "pair":
            return np.empty((0, 3), np.int32), np.zeros(1, np.int64), most
        around, ends = self._shapes.around(self._shapes.codebook_size, self._shapes.size)
        return around, ends, most

    def _scan(
        self, shard: Shard, mode: int, around: Any, slots: Any, by_pair: bool, rows: Any, table: Any
    ) -> np.ndarray:
        return scan.scan(
            mode, shard.board, self._options.codebook_size, *around, slots, by_pair, rows, table,
            shard.pool,
        )  # fmt: skip

    def _count_slots(
        self, by_pair: bool, slots: np.ndarray, num_slots: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The keys that fall on slots, packed and sorted, (n, 2); their counts by shard; and in all."""
        around = self._around()

        def count(shard: Shard) -> np.ndarray:
            rows, table = scan.new_table(num_slots + 1), scan.new_table(1 << 10)
            table = self._scan(shard, scan.COUNT, around, slots, by_pair, rows, table)
            found = np.concatenate([rows[1:], table])
            found = found[found[:, 0] != -1]
            return found[np.lexsort((found[:, 1], found[:, 0]))]

        found = self._team.each(count, self._team.shards)
        if self._team.num_shards == 1:
            return found[0][:, :2], found[0][None, :, 2], found[0][:, 2]
        keys = self._team.processes.join(np.concatenate([part[:, :2] for part in found]))
        keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
        keys = keys[np.append(True, (keys[1:] != keys[:-1]).any(axis=1))[: len(keys)]]
        by_shard = np.zeros((len(self._team.shards), len(keys)), np.int64)
        for counts, part in zip(by_shard, found, strict=True):
            counts[scan.places_of(part, keys)] = part[:, 2]
        return keys, by_shard, self._team.processes.sum(by_shard.sum(axis=0))

    def _list_keys(
        self,
        by_pair: bool,
        slots: np.ndarray,
        num_slots: int,
        found: np.ndarray,
        by_shard: np.ndarray,
        keys: KeyTable,
    ) -> None:
        """Forget all positions, and list those of the keys found; `by_shard` are their counts."""
        around = self._around()

        def write(item: tuple[Shard, np.ndarray]) -> None:
            shard, counts = item
            nowhere = shard.make_pool(int(counts.sum()))
            starts = shard.add_lists(counts, np.ones(len(counts), bool), keys)
            rows = scan.new_table(num_slots + 1)
            table = scan.new_table(1 << max(4, (2 * len(found)).bit_length()))
            tokens, offsets = np.ascontiguousarray(found.T)
            scan.aim_keys(tokens, offsets, starts, slots, by_pair, rows, table, nowhere)
            self._scan(shard, scan.LIST, around, slots, by_pair, rows, table)

        self._team.each(write, list(zip(self._team.shards, by_shard, strict=True)))

    def _theta_from(self, bins: np.ndarray, pairs: int, below: int | None) -> int:
        """Choose theta by how many counters hold each value, of `pairs` in all; lower than `below`."""
        at_least = np.cumsum(bins[::-1])[::-1]
        target = self._options.num_listed
        theta = (int(np.searchsorted(-at_least, -target, side="right")) - 1) // 2
        if below is not None:
            theta = min(theta, below // 2)
        if self._options.memory_limit is not None:
            # the lowest theta whose positions fit beside the cells
            positions = pairs - np.cumsum(bins * np.arange(len(bins)))
            room = self._team.room_for_positions(self._options.memory_limit)
            # of all processes: each has its own cells, and all need the same theta
            too_many = positions > int(self._team.processes.sum(np.array([room]))[0])
            theta = max(theta, int(np.count_nonzero(too_many)) + 1)
            if below is not None:
                theta = min(theta, below * 3 // 4)
        return max(theta, self._options.min_count)

    def _new_keys(self, theta: int) -> KeyTable:
        options = self._options
        if options.scoring == "frequency":
            return KeyTable(self._shapes, theta)
        return SpatialKeyTable(
            self._shapes,
            theta,
            min_count=options.min_count,
            weight=options.spatial_weight,
            sigma=options.spatial_sigma,
        )
