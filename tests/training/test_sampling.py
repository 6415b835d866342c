"""The order of rows: complete, grouped, shuffled, repeatable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from being_vl.training.samples import LengthGroupedSampler


@given(
    st.lists(st.integers(1, 100), min_size=1, max_size=200), st.integers(1, 9), st.integers(1, 5)
)
def test_every_row_once_and_seeded(lengths, batch_size, chunks):
    sampler = LengthGroupedSampler(lengths, batch_size, seed=1, batches_per_chunk=chunks)
    order = list(sampler)
    assert sorted(order) == list(range(len(lengths))) and len(sampler) == len(order)
    assert list(sampler) == order
    again = LengthGroupedSampler(lengths, batch_size, seed=0, batches_per_chunk=chunks)
    again.set_epoch(1)
    assert list(again) == order


def test_batches_are_alike_inside_and_shuffled_among_each_other():
    lengths = np.random.default_rng(0).integers(10, 500, 4000)
    order = list(LengthGroupedSampler(lengths, 8, seed=0))
    batches = lengths[order].reshape(-1, 8)
    assert np.median(np.ptp(batches, axis=1)) < 20  # of 490
    steps = batches.mean(1)
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1]) < 0.2  # sorted batches would give almost 1


@pytest.mark.parametrize("lengths, batch_size", [([], 2), ([1], 0)])
def test_errors(lengths, batch_size):
    with pytest.raises(ValueError, match="must be positive"):
        LengthGroupedSampler(lengths, batch_size, seed=0)
