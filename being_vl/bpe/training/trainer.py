"""codes → merges: the trainer of the image BPE.

Source: the law of `naive.py`, made incremental. Keys are counted once; a merge then touches only the
neighbours of its own occurrences, which are listed by key. Only keys with at least `theta` occurrences are
listed; when none is left, everything is counted afresh with a lower theta. The grids are split among
processes and threads, one shard each, and only counts pass between them: the result does not depend on how.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .grids import open_grids
from .processes import OneProcess, Processes
from .run import Run
from .state import Checkpoint, Options, Progress, check_integer


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
    if num_threads is None:
        num_threads = _available_cpus()
    check_integer("num_threads", num_threads, 1)
    source = open_grids(grids, codebook_size)
    with Run(source, options, num_threads, processes or OneProcess()) as run:
        return run.to_the_end(checkpoint, progress)


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
