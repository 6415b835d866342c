"""tokens → figures: how well a vocabulary compresses a set of grids, and what it uses.

Entropy is the empirical entropy of single tokens, in bits. All figures but those about token shapes apply to both
merge rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...bpe.grids import check_grid
from ...bpe.image_bpe import ImageBPE
from .information_loss import entropy
from .vocabulary_shapes import DIRECTIONS, merge_directions, rank_frequency

_SLICE = 4096


def vocabulary_stats(
    bpe: ImageBPE,
    grids: Any,
    *,
    max_grids: int | None = None,
    curve: list[int] | None = None,
    segmentation: str = "merges",
    num_threads: int | None = None,
    progress: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """Encode grids and count.

    Args:
        grids: int codes (N, H, W), or a sequence of (h, w) arrays.
        max_grids: use the first so many only.
        curve: numbers of merges at which to encode anew for `compression_by_rank`; by default 0, then
            powers of two from 256, then all.
        segmentation: as for `ImageBPE.encode`.
        progress: called with the number of grids done after each slice; each point of the curve counts.

    Returns:
        JSON-ready: `grids`, `cells`, `tokens`, `tokens_per_grid`, `compression_ratio`,
        `bits_per_token`, `bits_per_cell`, `code_bits_per_cell` (entropies), `rank_exponent` (of Zipf's
        law; None where fewer than three tokens occur), `codes_used`, `merges_used`, `cells_in_merges`
        (fractions), `compression_by_rank`, `merge_uses` (by rank) and, for merge_rule "shape",
        `tokens_by_cells` and `merge_directions` (rules by how their parts touch).
    """
    count = len(grids) if max_grids is None else min(max_grids, len(grids))
    if not count:
        raise ValueError("there are no grids to count over")
    codes, index = np.zeros(bpe.codebook_size, dtype=np.int64), itertools.count()
    for part in _slices(grids, count):
        checked = [check_grid(grid, bpe.codebook_size, f"grids[{next(index)}]") for grid in part]
        flat = np.concatenate([grid.reshape(-1) for grid in checked])
        codes += np.bincount(flat, minlength=len(codes))
    cells = int(codes.sum())

    def encoded(vocabulary: ImageBPE) -> tuple[np.ndarray, dict[str, Any]]:
        """How often each token occurs, and the figures of its number and entropy."""
        uses = np.zeros(vocabulary.vocab_size, dtype=np.int64)
        for part in _slices(grids, count):
            ids = vocabulary.encode_batch(part, num_threads, segmentation=segmentation)
            uses += np.bincount(np.concatenate(ids), minlength=len(uses))
            if progress:
                progress(len(part))
        tokens = int(uses.sum())
        return uses, {
            "tokens_per_grid": tokens / count,
            "compression_ratio": cells / tokens,
            "bits_per_token": entropy(uses / tokens),
            "bits_per_cell": entropy(uses / tokens) * tokens / cells,
        }

    uses, figures = encoded(bpe)
    in_codes = int(uses[: bpe.codebook_size].sum())
    stats: dict[str, Any] = {
        "grids": count,
        "segmentation": segmentation,
        "cells": cells,
        "tokens": int(uses.sum()),
        **figures,
        "code_bits_per_cell": entropy(codes / cells),
        "rank_exponent": rank_frequency(uses)["exponent"] if (uses > 0).sum() > 2 else None,
        "codes_used": float((codes > 0).mean()),
        "merges_used": float((uses[bpe.codebook_size :] > 0).mean()) if bpe.num_merges else 0.0,
        "cells_in_merges": 1 - in_codes / cells,
    }
    if bpe.merge_rule == "shape":
        stats["tokens_by_cells"] = _by_cells(bpe, uses)
        directions = np.bincount(merge_directions(bpe), minlength=len(DIRECTIONS))
        stats["merge_directions"] = dict(zip(DIRECTIONS, directions.tolist(), strict=True))
    stats["compression_by_rank"] = [
        {"merges": merges, **encoded(bpe.first(merges))[1]}
        for merges in (default_curve(bpe.num_merges) if curve is None else curve)
    ]
    stats["merge_uses"] = uses[bpe.codebook_size :].tolist()
    return stats


def default_curve(num_merges: int) -> list[int]:
    """0, 256, 512, … and num_merges."""
    points = [0]
    while (following := max(256, 2 * points[-1])) < num_merges:
        points.append(following)
    return [*points, num_merges] if num_merges else points


def _slices(grids: Any, count: int) -> Iterator[Any]:
    for begin in range(0, count, _SLICE):
        yield grids[begin : min(begin + _SLICE, count)]


def _by_cells(bpe: ImageBPE, uses: np.ndarray) -> list[dict[str, int]]:
    sizes = bpe.token_sizes()
    return [
        {"cells": size, "ids": int((sizes == size).sum()), "tokens": int(uses[sizes == size].sum())}
        for size in np.unique(sizes).tolist()
    ]
