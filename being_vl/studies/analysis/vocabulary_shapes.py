"""merges → figures: shapes and frequencies of a vocabulary's tokens, and the data they need.

Answers questions that "From Pixels to Tokens" leaves open: are visual tokens
distributed like words, do merges run along rows or columns, how much data does a vocabulary need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...bpe.image_bpe import ImageBPE

DIRECTIONS = ("horizontal", "vertical", "both")


def rank_frequency(counts: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """The exponent a of count ≈ c · rank^−a (Zipf's law), by least squares on logarithmic scales.

    Fitted at up to 64 ranks that lie evenly on the logarithmic scale, so that the many rare tokens do
    not outweigh the few frequent ones.

    Returns:
        `exponent`, `r_squared`, and the points fitted: `ranks`, from 1, and their `counts`.
    """
    found = np.sort(np.asarray(counts)[np.asarray(counts) > 0])[::-1]
    if len(found) < 3:
        raise ValueError(f"counts must hold at least 3 tokens that occur, got {len(found)}")
    ranks = np.unique(np.geomspace(1, len(found), 64).round().astype(int))
    x, y = np.log(ranks), np.log(found[ranks - 1])
    slope, intercept = np.polyfit(x, y, 1)
    residual = ((y - slope * x - intercept) ** 2).sum()
    spread = ((y - y.mean()) ** 2).sum()
    return {
        "exponent": float(-slope),
        "r_squared": float(1 - residual / spread) if spread else 1.0,
        "ranks": ranks.tolist(),
        "counts": found[ranks - 1].tolist(),
    }


def shape_counts(bpe: ImageBPE) -> list[dict[str, Any]]:
    """The distinct shapes of the merged tokens: `rows` as text, `cells`, and the `ids` that have it.

    The most frequent first.
    """
    merged = range(bpe.codebook_size, bpe.vocab_size)
    counts = Counter(tuple((row, col) for row, col, _ in bpe.cells(i)) for i in merged)
    return [
        {"rows": _drawn(shape), "cells": len(shape), "ids": ids}
        for shape, ids in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def merge_directions(bpe: ImageBPE) -> np.ndarray:
    """For each rule, the index in `DIRECTIONS` of how its two parts touch, int64 (num_merges,).

    Horizontal: only across the edges between columns, one part left of the other. Vertical: only across the
    edges between rows. Both: as an L-shaped part touches what lies in its corner.
    """
    directions = []
    for first, second, row_offset, col_offset in bpe.merges.tolist():
        one = {(row, col) for row, col, _ in bpe.cells(first)}
        other = {(row + row_offset, col + col_offset) for row, col, _ in bpe.cells(second)}
        beside = any((row, col + step) in other for row, col in one for step in (-1, 1))
        below = any((row + step, col) in other for row, col in one for step in (-1, 1))
        directions.append(2 if beside and below else 0 if beside else 1)
    return np.array(directions, dtype=np.int64)


def tokens_by_training_size(
    training: Any, held_out: Any, sizes: Sequence[int], num_merges: int, codebook_size: int
) -> list[dict[str, float]]:
    """How many tokens grids get from vocabularies trained on the first so many grids.

    Returns:
        For each size: `grids`, `merges` learned, `training_tokens` and `held_out_tokens`, both a grid. The
        vocabulary has enough data once the two agree and the second no longer falls.
    """
    rows = []
    for size in sizes:
        if size > len(training):
            raise ValueError(
                f"sizes must be at most {len(training)}, the training grids, got {size}"
            )
        bpe = ImageBPE.train(training[:size], num_merges, codebook_size)
        row: dict[str, float] = {"grids": size, "merges": bpe.num_merges}
        for name, grids in (("training", training[:size]), ("held_out", held_out)):
            row[f"{name}_tokens"] = float(np.mean([len(ids) for ids in bpe.encode_batch(grids)]))
        rows.append(row)
    return rows


def _drawn(shape: Sequence[tuple[int, int]]) -> list[str]:
    left = min(col for _, col in shape)
    width = max(col for _, col in shape) - left + 1
    return [
        "".join("█" if (row, left + col) in shape else "·" for col in range(width))
        for row in range(shape[-1][0] + 1)
    ]
