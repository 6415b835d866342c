"""Checks see what the tokenizer sees: special tokens that texts spell alone, in two parts, or in any mixture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from checkpoint_fixtures import tiny_checkpoint
from data_fixtures import make_checkpoint, make_codes
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from being_vl.cli import main as being_vl_command
from being_vl.data import TokenizeSettings
from being_vl.data.conversations import parse_sample
from being_vl.data.tokenize_chunk import ChunkTokenizer


@pytest.fixture(scope="module")
def processor():
    return tiny_checkpoint()[1]


@pytest.fixture(scope="module")
def tokenizer_of_chunks(processor):
    return ChunkTokenizer(processor, None, TokenizeSettings(source="test"))


def spelled(chunks, processor, parts):
    row = {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": part} for part in parts]},
            {"role": "assistant", "content": "yes"},
        ]
    }
    conversation = parse_sample(row, where="row", number=0)
    (encoded,) = chunks._encode([conversation], {})
    return chunks._control.find(conversation.messages, encoded[0])


@given(first=st.text("<|visual_0123>boi eot", max_size=20), second=st.text("|>_d3", max_size=6))
@settings(max_examples=150, deadline=None)
def test_two_parts_are_what_their_text_together_is(tokenizer_of_chunks, processor, first, second):
    assume(first.strip() or second.strip())
    tokenizer = processor.tokenizer
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    joined = special & set(tokenizer(first + second, add_special_tokens=False).input_ids)
    assert (spelled(tokenizer_of_chunks, processor, [first, second]) is not None) == bool(joined)


@pytest.mark.parametrize(
    ("parts", "token"),
    [
        (["<|eot", "_id|> now"], "<|eot_id|>"),
        (["<|visu", "al_3|>"], "<|visual_3|>"),
        (["a<|visual_3|>b"], "<|visual_3|>"),
        (["<|begin_of", "_text|>"], "<|begin_of_text|>"),
        (["<|eot_ id|>", "</", "s>"], None),
    ],
)
def test_a_token_in_two_halves_is_named(tokenizer_of_chunks, processor, parts, token):
    assert spelled(tokenizer_of_chunks, processor, parts) == token


def test_a_placeholder_in_two_halves_is_refused():
    content = [{"type": "text", "text": "<ima"}, {"type": "text", "text": "ge> what?"}]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    }
    with pytest.raises(ValueError, match="must not spell <image>"):
        parse_sample(row, where="row", number=0)


def test_the_command_names_the_row_and_skips_it_when_told(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    grids = make_codes(tmp_path / "codes")
    halves = [
        {"type": "image"},
        {"type": "text", "text": "<|visu"},
        {"type": "text", "text": "al_3|>"},
    ]
    rows = [
        {"id": name, "image": next(iter(grids)),
         "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]}
        for name, content in (("good", halves[:1]), ("bad", halves), ("fine", "no <image>"))
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    command = [
        "tokenize", "--checkpoint", str(checkpoint), "--data", str(tmp_path / "rows.json"),
        "--codes", str(tmp_path / "codes"), "--output", str(tmp_path / "out"), "--workers", "0",
    ]  # fmt: skip
    assert being_vl_command(command) == 2
    assert "sample 1: its text spells the special token '<|visual_3|>'" in capsys.readouterr().err
    assert being_vl_command([*command[:-4], "--output", str(tmp_path / "new"), "--workers", "0",
                             "--on-control-token", "skip"]) == 0  # fmt: skip
    skipped = [json.loads(line) for line in (tmp_path / "new/skipped.jsonl").open()]
    assert [line["id"] for line in skipped] == ["bad"]


def test_what_an_image_holds_is_no_spelling(processor, tokenizer_of_chunks):
    grid = np.zeros((3, 4), np.int32)
    row = {
        "image": "a",
        "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "a"}],
    }
    conversation = parse_sample(row, where="row", number=0)
    (encoded,) = tokenizer_of_chunks._encode([conversation], {("image", "a"): grid})
    assert tokenizer_of_chunks._control.find(conversation.messages, encoded[0]) is None
