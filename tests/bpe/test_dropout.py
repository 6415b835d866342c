"""encode(..., dropout=p): some merges are left out at random, and decoding stays exact."""

import numpy as np
import pytest
from image_bpe_fixtures import odd_grids, random_rules
from test_image_bpe import without_numba

from being_vl.bpe import ImageBPE


@pytest.mark.parametrize("num_codes", [1, 2, 5])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_decodes_exactly_the_same_with_and_without_numba_and_threads(num_codes, dropout):
    rng = np.random.default_rng(num_codes)
    grids = odd_grids(rng, 90, num_codes, side=12)
    learned = ImageBPE.train(grids, num_merges=60, codebook_size=num_codes)
    for bpe in (learned, ImageBPE(random_rules(rng, num_codes, 60), num_codes)):
        ids = bpe.encode_batch(grids, num_threads=1, dropout=dropout, seed=7)
        for other in (
            bpe.encode_batch(grids, num_threads=3, dropout=dropout, seed=7),
            without_numba(bpe).encode_batch(grids, dropout=dropout, seed=7),
        ):
            assert [one.tolist() for one in other] == [one.tolist() for one in ids]
        for one, grid in zip(ids, grids, strict=True):
            np.testing.assert_array_equal(bpe.decode(one, *grid.shape), grid)


def test_the_share_of_merges_left_out_is_the_probability():
    """One rule, on grids where it applies once: the share of grids with it left out."""
    bpe = ImageBPE([[0, 1, 0, 1]], 2)
    for dropout in (0.1, 0.35, 0.8):
        ids = bpe.encode_batch(np.tile([[0, 1]], (20_000, 1, 1)), dropout=dropout, seed=0)
        share = np.mean([len(one) == 2 for one in ids])
        assert abs(share - dropout) < 4 * np.sqrt(dropout * (1 - dropout) / 20_000)


def test_zero_and_one():
    grids = odd_grids(np.random.default_rng(0), 60, 3)
    bpe = ImageBPE.train(grids, num_merges=40, codebook_size=3)
    assert [one.tolist() for one in bpe.encode_batch(grids, dropout=0)] == [
        one.tolist() for one in bpe.encode_batch(grids)
    ]
    for one, grid in zip(bpe.encode_batch(grids, dropout=1.0), grids, strict=True):
        assert one.tolist() == grid.reshape(-1).tolist()


def test_seeds():
    grid = np.tile([[0, 1], [1, 0]], (20, 20))
    bpe = ImageBPE([[0, 1, 0, 1], [1, 0, 0, 1], [2, 3, 1, 0]], 2)

    def encode(seed):
        return bpe.encode(grid, dropout=0.5, seed=seed).tolist()

    assert encode(3) == encode(3) != encode(4)
    assert encode(None) != encode(None)
    generator = np.random.default_rng(3)
    assert encode(generator) == encode(3) != encode(generator)


def test_what_is_not_possible():
    bpe = ImageBPE([[0, 1, 0, 1]], 2)
    for dropout in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"dropout must be a probability in \[0, 1\], got"):
            bpe.encode([[0]], dropout=dropout)
    with pytest.raises(
        ValueError, match='dropout leaves out merges: it needs segmentation="merges"'
    ):
        bpe.encode([[0]], dropout=0.1, segmentation="compact")
