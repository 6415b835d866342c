"""segmentation="compact": exact, never longer than the merges, shorter where looking ahead pays."""

import numpy as np
import pytest
from image_bpe_fixtures import odd_grids, random_rules

from being_vl.bpe.codec import compact as image_bpe_compact
from being_vl.bpe.image_bpe import ImageBPE

# 2 = 0 1, 3 = 1 0, 4 = 1 0 1 0: on the row 1 0 1 0 rank 0 takes the middle and spoils the rest
AHEAD = ImageBPE([[0, 1, 0, 1], [1, 0, 0, 1], [3, 3, 0, 2]], 2)


def test_looks_ahead():
    grid = np.array([[1, 0, 1, 0]])
    assert AHEAD.encode(grid).tolist() == [1, 2, 0]
    assert AHEAD.encode(grid, segmentation="compact").tolist() == [4]


def test_exchanges_a_large_token_for_more_of_smaller_ones():
    """Tokens 0 0 0 (id 5) in the middle and pairs 1 0, 0 1: on 1 0 0 0 1 the largest goes first and
    leaves 5 with two single codes (3 tokens); two pairs and a code are as many, so nothing changes. On
    1 0 0 1 with 0 0 in the vocabulary, the first 0 0 costs 3 tokens, and the exchange finds 2."""
    bpe = ImageBPE([[0, 0, 0, 1], [1, 0, 0, 1], [0, 1, 0, 1]], 2)
    grid = np.array([[1, 0, 0, 1]])
    assert bpe.encode(grid).tolist() == [1, 2, 1]
    assert bpe.encode(grid, segmentation="compact").tolist() == [3, 4]


@pytest.mark.parametrize("num_codes", [1, 2, 3, 8, 500])
def test_is_exact_and_never_longer(num_codes):
    rng = np.random.default_rng(num_codes)
    shorter = 0
    for learned in (True, False):
        grids = odd_grids(rng, 150, num_codes, side=14)
        if learned:
            bpe = ImageBPE.train(grids, num_merges=150, codebook_size=num_codes)
        else:
            bpe = ImageBPE(random_rules(rng, num_codes, 150), num_codes)
        merged = bpe.encode_batch(grids)
        compact = bpe.encode_batch(grids, segmentation="compact", num_threads=1)
        several = bpe.encode_batch(grids, segmentation="compact", num_threads=3)
        for grid, by_merges, ids, again in zip(grids, merged, compact, several, strict=True):
            np.testing.assert_array_equal(bpe.decode(ids, *grid.shape), grid)
            assert (
                ids.tolist() == again.tolist() == bpe.encode(grid, segmentation="compact").tolist()
            )
            assert ids.dtype == np.int32 and len(ids) <= len(by_merges)
            if len(ids) == len(by_merges):
                assert ids.tolist() == by_merges.tolist()
            shorter += len(ids) < len(by_merges)
    assert shorter or num_codes in (1, 500)


def test_a_grid_with_more_places_than_are_kept(monkeypatch):
    """Places beyond the limit are left out whole ranks at a time; the covering stays exact."""
    table = AHEAD._compact._vocabulary[2]
    board = np.array([1, 0] * 8, dtype=np.int32)
    everything = (board, 1, 16, AHEAD.merges, 2, table, np.full(2, -1))
    list_places = getattr(image_bpe_compact.list_places, "py_func", image_bpe_compact.list_places)
    token, _ = list_places(*everything)
    assert np.bincount(token).tolist() == [0, 0, 7, 8, 7]
    monkeypatch.setattr(image_bpe_compact, "MAX_PLACES", 10)
    token, _ = list_places(*everything)
    assert np.bincount(token).tolist() == [0, 0, 7, 8]


def test_refuses_other_names_and_pair_mode():
    with pytest.raises(
        ValueError, match='segmentation must be "merges" or "compact", got \'best\''
    ):
        AHEAD.encode(np.zeros((1, 1), int), segmentation="best")
    pair = ImageBPE([[0, 0, 0, 0]], 1, merge_rule="pair")
    with pytest.raises(ValueError, match="tokens have no fixed shape"):
        pair.encode_batch([np.zeros((1, 1), int)], segmentation="compact")
