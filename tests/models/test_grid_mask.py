"""The mask on tensors is that of the reference, whatever generates, and however beams are reordered."""

import numpy as np
import pytest
import torch
from image_bpe_fixtures import random_rules
from model_fixtures import BOI, EOI, LAYOUT, MERGES, TEXT_SIZE

from being_vl import ImageBPE, VocabularyLayout
from being_vl.bpe.grid_tracking import OpenImageTracker
from being_vl.bpe.placement import GridState
from being_vl.models.grid_mask import GridMask

GRID = (4, 5)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def check(mask: GridMask, tracker: OpenImageTracker, ids: torch.Tensor) -> None:
    """Compare all that the mask says with the reference."""
    legal = mask.legal_visual_ids().cpu().numpy()
    for row, state in enumerate(tracker.states(ids.cpu().numpy())):
        assert bool(mask.is_illegal[row]) == isinstance(state, ValueError)
        assert bool(mask.is_open[row]) == isinstance(state, GridState)
        if isinstance(state, GridState):
            assert bool(mask.is_full[row]) == state.finished
            if not state.finished:
                np.testing.assert_array_equal(legal[row], state.legal_mask())


def random_vocabulary(seed: int) -> tuple[ImageBPE, VocabularyLayout]:
    bpe = ImageBPE(random_rules(np.random.default_rng(seed), 6, 60), 6)
    return bpe, VocabularyLayout(TEXT_SIZE, 4, 6, bpe.num_merges)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_reference(seed: int, device: str) -> None:
    """Sequences of text, images, broken images and closings, with rows reordered as beams are."""
    bpe, layout = (
        random_vocabulary(seed) if seed else (ImageBPE(MERGES, LAYOUT.codebook_size), LAYOUT)
    )
    rng = np.random.default_rng(seed)
    reference = OpenImageTracker(layout, bpe, GRID, BOI, EOI)
    mask = GridMask(OpenImageTracker(layout, bpe, GRID, BOI, EOI))
    ids = torch.tensor([[5, BOI], [5, 6], [BOI, layout.first_code_id], [BOI, EOI]])
    seen = {"full": 0, "illegal": 0}
    for _ in range(200):
        mask.advance(ids.to(device))
        check(mask, reference, ids)
        seen["full"] += int(mask.is_full.sum())
        seen["illegal"] += int(mask.is_illegal.sum())
        legal = mask.legal_visual_ids().cpu().numpy()
        following = []
        for row in range(len(ids)):
            wild = rng.random() < 0.08
            if mask.is_full[row] and not wild:
                token = EOI
            elif mask.is_open[row] and not wild:
                token = layout.first_code_id + int(rng.choice(np.flatnonzero(legal[row])))
            else:
                token = int(rng.choice([5, BOI, EOI, layout.first_code_id, layout.size - 1]))
            following.append(token)
        ids = torch.cat([ids, torch.tensor(following)[:, None]], dim=1)
        ids = ids[torch.from_numpy(rng.integers(0, len(ids), len(ids)))]
    assert min(seen.values()) > 5


@pytest.mark.parametrize("device", DEVICES)
def test_sequences_that_do_not_follow_from_the_last_step_start_anew(device: str) -> None:
    bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
    reference = OpenImageTracker(LAYOUT, bpe, GRID, BOI, EOI)
    mask = GridMask(OpenImageTracker(LAYOUT, bpe, GRID, BOI, EOI))
    first = LAYOUT.first_code_id
    for ids in (
        [[BOI, first]],
        [[BOI, first + 1, first]],  # one longer, of other beginnings
        [[BOI, first, first, first, first + 20]],  # several tokens at once
        [[BOI, first], [7, BOI]],  # another batch, shorter
    ):
        ids = torch.tensor(ids)
        mask.advance(ids.to(device))
        check(mask, reference, ids)


@pytest.mark.parametrize("device", DEVICES)
def test_nothing_leaves_the_device_but_one_bit_a_step(device: str, monkeypatch) -> None:
    """After the first step the reference is asked no more."""
    bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
    tracker = OpenImageTracker(LAYOUT, bpe, GRID, BOI, EOI)
    mask = GridMask(tracker)
    ids = torch.tensor([[BOI], [5]])
    mask.advance(ids.to(device))
    monkeypatch.setattr(tracker, "states", None)
    for _ in range(10):
        ids = torch.cat([ids, torch.tensor([[LAYOUT.first_code_id], [5]])], dim=1)
        mask.advance(ids.to(device))
    assert mask.is_open.tolist() == [True, False]
