"""Rows of one image and many questions: positions, mask, labels, and the same losses as rows apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import LAYOUT, being_vl_model

from being_vl.training.collators import SharedImageCollator, block_mask
from being_vl.training.packing import IGNORE_INDEX, pack_shared_image

_ = IGNORE_INDEX


def test_golden_row():
    """Prefix 1 7 8; turns (4 5 | 9 2) and (6 | 3): positions go on from 3 in each turn."""
    row = pack_shared_image([1, 7, 8], [([4, 5, 9, 2], [_, _, 9, 2]), ([6, 3], [_, 3])])
    assert row["input_ids"].tolist() == [1, 7, 8, 4, 5, 9, 2, 6, 3]
    assert row["labels"].tolist() == [_, _, _, _, _, 9, 2, _, 3]
    assert row["position_ids"].tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4]
    assert row["segment_ids"].tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert row["length"] == 9


def test_golden_mask():
    """Segments 0 1 2 and one of padding: a turn sees the prefix and itself, padding sees padding."""
    mask = block_mask(torch.tensor([[0, 1, 2, 2, -1]]))
    expected = ["1....", "11...", "1.1..", "1.11.", "....1"]
    assert ["".join("1" if cell else "." for cell in line) for line in mask[0, 0]] == expected


def random_turns(rng: np.random.Generator, count: int):
    turns = []
    for _number in range(count):
        ids = rng.integers(3, 100, rng.integers(3, 8)).tolist()
        turns.append((ids, [_] * (len(ids) - 2) + ids[-2:]))
    return turns


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_equals_apart(attention):
    rng = np.random.default_rng(0)
    model = being_vl_model()
    model.set_attn_implementation(attention)
    images = [rng.integers(LAYOUT.first_code_id, LAYOUT.size, n).tolist() for n in (4, 9)]
    turns = [random_turns(rng, n) for n in (3, 2)]
    collate = SharedImageCollator(pad_token_id=0)
    packed = collate([pack_shared_image([1, *i], t) for i, t in zip(images, turns, strict=True)])
    apart = collate(
        [pack_shared_image([1, *i], [t]) for i, ts in zip(images, turns, strict=True) for t in ts]
    )
    with torch.no_grad():
        outputs = [model(**batch, loss_logits_only=True) for batch in (packed, apart)]
    torch.testing.assert_close(outputs[0].logits, outputs[1].logits, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)

    plain_loss = (
        0.0  # and as a plain causal model sees each question, with no mask and no positions
    )
    count = 0
    for image, group in zip(images, turns, strict=True):
        for ids, labels in group:
            row = torch.tensor([[1, *image, *ids]])
            target = torch.tensor([[_] * (1 + len(image)) + labels])
            with torch.no_grad():
                plain_loss += float(model(input_ids=row, labels=target).loss) * 2
            count += 2
    assert plain_loss / count == pytest.approx(float(outputs[0].loss), rel=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="at least one token"):
        pack_shared_image([], [])
    with pytest.raises(ValueError, match="turn 2 has 2 ids but 1 labels"):
        pack_shared_image([1], [([4], [_]), ([4, 5], [_])])
    with pytest.raises(ValueError, match="cannot be a label"):
        pack_shared_image([1], [([4, 5], [_, 5]), ([4, 5], [4, 5])])
