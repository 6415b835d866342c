"""The legality mask of image generation against trying every token."""

import numpy as np
import pytest
from image_bpe_fixtures import random_rules

from being_vl.bpe.image_bpe import GridState, ImageBPE


def fits(bpe, covered, visual_id):
    height, width = covered.shape
    row, col = np.argwhere(~covered)[0]
    return all(
        row + r < height and 0 <= col + c < width and not covered[row + r, col + c]
        for r, c, _ in bpe.cells(visual_id)
    )


def test_legal_next_is_what_fits():
    rng = np.random.default_rng(0)
    bpe = ImageBPE(random_rules(rng, 3, 200), 3)
    for _ in range(60):
        covered = rng.random(rng.integers(1, 7, 2)) < rng.random()
        if covered.all():
            continue
        expected = [fits(bpe, covered, visual_id) for visual_id in range(bpe.vocab_size)]
        assert bpe.legal_next(covered).tolist() == expected
        assert all(expected[:3]), "a code always fits"
    assert not bpe.legal_next(np.ones((2, 2), bool)).any()


def test_a_walk_along_legal_ids_always_decodes():
    rng = np.random.default_rng(1)
    bpe = ImageBPE(random_rules(rng, 3, 300), 3)
    for _ in range(20):
        height, width = (int(side) for side in rng.integers(1, 9, 2))
        state, ids = GridState(bpe, height, width), []
        while not state.finished:
            mask = state.legal_mask()
            assert mask.tolist() == bpe.legal_next(state.covered).tolist()
            illegal = np.flatnonzero(~mask)
            if len(illegal):
                before = state.codes.copy()
                with pytest.raises(ValueError, match=rf"ids\[{len(ids)}\] is {illegal[0]}: at row"):
                    state.append(int(illegal[0]))
                np.testing.assert_array_equal(state.codes, before)
            ids.append(int(rng.choice(np.flatnonzero(mask))))
            state.append(ids[-1])
        np.testing.assert_array_equal(state.codes, bpe.decode(ids, height, width))
        assert state.num_tokens == len(ids) and state.next_anchor is None
        assert not state.legal_mask().any()
        with pytest.raises(ValueError, match="grid is full after"):
            state.append(0)


def test_state_refuses_an_unknown_id():
    state = GridState(ImageBPE([], 2), 1, 2)
    with pytest.raises(ValueError, match=r"ids\[0\] is 2, but visual ids lie in \[0, 2\)"):
        state.append(2)


@pytest.mark.parametrize("covered", [np.zeros((2, 2)), np.zeros(4, bool), np.zeros((0, 2), bool)])
def test_legal_next_checks_covered(covered):
    with pytest.raises(ValueError, match=r"covered must be bool \(height, width\)"):
        ImageBPE([], 2).legal_next(covered)
