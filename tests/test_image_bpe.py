"""ImageBPE against the law in plain Python, with and without numba, with one and several threads."""

import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
from being_vl.bpe import naive
from being_vl.image_bpe import GridState, ImageBPE
from being_vl.image_bpe_codec import KernelCodec, PlainCodec


def odd_grids(rng, count, num_codes, side=9):
    """Grids of every odd kind: lines, single cells, all equal, checkerboards, stripes, blobs, noise."""
    grids = []
    for kind in range(count):
        height, width = rng.integers(1, side + 1, 2)
        if kind % 6 == 0:
            height = 1
        if kind % 6 == 1:
            width = 1
        grid = rng.integers(0, num_codes, (height, width))
        row, col = np.indices(grid.shape)
        pattern = kind // 6 % 5
        if pattern == 1:
            grid[:] = grid[0, 0]
        elif pattern == 2:
            grid = np.where((row + col) % 2, grid[0, 0], grid[-1, -1])
        elif pattern == 3:
            grid = (row // 2 + col // 2) % num_codes
        elif pattern == 4:
            grid = np.where(grid < num_codes / 4, grid, grid[0, 0])
        grids.append(grid)
    return grids


def random_vocabulary(rng, num_codes, num_merges):
    """Rules learned from a few grids: real shapes, many ties."""
    grids = odd_grids(rng, 12, num_codes)
    return naive.train([grid.tolist() for grid in grids], num_merges, num_codes, min_count=1)


@pytest.mark.parametrize("num_codes", [1, 2, 3, 8, 16384])
def test_encodes_as_the_law(num_codes):
    rng = np.random.default_rng(num_codes)
    for _ in range(4):
        merges = random_vocabulary(rng, num_codes, 40)
        grids = odd_grids(rng, 60, num_codes)
        expected = [naive.encode(grid.tolist(), merges, num_codes) for grid in grids]
        bpe = ImageBPE(merges, num_codes)
        plain = ImageBPE(merges, num_codes)
        plain.__dict__["_codec"] = PlainCodec(plain.merges, num_codes, "shape", plain._table)
        assert isinstance(bpe._codec, KernelCodec)
        for encoder in (bpe, plain):
            assert [encoder.encode(grid).tolist() for grid in grids] == expected
            for threads in (1, 2, 8):
                many = encoder.encode_batch(grids, num_threads=threads)
                assert [ids.tolist() for ids in many] == expected
            for ids, grid in zip(expected, grids, strict=True):
                np.testing.assert_array_equal(encoder.decode(ids, *grid.shape), grid)
