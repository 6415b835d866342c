"""The law in plain Python, against examples worked by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from being_vl.bpe import naive


def test_golden_example():
    """One grid, three codes, every step by hand.

        0 1 2      rows of the grid
        0 1 2
        0 1 0

    Counts: (0,1,0,1) = 3 rows; (0,0,1,0) = 2 (column 0); (1,1,1,0) = 2 (column 1); (1,2,0,1) = 2;
    (2,2,1,0) = 1; (2,0,1,0) = 1; (1,0,0,1) = 1. So rule 0 is (0,1,0,1), token 3:

        3 3 2
        3 3 2
        3 3 0

    Counts: (3,3,1,0) = 2, (3,2,0,2) = 2, (2,2,1,0) = 1, (2,0,1,0) = 1, (3,0,0,2) = 1. The tie goes to the
    smaller key, (3,2,0,2): rule 1, token 4, at rows 0 and 1. Counts: (4,4,1,0) = 1: the two share three
    edges and count once; (4,3,1,0) = 1; (4,0,1,2) = 1; (3,0,0,2) = 1. None reaches 2: training stops.
    """
    grid = [[0, 1, 2], [0, 1, 2], [0, 1, 0]]
    merges = naive.train([grid], num_merges=10, codebook_size=3)
    assert merges == [(0, 1, 0, 1), (3, 2, 0, 2)]
    assert naive.encode(grid, merges, 3) == [4, 4, 3, 0]
    assert naive.cells(4, merges, 3) == [(0, 0, 0), (0, 1, 1), (0, 2, 2)]
    assert naive.decode([4, 4, 3, 0], 3, 3, merges, 3) == grid


def test_a_run_counts_its_overlaps_and_merges_from_the_left():
    """0 0 0: key (0,0,0,1) counts twice, yet merges once, from the left: [1, 0]."""
    assert naive.count([naive.start([[0, 0, 0]])], "shape") == {(0, 0, 0, 1): 2}
    merges = naive.train([[[0, 0, 0]]], num_merges=5, codebook_size=1)
    assert merges == [(0, 0, 0, 1)]
    assert naive.encode([[0, 0, 0]], merges, 1) == [1, 0]


def test_pair_mode_forgets_the_shape():
    """[[0,1],[0,1]] and [[0,0],[1,1]] get the same ids in the paper's mode, different ones by the law."""
    grids = [[[0, 1], [0, 1]], [[0, 0], [1, 1]]]
    merges = naive.train(grids, num_merges=1, codebook_size=2, merge_rule="pair")
    assert merges == [(0, 1, 0, 0)]
    assert [naive.encode(grid, merges, 2, "pair") for grid in grids] == [[2, 2], [2, 2]]
    merges = naive.train(grids, num_merges=2, codebook_size=2)
    assert merges == [(0, 1, 0, 1), (0, 1, 1, 0)]
    assert [naive.encode(grid, merges, 2) for grid in grids] == [[2, 2], [3, 3]]


def test_limits_on_a_token():
    """Four equal cells in a row: without a limit pairs join into a token of four."""
    grids = [[[0, 0, 0, 0]]] * 2
    assert naive.train(grids, 9, 1) == [(0, 0, 0, 1), (1, 1, 0, 2)]
    assert naive.train(grids, 9, 1, max_cells=3) == [(0, 0, 0, 1)]
    assert naive.train(grids, 9, 1, max_token_extent=3) == [(0, 0, 0, 1)]
    assert naive.train(grids, 9, 1, min_count=3) == [(0, 0, 0, 1)]
    assert naive.train(grids, 9, 1, min_count=7) == []


def test_spatial_scoring_prefers_the_pair_that_keeps_its_place():
    """(0,1) stands twice side by side and twice one above the other; (2,3) three times side by side.

    By count alone, (2,3,0,1) wins with 3 against 2 anyway; give (0,1,0,1) a third occurrence, and the tie
    goes to the smaller key by frequency, to the consistent pair by spatial scoring: S(2,3) = 1,
    while S(0,1) = mean exp(-|u - ū|²/2) < 1.
    """
    grids = [[[0, 1]]] * 3 + [[[0], [1]]] * 2 + [[[2, 3]]] * 3
    assert naive.train(grids, 1, 4) == [(0, 1, 0, 1)]
    assert naive.train(grids, 1, 4, scoring="spatial") == [(2, 3, 0, 1)]
    assert naive.consistency({(0, 1): 5}, sigma=1.0) == 1.0
    # ū = (1/2, 1/2), so |u - ū|² = 1/2 for both: S = exp(-1/4)
    assert naive.consistency({(0, 1): 4, (1, 0): 4}, sigma=1.0) == pytest.approx(
        0.7788007830714049, abs=1e-8
    )


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 9], "visual id 9 at position 1 is not in"),
        ([-1], "visual id -1 at position 0 is not in"),
        ([0, 2, 0], "visual id 2 at position 1 runs over the border"),
        ([0, 0], "leave 2 cells open"),
        ([2, 2, 0], "visual id 0 at position 2 comes after the last cell"),
        ([0, 3, 2], r"visual id 2 at position 2 overlaps cell \(1, 1\)"),
    ],
)
def test_decode_refuses_what_is_no_grid(ids, message):
    merges = [(0, 1, 0, 1), (0, 1, 1, 0)]  # 2: side by side, 3: one above the other
    with pytest.raises(ValueError, match=message):
        naive.decode(ids, 2, 2, merges, 2)


@st.composite
def grids_of(draw, max_side=6, max_codes=4):
    codes = draw(st.integers(1, max_codes))
    height, width = draw(st.integers(1, max_side)), draw(st.integers(1, max_side))
    line = st.lists(st.integers(0, codes - 1), min_size=width, max_size=width)
    return codes, draw(
        st.lists(st.lists(line, min_size=height, max_size=height), min_size=1, max_size=3)
    )


@settings(max_examples=60, deadline=None)
@given(grids_of())
def test_decode_inverts_encode(data):
    codes, grids = data
    merges = naive.train(grids, num_merges=12, codebook_size=codes, min_count=1)
    for grid in grids:
        ids = naive.encode(grid, merges, codes)
        assert naive.decode(ids, len(grid), len(grid[0]), merges, codes) == grid
