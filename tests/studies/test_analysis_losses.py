"""Propositions and information loss: hand-made cases, identities, and the order that the paper demands."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from being_vl import ImageBPE
from being_vl.studies.analysis.information_loss import (
    all_grids,
    decodings,
    lost_bits,
    lost_bits_of,
    merge_offsets,
    offset_bits,
    shapes_of,
)
from being_vl.studies.analysis.markov import MarkovSource
from being_vl.studies.analysis.propositions import epsilon, loss_bound, unigram_loss, unigram_losses


def pair_bpe(merges, codebook_size=2):
    return ImageBPE([[*rule, 0, 0] for rule in merges], codebook_size, merge_rule="pair")


def test_unigram_loss_by_hand():
    """One rule joins 0 0 in a row, so 0 0 1 is two tokens. Counts 0, 1, 1 and a half each: chances 1/7,
    3/7, 3/7; three cells cost two tokens of ln 7/3."""
    bpe = ImageBPE([[0, 0, 0, 1]], 2)
    grids = np.array([[[0, 0, 1]]])
    assert unigram_loss(bpe, grids, grids) == pytest.approx(2 * np.log(7 / 3) / 3)


@pytest.mark.parametrize("dependence", ["mixed", "rows"])
def test_losses_stand_in_the_order_of_the_propositions(dependence):
    """H∞ < unigram of BPE tokens, falling with D, < unigram of cells = H(π); and below the bound.

    For sources that are far from independent cells; docs/findings.md tells of others.
    """
    source = MarkovSource(dependence, p=0.05, q=0.05)
    rng = np.random.default_rng(0)
    training, held_out = (source.sample(300, 32, 32, rng) for _ in range(2))
    bpe = ImageBPE.train(training, 198, 2)
    sizes = [2, 10, 50, 200]
    losses = unigram_losses(bpe, sizes, training, held_out)
    assert losses[0] == pytest.approx(source.stationary_entropy(), abs=2e-3)
    assert all(more > less for more, less in itertools.pairwise(losses))
    assert losses[-1] > source.grid_entropy(32, 32) / 32**2
    for size, loss in zip(sizes, losses, strict=True):
        assert loss < loss_bound(source.entropy_rate(), source.least_probability, size)


def test_bound():
    assert epsilon(0.2, 10) == pytest.approx(np.log(5) / (0.99 * np.log(10)))
    assert loss_bound(0.5, 0.2, 5) == float("inf")
    assert loss_bound(0.5, 0.2, 1000) == pytest.approx(0.5 / (1 - epsilon(0.2, 1000)))
    with pytest.raises(ValueError, match="least_probability"):
        epsilon(0, 10)
    with pytest.raises(ValueError, match="dictionary_size"):
        epsilon(0.2, 1)
    with pytest.raises(ValueError, match=r"\[2, 3\], got 4"):
        unigram_losses(
            ImageBPE([[0, 0, 0, 1]], 2), [4], np.zeros((1, 1, 2), int), np.zeros((1, 1, 2), int)
        )


def test_lost_bits_by_hand():
    """The grids that the design names: [[0,1],[0,1]] and [[0,0],[1,1]] get the same ids, so one bit of
    two goes; a third grid keeps its own ids."""
    bpe = pair_bpe([(0, 1)])
    grids = np.array([[[0, 1], [0, 1]], [[0, 0], [1, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]])
    found = lost_bits(bpe, grids)
    assert found["grid_bits"] == 2 and found["collisions"] == 2
    assert found["lost_bits"] == pytest.approx(0.5) and found["lost_share"] == pytest.approx(0.25)


@pytest.mark.parametrize("num_merges", [1, 5, 20])
def test_the_lossless_law_loses_nothing_and_paper_mode_something(num_merges):
    source = MarkovSource("mixed")
    grids = all_grids(3, 4, 2)
    probabilities = np.exp(source.log_probability(grids))
    sample = source.sample(200, 8, 8, np.random.default_rng(0))
    lossless = lost_bits(ImageBPE.train(sample, num_merges, 2), grids, probabilities)
    assert lossless["collisions"] == 0 and abs(lossless["lost_bits"]) < 1e-9
    assert lossless["grid_bits"] == pytest.approx(source.grid_entropy(3, 4) / np.log(2))
    paper = lost_bits(
        ImageBPE.train(sample, num_merges, 2, merge_rule="pair"), grids, probabilities
    )
    assert paper["collisions"] > 0 and paper["lost_bits"] > 0.01


def test_listing_the_decodings_agrees_with_all_grids():
    """Each grid's decodings are the grids with its ids, and the mean loss is H(grid | ids)."""
    source = MarkovSource("mixed", p=0.7, q=0.6)
    bpe = pair_bpe([(1, 0), (0, 2), (2, 1)])
    grids = all_grids(3, 3, 2)
    probabilities = np.exp(source.log_probability(grids))
    bits = [lost_bits_of(bpe, grid, source.log_probability) for grid in grids]
    assert probabilities @ bits == pytest.approx(lost_bits(bpe, grids, probabilities)["lost_bits"])
    ids = bpe.encode(grids[37])
    same = {grid.tobytes() for grid in grids if np.array_equal(bpe.encode(grid), ids)}
    assert {grid.tobytes() for grid in decodings(bpe, ids, 3, 3)} == same


def test_decodings_stop_at_the_limit():
    bpe = pair_bpe([(0, 1)])
    ids = bpe.encode(np.array([[0, 1], [0, 1]]))
    assert len(decodings(bpe, ids, 2, 2)) == 2
    with pytest.raises(ValueError, match="more than 1 layouts"):
        decodings(bpe, ids, 2, 2, limit=1)


def test_shapes_of_paper_mode():
    """0 beside or above 1; then 2 beside, below, or touching at the side: the law of `naive.py`."""
    shapes = shapes_of(pair_bpe([(0, 1), (2, 2)]))
    assert shapes[2] == {((0, 0, 0), (0, 1, 1)), ((0, 0, 0), (1, 0, 1))}
    assert all(len(shape) == 4 and shape[0][:2] == (0, 0) for shape in shapes[3])


def test_offsets_rebuild_the_ids_and_bound_the_loss():
    source = MarkovSource("mixed")
    rng = np.random.default_rng(1)
    bpe = ImageBPE.train(source.sample(200, 8, 8, rng), 12, 2, merge_rule="pair")
    grids = source.sample(30, 7, 9, rng)
    for grid in grids:
        made = merge_offsets(bpe, grid)
        assert grid.size - len(made) == len(bpe.encode(grid))
        assert all((row, col) > (0, 0) for _, row, col in made)
    every = all_grids(3, 3, 2)
    bound = offset_bits(bpe, every)["offset_bits"]  # the uniform law
    assert 0 < lost_bits(bpe, every)["lost_bits"] <= bound
    with pytest.raises(ValueError, match='merge_rule must be "pair"'):
        merge_offsets(ImageBPE([], 2), grids[0])


def test_all_grids_refuses_too_many():
    assert len(np.unique(all_grids(2, 2, 3).reshape(-1, 4), axis=0)) == 81
    with pytest.raises(ValueError, match=r"at most 2\^20"):
        all_grids(5, 5, 2)
