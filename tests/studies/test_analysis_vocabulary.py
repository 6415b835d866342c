"""Shapes, directions, exponents and training sizes of vocabularies, on cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from being_vl import ImageBPE
from being_vl.studies.analysis.vocabulary_shapes import (
    DIRECTIONS,
    merge_directions,
    rank_frequency,
    shape_counts,
    tokens_by_training_size,
)
from being_vl.studies.analysis.vocabulary_stats import vocabulary_stats


def test_rank_frequency_finds_the_exponent():
    counts = 1e9 * np.arange(1, 2001) ** -1.3
    rng = np.random.default_rng(0)
    fit = rank_frequency(rng.permutation(np.concatenate([counts, np.zeros(50)])))
    assert fit["exponent"] == pytest.approx(1.3, abs=1e-3) and fit["r_squared"] > 0.999
    assert fit["ranks"][0] == 1 and fit["ranks"][-1] == 2000
    assert rank_frequency([5, 5, 5, 5])["exponent"] == pytest.approx(0)
    with pytest.raises(ValueError, match="at least 3 tokens"):
        rank_frequency([1, 2, 0, 0])


def test_shapes_and_directions_by_hand():
    """A row of two, a column of two, the row over itself, an L of three, and the L closed to a square: its
    fourth cell touches the L on two sides."""
    rules = [[0, 1, 0, 1], [0, 1, 1, 0], [2, 2, 1, 0], [2, 0, 1, 0], [5, 1, 1, 1]]
    bpe = ImageBPE(rules, 2)
    assert [DIRECTIONS[i] for i in merge_directions(bpe)] == [
        "horizontal", "vertical", "vertical", "vertical", "both",
    ]  # fmt: skip
    shapes = {tuple(shape["rows"]): shape for shape in shape_counts(bpe)}
    assert shapes["██", "██"]["ids"] == 2 and shapes["██", "██"]["cells"] == 4
    assert shapes["██",]["ids"] == shapes["█", "█"]["ids"] == shapes["██", "█·"]["ids"] == 1
    assert shape_counts(bpe)[0]["rows"] == ["██", "██"]


def test_a_part_that_lies_to_the_left_is_drawn():
    """The second part, a row of two, begins one column left of the first."""
    shapes = shape_counts(ImageBPE([[0, 0, 0, 1], [0, 1, 1, -1]], 1))
    assert [shape["rows"] for shape in shapes] == [["██"], ["·█", "██"]]


def test_more_training_grids_serve_held_out_grids_better():
    rng = np.random.default_rng(0)
    grids = np.kron(rng.integers(0, 8, (300, 4, 4)), np.ones((2, 2), int))
    rows = tokens_by_training_size(grids[:200], grids[200:], [4, 200], 40, 8)
    assert [row["grids"] for row in rows] == [4, 200] and rows[1]["merges"] == 40
    assert rows[0]["held_out_tokens"] > rows[1]["held_out_tokens"]
    gaps = [row["held_out_tokens"] - row["training_tokens"] for row in rows]
    assert gaps[0] > gaps[1]
    with pytest.raises(ValueError, match="at most 200"):
        tokens_by_training_size(grids[:200], grids[200:], [201], 40, 8)


def test_entropy_by_rank():
    """Grid 0 0 1 as two tokens of two kinds: one bit each; as three cells log2 3 − 2/3 a cell."""
    curve = vocabulary_stats(ImageBPE([[0, 0, 0, 1]], 2), np.array([[[0, 0, 1]]]))[
        "compression_by_rank"
    ]
    assert [point["bits_per_token"] for point in curve] == pytest.approx([np.log2(3) - 2 / 3, 1])
    assert [point["bits_per_cell"] for point in curve] == pytest.approx([np.log2(3) - 2 / 3, 2 / 3])
