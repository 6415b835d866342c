"""The id layout: the one place of its arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from being_vl import VocabularyLayout

SIZES = st.integers(0, 50)


def test_authors_layout():
    """Llama 3.1, five special tokens, K = M = 8192: 128256 + 5 = 128261, + 8192 = 136453, + 8192 = 144645."""
    layout = VocabularyLayout(128256, 5, 8192, 8192)
    assert (layout.first_code_id, layout.first_merge_id, layout.size) == (128261, 136453, 144645)
    assert layout.token_id(0) == 128261
    assert layout.token_id(8192) == 136453
    assert layout.visual_id(144644) == 16383


@given(SIZES, SIZES, SIZES, SIZES)
def test_every_id_has_one_kind(text, special, codes, merges):
    layout = VocabularyLayout(text, special, codes, merges)
    kinds = [layout.kind(i) for i in range(layout.size)]
    assert kinds == ["text"] * text + ["special"] * special + ["code"] * codes + ["merge"] * merges
    for visual_id in range(layout.num_image_tokens):
        assert layout.visual_id(layout.token_id(visual_id)) == visual_id


@pytest.mark.parametrize(
    "call",
    [
        lambda layout: layout.token_id(9),
        lambda layout: layout.token_id(-1),
        lambda layout: layout.visual_id(6),
        lambda layout: layout.visual_id(16),
        lambda layout: layout.kind(16),
    ],
)
def test_out_of_range_names_the_value(call):
    with pytest.raises(ValueError, match="is not"):
        call(VocabularyLayout(5, 2, 4, 5))


def test_negative_size():
    with pytest.raises(ValueError, match="num_merges must not be negative, got -1"):
        VocabularyLayout(1, 1, 1, -1)
