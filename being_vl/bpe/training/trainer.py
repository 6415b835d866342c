"""codes → merges: the trainer of the image BPE.

Source: the law of `naive.py`, made incremental. It goes in the law's words: count (`count.py`), choose
(`choose.py`), apply and emit (`apply_and_emit.py`), and again. Keys are counted once; a merge then touches
only the neighbours of its own occurrences, which are listed by key. Only keys with at least `theta` occurrences
are listed; when none is left, everything is counted afresh with a lower theta (`recount.py`). The grids are
split among processes and threads, one shard each, which merge a batch of rules before they tell each other
what changed: only counts pass between them, and the result does not depend on how.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from ..grids import check_integer
from .apply_and_emit import Batch, Limits, keys_of_views
from .checkpoints import Checkpoint
from .choose import KeyTable, Shapes, packed
from .count import can_count_codes, count_codes
from .grids import GridSource, open_grids
from .options import NO_LIMIT, Options, Progress
from .processes import OneProcess, Processes
from .recount import Recount
from .shard import Shard, Team

_CELLS_A_THREAD = 1 << 22  # with less for each thread, meeting costs more than sharing saves
_BUDGET = 1 << 17  # occurrences of a batch: 8 MB of traces


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
        num_threads: threads of this process; by default one for each CPU that it may use, or fewer where
            there is too little work for each. The result does not depend on it.
        memory_limit: bytes that cells and positions may take, as far as listing fewer keys at a time can
            keep them there; by default enough keys are listed that they need not be counted again.
        checkpoint: what an earlier call with the same grids and options had learned; goes on from there.
        progress: called after each batch of merges, and once where a checkpoint has been taken up.
        processes: the processes that train together, each called with the same arguments; by default this
            one alone. The result does not depend on their number.

    Returns:
        (M, 4) int32: first, second, row_offset, col_offset of each rule in rank order.

    Raises:
        ValueError: an option or a code is out of its range, grids have another form, or the checkpoint was
            made from other grids.
    """
    options = Options(
        num_merges=num_merges,
        codebook_size=codebook_size,
        min_count=min_count,
        max_cells=max_cells,
        max_token_extent=max_token_extent,
        scoring=scoring,
        merge_rule=merge_rule,
        spatial_weight=spatial_weight,
        spatial_sigma=spatial_sigma,
        memory_limit=memory_limit,
    )
    source = open_grids(grids, codebook_size)
    if num_threads is None:
        num_threads = min(
            _available_cpus(), 1 + int(source.sizes.prod(axis=1).sum()) // _CELLS_A_THREAD
        )
    check_integer(num_threads, "num_threads")
    processes = processes or OneProcess()
    try:
        with Run(source, options, num_threads, processes, ahead=True) as run:
            return run.to_the_end(checkpoint, progress)
    except _NoRoom as error:
        checkpoint = error.checkpoint
    with Run(source, options, num_threads, processes, ahead=False) as run:
        return run.to_the_end(checkpoint, progress)


