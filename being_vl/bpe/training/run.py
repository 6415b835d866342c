"""rule after rule: the loop of a training.

A merge visits its occurrences in all shards, books what the counts of older keys lose, and lists the new keys
that reach the threshold. See `trainer.py` for the whole, `listing.py` for the counting.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .grids import GridSource
from .kernels import keys_of_views
from .keys import KeyTable
from .listing import Lister
from .processes import Processes
from .shapes import Shapes
from .state import Checkpoint, Options, Progress
from .team import Team

_FEW_OCCURRENCES = 1_000  # below, waking the threads takes longer than the merge


class Run:
    """One training."""

    def __init__(
        self, source: GridSource, options: Options, num_threads: int, processes: Processes
    ):
        self._options = options
        self._shapes = Shapes(options.codebook_size, options.vocab_size, options.merge_rule)
        self._team = Team(source, self._shapes, options.vocab_size, num_threads, processes)
        self._num_grids = len(source.sizes)
        self._num_cells = self._num_tokens = int(source.sizes.prod(axis=1).sum())
        self._lister = Lister(options, self._shapes, self._team, self._num_cells)
        self._keys = KeyTable(options.vocab_size, 1, 1, options.merge_rule)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._team.close()

    def to_the_end(
        self, checkpoint: Checkpoint | None, progress: Callable[[Progress], None] | None
    ) -> np.ndarray:
        merges = np.empty((self._options.num_merges, 4), np.int32)
        counts = np.empty(self._options.num_merges, np.int64)
        rank = 0
        if checkpoint is not None:
            rank = min(len(checkpoint.merges), self._options.num_merges)
            merges[:rank], counts[:rank] = checkpoint.merges[:rank], checkpoint.counts[:rank]
            if self._options.merge_rule == "pair":
                merges[:rank, 3] = 1
            self._replay(merges[:rank], counts[:rank])
            self._tell(progress, merges[:rank], counts[:rank])
        if rank < self._options.num_merges:
            self._keys = self._lister.list_keys(self._num_tokens, None)
        while rank < self._options.num_merges:
            key = self._keys.pop_best()
            if key < 0:
                if self._keys.theta <= self._options.min_count:
                    break
                self._keys = self._lister.list_keys(self._num_tokens, self._keys.theta)
                continue
            merges[rank] = self._keys.columns[key]
            counts[rank] = self._keys.counts[key]
            self._merge(key, None)
            rank += 1
            self._tell(progress, merges[:rank], counts[:rank])
        return self._as_rules(merges[:rank])

    def _tell(
        self, progress: Callable[[Progress], None] | None, merges: np.ndarray, counts: np.ndarray
    ) -> None:
        if progress is not None:
            done = Checkpoint(self._as_rules(merges), counts)
            progress(Progress(done, self._num_grids, self._num_cells, self._num_tokens))

    def _as_rules(self, keys: np.ndarray) -> np.ndarray:
        """Inside, (0, 1) stands for the offset that `merge_rule="pair"` forgets; outside, (0, 0)."""
        return (
            keys if self._options.merge_rule == "shape" else keys * np.array([1, 1, 0, 0], np.int32)
        )

    def _replay(self, rules: np.ndarray, counts: np.ndarray) -> None:
        """Apply rules that are already known, listing no other keys, and check that their counts agree."""
        rules = rules.astype(np.int64)
        newer = rules[:, :2].max(axis=1)
        of_codes = rules[newer < self._shapes.codebook_size]
        self._keys = self._lister.list_only(np.unique(of_codes, axis=0))
        wanted: dict[int, list[np.ndarray]] = {}
        for rule, token in zip(rules, newer.tolist(), strict=True):
            wanted.setdefault(token, []).append(rule)
        numbers = {
            tuple(key): i for i, key in enumerate(self._keys.columns[: self._keys.size].tolist())
        }
        for rank, rule in enumerate(rules.tolist()):
            key = numbers.get(tuple(rule), -1)
            found = int(self._keys.counts[key]) if key >= 0 else 0
            if key < 0 or found != counts[rank]:
                raise ValueError(
                    f"the checkpoint was made from other grids: its merge {rank} occurs {found} times "
                    f"in these, and occurred {counts[rank]} times in those"
                )
            first = self._keys.size
            token = self._shapes.size
            self._merge(key, np.array(wanted.get(token, []), np.int64).reshape(-1, 4))
            for number in range(first, self._keys.size):
                numbers[tuple(self._keys.columns[number].tolist())] = number

    def _merge(self, key: int, only: np.ndarray | None) -> None:
        """Merge the occurrences of a key everywhere, and list the new keys that reach theta.

        With `only`, (n, 4), those keys are listed, whatever their counts.
        """
        keys = self._keys
        views, view_keys, sides = keys.views_of(key)
        token = self._shapes.add(keys.columns[key])
        rule = np.empty(5, np.int64)
        rule[:4], rule[4] = keys.columns[key], token
        each = self._team.each if keys.counts[key] > _FEW_OCCURRENCES else _in_turn
        lost = each(lambda shard: shard.apply(key, rule, views, sides), self._team.shards)
        changes = self._team.processes.sum(functools.reduce(np.add, lost))
        keys.subtract(view_keys, changes[:-1])
        keys.counts[key] = 0
        self._num_tokens -= int(changes[-1])

        candidates = self._candidates() if only is None else _views_of_keys(only, token)
        if len(candidates) == 0:
            return
        columns = keys_of_views(candidates, token)
        if self._options.scoring == "spatial":
            order = np.lexsort(columns.T[::-1])
            candidates, columns = candidates[order], columns[order]
        by_shard = np.array([shard.counts_of_views(candidates) for shard in self._team.shards])
        totals = self._team.processes.sum(by_shard.sum(axis=0))
        kept = self._lister.kept(columns, totals, keys.theta) if only is None else totals > 0
        if kept.any():
            if only is None:
                self._lister.add(keys, columns[kept], totals[kept])
            else:
                keys.add(columns[kept], totals[kept])
            each(
                lambda item: item[0].keep(candidates[kept], item[1][kept], token, keys),
                list(zip(self._team.shards, by_shard, strict=True)),
            )

    def _candidates(self) -> np.ndarray:
        """The views of the last merge's new keys that may reach theta in all, sorted.

        A key with theta occurrences in all has its share in some shard. A pair may have them at several
        offsets, so for spatial scoring all views are candidates.
        """
        share = (
            1
            if self._options.scoring == "spatial"
            else -(-self._keys.theta // self._team.num_shards)
        )
        views = [shard.frequent_views(share) for shard in self._team.shards]
        if self._team.num_shards == 1:
            return np.sort(views[0])
        return np.unique(self._team.processes.join(np.concatenate(views)))


def _in_turn(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def _views_of_keys(columns: np.ndarray, token: int) -> np.ndarray:
    """The views of keys, (n, 4), of which a token is the newer part; the inverse of `keys_of_views`."""
    first = columns[:, 0] == token
    sign = np.where(first, 1, -1)
    other = np.where(first, columns[:, 1], columns[:, 0])
    rows, cols = sign * columns[:, 2] + (1 << 16), sign * columns[:, 3] + (1 << 16)
    return np.unique((other << 34) | (rows << 17) | cols)
