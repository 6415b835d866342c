"""Labels, packing and collation: exact on small cases, and the same losses packed as apart."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_fixtures import BOI, CODEBOOK_SIZE, EOI, GRID, LAYOUT, MERGES, PAD, being_vl_model
from torch.nn.attention.flex_attention import flex_attention
from training_fixtures import rows_of

from being_vl import ImageBPE
from being_vl.training.collators import (
    FlatCollator,
    PaddingCollator,
    SharedImageCollator,
    block_mask,
    flex_block_mask,
)
from being_vl.training.logs import CountingCollator, kinds_of
from being_vl.training.packing import (
    PackedSamples,
    SharedImageSamples,
    best_fit,
    pack_samples,
    shared_prefix,
)
from being_vl.training.samples import IGNORE_INDEX, TokenizedSamples, make_labels

_ = IGNORE_INDEX
CODE, MERGE = LAYOUT.first_code_id, LAYOUT.first_merge_id


def sample(*, image: int, question: int, rng: np.random.Generator) -> dict:
    """bos, boi, the image (the same for the same number), eoi, a question, an answer that is spoken."""
    grid = np.random.default_rng(image).integers(0, 5, GRID)
    pixels = CODE + ImageBPE(MERGES, CODEBOOK_SIZE).encode(grid)
    ids = [1, BOI, *pixels, EOI, *rng.integers(3, 90, 2 + question % 4), *rng.integers(3, 90, 2)]
    return {"id": f"{image}-{question}", "input_ids": ids, "spoken": 2}


def some_samples(images: int = 3, questions: int = 4, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    return [
        sample(image=i, question=q, rng=rng) for q in range(questions) for i in range(images)
    ] + [{"id": "text", "input_ids": [1, 5, 6, 7, 8], "spoken": 1}]


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    "labels, expected",
    [
        ("assistant", [_, _, _, _, _, _, 8, 9]),
        ("text", [_, _, _, _, _, 7, 8, 9]),
        ("all", [_, BOI, CODE, MERGE, EOI, 7, 8, 9]),
    ],
)
def test_labels_id_by_id(labels, expected):
    """bos, boi, a code, a merge, eoi, then 7 8 9, of which the assistant says 8 9."""
    ids = np.array([1, BOI, CODE, MERGE, EOI, 7, 8, 9])
    spoken = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    assert make_labels(ids, spoken, LAYOUT, labels).tolist() == expected


def test_an_image_that_the_assistant_draws_is_labelled():
    ids = np.array([1, 7, BOI, CODE, EOI])
    spoken = np.array([0, 0, 1, 1, 1])
    assert make_labels(ids, spoken, LAYOUT, "assistant").tolist() == [_, _, BOI, CODE, EOI]


def test_labels_that_cannot_be():
    with pytest.raises(ValueError, match="must be one of assistant, text, all, got 'answers'"):
        make_labels(np.array([1]), np.array([1]), LAYOUT, "answers")
    with pytest.raises(ValueError, match="one length, got 2 and 1"):
        make_labels(np.array([1, 2]), np.array([1]), LAYOUT, "all")


def test_kinds():
    ids = torch.tensor([[0, LAYOUT.text_size, EOI], [CODE, MERGE - 1, MERGE]])
    assert kinds_of(ids, LAYOUT).tolist() == [[0, 0, 0], [1, 1, 2]]


# ---------------------------------------------------------------- bins


def test_best_fit_worked_by_hand():
    """Capacity 10. 7 opens bin 0 (3 free), 6 bin 1 (4 free), 4 fills bin 1, 3 fills bin 0, 2 opens bin 2."""
    assert [b.tolist() for b in best_fit([2, 7, 3, 6, 4], 10)] == [[1, 2], [3, 4], [0]]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 20), max_size=60), st.integers(20, 40))
def test_best_fit_keeps_every_item_whole(lengths, capacity):
    bins = best_fit(lengths, capacity)
    assert sorted(i for b in bins for i in b.tolist()) == list(range(len(lengths)))
    filled = [sum(lengths[i] for i in b) for b in bins]
    assert all(total <= capacity for total in filled)
    # Two bins that are half empty would have been one.
    assert sum(2 * total <= capacity for total in filled if total) <= 1


def test_best_fit_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="item 1 has length 11, but a bin holds 10"):
        best_fit([3, 11], 10)


def test_many_items_are_quick():
    lengths = np.random.default_rng(0).integers(20, 600, 20_000)
    bins = best_fit(lengths, 2048)
    assert len(bins) <= -(-lengths.sum() // 2048) * 1.01


# ---------------------------------------------------------------- rows


def test_long_samples_are_named_or_dropped():
    data = rows_of([{"id": "short", "input_ids": [1, 2], "spoken": 1},
                    {"id": "long", "input_ids": [1] * 9, "spoken": 1}])  # fmt: skip
    with pytest.raises(
        ValueError, match=r"sample 1 \(id 'long'\) has 9 tokens, but max_length is 8"
    ):
        TokenizedSamples(data, LAYOUT, max_length=8)
    rows = TokenizedSamples(data, LAYOUT, max_length=8, drop_long=True)
    assert len(rows) == 1 and rows[0]["input_ids"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="no samples to train on"):
        TokenizedSamples(data, LAYOUT, max_length=1, drop_long=True)
    with pytest.raises(ValueError, match="no column 'assistant_masks'"):
        TokenizedSamples(data.remove_columns("assistant_masks"), LAYOUT)


def test_packed_samples_hold_every_token_once():
    samples = some_samples()
    rows = TokenizedSamples(rows_of(samples), LAYOUT)
    packed = PackedSamples(rows, 80)
    seen = []
    for number in range(len(packed)):
        row = packed[number]
        assert row["length"] == packed.lengths[number] <= 80
        starts = np.flatnonzero(row["position_ids"] == 0).tolist()
        seen += [part.tolist() for part in np.split(row["input_ids"], starts[1:])]
    assert sorted(seen) == sorted(list(map(int, s["input_ids"])) for s in samples)
    assert len(packed) < len(samples) / 2


def test_shared_rows_hold_each_image_once():
    samples = some_samples()
    rows = TokenizedSamples(rows_of(samples), LAYOUT)
    shared = SharedImageSamples(rows, eoi_token_id=EOI, max_length=90)
    assert len(shared) == 4  # three images and the text
    for number in range(len(shared)):
        row = shared[number]
        assert (row["input_ids"] == BOI).sum() <= 1
        assert row["length"] == shared.lengths[number] == len(row["input_ids"])
    assert sum(shared[n]["segment_ids"].max() for n in range(4)) == len(samples)
    short = SharedImageSamples(rows, eoi_token_id=EOI, max_length=36)
    assert len(short) > 4 and short.lengths.max() <= 36
    assert shared_prefix(np.array([1, 5, 6]), EOI) == 1


def test_shared_rows_need_labels_behind_the_image():
    data = rows_of([{"id": "drawn", "input_ids": [1, 5, BOI, CODE, EOI], "spoken": 3}])
    with pytest.raises(ValueError, match="needs labels=assistant, got 'all'"):
        SharedImageSamples(
            TokenizedSamples(data, LAYOUT, labels="all"), eoi_token_id=EOI, max_length=9
        )
    rows = SharedImageSamples(TokenizedSamples(data, LAYOUT), eoi_token_id=EOI, max_length=9)
    with pytest.raises(
        ValueError, match=r"the assistant speaks before its end in one of the samples \[0\]"
    ):
        rows[0]


def test_the_first_token_of_a_sample_is_no_label():
    with pytest.raises(ValueError, match="sample 1: its first token cannot be a label"):
        pack_samples([{"input_ids": [1, 2], "labels": [_, 2]}, {"input_ids": [1], "labels": [1]}])
    with pytest.raises(ValueError, match="at least one sample"):
        pack_samples([])


# ---------------------------------------------------------------- the same losses


def losses(model, batch) -> torch.Tensor:
    """The loss of each label, float (num_labels,)."""
    labels = batch.pop("labels")
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=_)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
    values = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), shifted.flatten(), reduction="none"
    )
    return values[shifted.flatten() != _]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("packing", ["samples", "flat", "shared"])
@pytest.mark.parametrize("positions", [None, "grid"])
def test_packed_losses_equal_those_apart(attention, packing, positions):
    """Every label's loss, whatever shares its row, and whatever padding stands behind it."""
    model = being_vl_model(image_positions=positions) if positions else being_vl_model()
    model.set_attn_implementation(attention)
    rows = TokenizedSamples(rows_of(some_samples()), LAYOUT)
    apart = torch.cat([losses(model, PaddingCollator(PAD)([rows[i]])) for i in range(len(rows))])
    together = losses(model, PaddingCollator(PAD)([rows[i] for i in range(len(rows))]))
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    if packing == "shared":
        dataset, collate = (
            SharedImageSamples(rows, eoi_token_id=EOI, max_length=90),
            SharedImageCollator(PAD),
        )
    else:
        dataset = PackedSamples(rows, 80)
        collate = PaddingCollator(PAD) if packing == "samples" else FlatCollator()
    packed = losses(model, collate([dataset[i] for i in range(len(dataset))]))
    assert len(packed) == len(apart)
    torch.testing.assert_close(packed.sort().values, apart.sort().values, atol=1e-5, rtol=1e-5)