class _NoRoom(Exception):
    """Tokens made ahead of their turn may have taken the room of the next one; `checkpoint` is what is sure."""

    def __init__(self, checkpoint: Checkpoint):
        super().__init__()
        self.checkpoint = checkpoint


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Run:
    """One training."""

    def __init__(
        self,
        source: GridSource,
        options: Options,
        num_threads: int,
        processes: Processes,
        ahead: bool,
    ):
        self._options = options
        # only what is scored by counts, and keeps its parts' shapes, is merged in batches
        self._one_by_one = options.scoring == "spatial" or options.merge_rule == "pair"
        self._ahead = options.most_ahead if ahead and not self._one_by_one else 0
        capacity = options.vocab_size + self._ahead
        self._shapes = Shapes(options.codebook_size, capacity, options.merge_rule)
        frugal = options.memory_limit is not None
        self._team = Team(source, self._shapes, num_threads, processes, frugal)
        self._num_grids = len(source.sizes)
        self._num_cells = self._num_tokens = int(source.sizes.prod(axis=1).sum())
        self._limits = Limits(
            self._shapes.num_cells, self._shapes.boxes, options.most_cells, options.most_extent
        )
        self._recount = Recount(options, self._shapes, self._team, self._limits)
        self._keys = KeyTable(self._shapes, 1)
        # of each token made: its rule, the rule's count, how many occurrences were merged
        self._made = np.empty((capacity - options.codebook_size, 6), np.int64)
        self._merges = np.empty((options.num_merges, 4), np.int32)
        self._counts = np.empty(options.num_merges, np.int64)
        self._rank = 0

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error: object) -> None:
        self._team.close()

    def to_the_end(
        self, checkpoint: Checkpoint | None, progress: Callable[[Progress], None] | None
    ) -> np.ndarray:
        """The rules, (M, 4) int32."""
        options = self._options
        if checkpoint is not None:
            self._replay(checkpoint)
            self._tell(progress)
        if self._rank < options.num_merges:
            self._keys = self._first_count()
        while self._rank < options.num_merges:
            chosen = self._choose()
            if chosen is None:
                raise _NoRoom(self._done())
            if len(chosen) == 0:
                if self._team.list_tier(self._keys, options.memory_limit):
                    continue
                if self._keys.theta <= options.min_count:
                    break
                self._keys = self._recount.list_keys(self._num_tokens, self._keys.theta)
                continue
            self._merge(chosen, None)
            self._tell(progress)
        return self._merges[: self._rank]

    def _choose(self) -> np.ndarray | None:
        made = self._shapes.size - self._options.codebook_size
        most = self._options.num_merges - self._rank
        ahead = min(self._ahead - (made - self._rank), self._options.num_merges - made)
        room = self._options.most_cells_of_all - self._shapes.total_cells
        return self._keys.choose(most, max(0, ahead), 1 if self._one_by_one else _BUDGET, room)

    def _first_count(self) -> KeyTable:
        if self._rank == 0 and can_count_codes(self._options, self._team):
            return count_codes(self._options, self._shapes, self._team, self._limits)
        return self._recount.list_keys(self._num_tokens, None)

    def _done(self) -> Checkpoint:
        return Checkpoint(self._merges[: self._rank], self._counts[: self._rank])

    def _tell(self, progress: Callable[[Progress], None] | None) -> None:
        if progress is not None:
            progress(Progress(self._done(), self._num_grids, self._num_cells, self._num_tokens))

    def _replay(self, checkpoint: Checkpoint) -> None:
        """Apply rules that are already known, listing no other keys, and check that their counts agree."""
        count = min(len(checkpoint.merges), self._options.num_merges)
        rules = checkpoint.merges[:count].astype(np.int64)
        if self._options.merge_rule == "pair":
            rules[:, 3] = 1
        tokens, offsets = packed(rules)
        of_codes = rules[rules[:, :2].max(axis=1) < self._shapes.codebook_size]
        self._keys = self._recount.list_only(np.unique(of_codes, axis=0))
        wanted = set(zip(tokens.tolist(), offsets.tolist(), strict=True))
        while self._rank < count:
            end = self._end_of_batch(rules[: min(count, self._rank + 64)])
            chosen = []
            for rank in range(self._rank, end):
                key = self._keys.find(tokens[rank], offsets[rank])
                found = int(self._keys.counts[key]) if key >= 0 else 0
                if found != checkpoint.counts[rank] or found == 0:
                    raise ValueError(
                        f"the checkpoint was made from other grids: its merge {rank} occurs {found} "
                        f"times in these, and occurred {checkpoint.counts[rank]} times in those"
                    )
                chosen.append(key)
            self._merge(np.array(chosen, np.int64), wanted)

    def _end_of_batch(self, rules: np.ndarray) -> int:
        """How far known rules go, from the next one, without sharing or using each other's tokens."""
        end, taken = self._rank, set[int]()
        last = self._rank + 1 if self._one_by_one else len(rules)
        while end < last:
            parts = {int(rules[end, 0]), int(rules[end, 1])}
            if parts & taken or max(parts) >= self._shapes.size:
                break
            taken |= parts
            end += 1
        return end

    def _merge(self, chosen: np.ndarray, wanted: set[tuple[int, int]] | None) -> None:
        """Merge the occurrences of keys everywhere, and list the new keys that reach theta.

        With `wanted`, packed keys, those are listed, whatever their counts.
        """
        keys, shards, processes = self._keys, self._team.shards, self._team.processes
        batch = self._batch_of(chosen)
        everything = wanted is not None or self._options.scoring == "spatial"
        # a key with theta occurrences in all has its share in some shard
        least = 1 if everything else -(-keys.theta // self._team.num_shards)
        limits = self._limits
        if everything:
            limits = limits._replace(max_cells=NO_LIMIT, max_extent=NO_LIMIT)
        self._team.each(lambda shard: shard.apply(batch, keys, least, limits), shards)

        names, rows, totals = self._candidates()
        rules = names >> 55
        self._book(batch)
        if everything:  # in turn, and not by the heap
            self._number(batch.rules[:, 4])
        if len(rules):
            tokens, offsets = keys_of_views(names & ((1 << 55) - 1), batch.rules[rules, 4])
            self._list_new(rules, rows, tokens, offsets, totals, wanted)
        late = np.concatenate([shard.late_losses() for shard in shards])
        keys.subtract_by_name(processes.join(late))
        if not everything:
            most = self._options.num_merges - self._rank
            self._number(keys.rank(most, self._options.codebook_size + self._rank))

    def _number(self, tokens: np.ndarray) -> None:
        """Enter the rules of tokens whose turn has come."""
        ranks = np.arange(self._rank, self._rank + len(tokens))
        self._shapes.visual_ids[tokens] = self._options.codebook_size + ranks
        made = self._made[tokens - self._options.codebook_size]
        self._merges[ranks, :2] = self._shapes.visual_ids[made[:, :2]]
        self._merges[ranks, 2:] = made[:, 2:4]
        self._counts[ranks] = made[:, 4]
        self._num_tokens -= int(made[:, 5].sum())
        self._rank += len(tokens)

    def _batch_of(self, chosen: np.ndarray) -> Batch:
        rules = self._keys.rules(chosen, self._shapes.size)
        around, around_ends = self._shapes.add(rules)
        if self._options.merge_rule == "pair":
            rules[:, 2:4] = 0  # (0, 1) in the table of keys stands for the offset that is forgotten
        return Batch(chosen, rules, around, around_ends)

    def _candidates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """New keys that may be frequent enough: (rule << 55 | view), rows in each shard, counts in all.

        They are sorted by rule. Views have less than 55 bits, since ids have less than 21.
        """
        shards, processes = self._team.shards, self._team.processes
        own = [shard.candidates() for shard in shards]
        if self._team.num_shards == 1:
            return own[0][:, 0], own[0][None, :, 1], own[0][:, 2]
        names = processes.join(np.concatenate([candidates[:, 0] for candidates in own]))
        names.sort()
        names = names[np.append(True, names[1:] != names[:-1])[: len(names)]]
        rows, counts = np.empty((len(shards), len(names)), np.int64), np.zeros(len(names), np.int64)
        for shard, places in zip(shards, rows, strict=True):
            shard.find_rows(names, places, counts)
        return names, rows, processes.sum(counts)

    def _book(self, batch: Batch) -> None:
        """Take the losses off the counts of older keys, and note what was merged."""
        keys, shards, processes = self._keys, self._team.shards, self._team.processes
        made = self._made[self._shapes.size - self._options.codebook_size - len(batch.keys) :]
        made = made[: len(batch.keys)]
        made[:, :4] = batch.rules[:, :4]
        made[:, 4] = keys.counts[batch.keys]  # before a chain a a a takes from itself
        merged: Any = sum(shard.num_merged() for shard in shards)
        made[:, 5] = processes.sum(merged)
        if processes.size == 1:
            for shard in shards:
                keys.subtract(shard.losses())
        else:
            lost = np.zeros(keys.size, np.int64)
            for shard in shards:
                np.add.at(lost, shard.losses()[:, 0], shard.losses()[:, 1])
            keys.counts[: keys.size] -= processes.sum(lost)
        keys.counts[batch.keys] = 0

    def _list_new(
        self,
        rules: np.ndarray,
        rows: np.ndarray,
        tokens: np.ndarray,
        offsets: np.ndarray,
        totals: np.ndarray,
        wanted: set[tuple[int, int]] | None,
    ) -> None:
        """List those of the candidates that are wanted, or frequent enough."""
        keys = self._keys
        if wanted is not None:
            pairs = zip(tokens.tolist(), offsets.tolist(), strict=True)
            kept = np.array([pair in wanted for pair in pairs], bool)
        elif self._options.scoring == "spatial":
            order = np.lexsort((offsets, tokens))
            rules, rows, totals = rules[order], rows[:, order], totals[order]
            tokens, offsets = tokens[order], offsets[order]
            kept = self._recount.kept(tokens, offsets, totals, keys.theta)
        else:
            kept = totals >= keys.theta
        if not kept.any():
            return
        rules, rows, tokens, offsets = rules[kept], rows[:, kept], tokens[kept], offsets[kept]
        if wanted is not None:
            keys.add(tokens, offsets, totals[kept])
        else:
            self._recount.add(keys, tokens, offsets, totals[kept])

        def keep(item: tuple[Shard, np.ndarray]) -> None:
            item[0].keep(rules, np.ascontiguousarray(item[1]), keys)

        self._team.each(keep, list(zip(self._team.shards, rows, strict=True)))