def test_a_neighbour_in_the_row_changes_nothing():
    """Other tokens in the first sample leave the second's logits as they are, bit for bit."""
    model = being_vl_model()
    first = {"input_ids": np.array([1, 5, 6, 7]), "labels": np.array([_, _, _, 7])}
    other = {"input_ids": np.array([1, 50, 60, 70]), "labels": np.array([_, _, _, 70])}
    second = {"input_ids": np.array([1, 8, 9]), "labels": np.array([_, _, 9])}
    logits = []
    for neighbour in (first, other):
        batch = PaddingCollator(PAD)([pack_samples([neighbour, second])])
        batch.pop("labels")
        with torch.no_grad():
            logits.append(model(**batch, use_cache=False).logits[0, 4:])
    assert torch.equal(*logits)


def test_flex_mask_equals_the_dense_one():
    segments = torch.tensor([[0, 0, 1, 1, 2, -1], [0, 1, 1, 2, 2, 2]])
    mask = flex_block_mask(segments)
    query, key = torch.meshgrid(torch.arange(6), torch.arange(6), indexing="ij")
    for row in range(2):
        allowed = mask.mask_mod(torch.tensor(row), torch.tensor(0), query, key)
        assert torch.equal(allowed, block_mask(segments)[row, 0])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_flex_attention_gives_the_losses_of_sdpa(device, monkeypatch):
    """On a CPU in PyTorch's plain form, without kernels, which would be compiled for a minute."""
    if device == "cpu":
        plain = "transformers.integrations.flex_attention.compile_friendly_flex_attention"
        monkeypatch.setattr(
            plain, lambda *qkv, training, **options: flex_attention(*qkv, **options)
        )
    model = being_vl_model(head_dim=16).to(device)
    rows = TokenizedSamples(rows_of(some_samples()), LAYOUT)
    shared = SharedImageSamples(rows, eoi_token_id=EOI, max_length=90)
    samples = [shared[i] for i in range(len(shared))]
    dense = {k: v.to(device) for k, v in SharedImageCollator(PAD)(samples).items()}
    flex = {k: v.to(device) for k, v in SharedImageCollator(PAD, "flex")(samples).items()}
    flex["attention_mask"] = flex_block_mask(flex.pop("segment_ids"))
    expected = losses(model, dense)
    model.set_attn_implementation("flex_attention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the missing compilation
        found = losses(model, flex)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_counts_of_a_batch():
    """Two samples padded to one length: 9 tokens and 5, one image of a code and two merges."""
    rows = [
        {"input_ids": np.array([1, BOI, CODE, MERGE, MERGE, EOI, 7, 8, 9])},
        {"input_ids": np.array([1, 5, 6, 7, 8])},
    ]
    for row in rows:
        row["labels"] = make_labels(
            row["input_ids"], np.ones(9)[: len(row["input_ids"])], LAYOUT, "all"
        )
    counts = CountingCollator(PaddingCollator(PAD), LAYOUT, BOI)(rows)["counts"]
    assert (counts.tokens, counts.images, counts.codes, counts.merges) == (14, 1, 1, 2)
    assert counts.labels == (9, 1, 2)
