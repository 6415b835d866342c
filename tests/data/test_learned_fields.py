"""Fields that change what is learned are honoured or refused by name, never dropped."""

from __future__ import annotations

import pytest
from checkpoint_fixtures import tiny_checkpoint

from being_vl.data import TokenizeSettings
from being_vl.data.conversations import parse_sample
from being_vl.data.tokenize_chunk import ChunkTokenizer
from being_vl.data.tokenized import FEATURES


def parse(row, **options):
    return parse_sample(row, where="row", number=0, **options)


def chat(*turns, **row):
    return {
        "conversations": [{"from": role, "value": text, **more} for role, text, more in turns],
        **row,
    }


def learned_text(processor, row) -> str:
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="test"))
    conversation = parse(row)
    ids, mask = chunks._check(conversation, "row", chunks._encode([conversation], {})[0], {}, {})
    return processor.tokenizer.decode(ids[mask != 0])


@pytest.mark.parametrize(
    "off", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}, {"loss": 0}]
)
def test_a_turn_of_weight_0_is_read_and_not_learned(off):
    processor = tiny_checkpoint()[1]
    row = chat(
        ("human", "q", {}),
        ("gpt", "wrong", off),
        ("human", "r", {}),
        ("gpt", "right", {"weight": 1}),
    )
    assert learned_text(processor, row) == "right<|eot_id|>"
    both = chat(("human", "q", {}), ("gpt", "wrong", {}), ("human", "r", {}), ("gpt", "right", {}))
    assert learned_text(processor, both) == "wrong<|eot_id|>right<|eot_id|>"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (chat(("gpt", "a", {"weight": 0.5})), r"conversations\[0\].weight must be 0 or 1, got 0.5"),
        (chat(("gpt", "a", {"weight": 0})), "must have a turn of the assistant that is learned"),
        (chat(("gpt", "a", {}), audio="x.wav"), "row: audio is not read here, got 'x.wav'"),
        (chat(("gpt", "a", {}), audios=["x"]), "row: audios is not read here"),
        (chat(("human", "<audio>\nWhat?", {}), ("gpt", "a", {})), "must not spell <audio>"),
        (chat(("human", "q", {}), ("gpt", "", {})), r"conversations\[1\].value is empty: its end alone"),
        (chat(("human", "q", {}), ("gpt", " \n", {})), "is empty"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": 1}]}]}, "tool_calls is not read"),
        ({"messages": [{"role": "assistant", "content": []}]}, "is empty"),
        ({"messages": [{"role": "assistant", "content": "a", "thinking": "b"}]}, "thinking is not read"),
        ({"messages": [{"role": "assistant", "content": "a", "reasoning": "b"}]}, "reasoning is not read"),
        (chat(("gpt", "a", {}), tools='[{"name": "f"}]'), "row: tools is not read here"),
        (chat(("gpt", "a", {}), objects={"bbox": [[1, 2, 3, 4]]}), "row: objects is not read here"),
        (chat(("gpt", "a", {}), loss_mask=[0]), "row: loss_mask is not read here"),
        (chat(("gpt", "a", {}), weight=0), "row: its weight is 0: nothing of it is to be learned"),
        (chat(("gpt", "a", {}), weight=0.5), "row.weight must be 0 or 1, got 0.5"),
        (chat(("system", "s", {}), ("gpt", "a", {}), system="t"), "system is said twice"),
        (chat(("gpt", "a", {}), system=["t"]), "system.content.0. must be a part"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_by_name(row, words):
    with pytest.raises(ValueError, match=words):
        parse(row)


@pytest.mark.parametrize("field", ["conversations", "messages"])
def test_a_column_of_system_prompts_is_a_turn(field):
    """As ShareGPT's and LLaMA-Factory's data have it."""
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    system = {"role": "system", "content": "Be brief."}
    assert parse({field: turns, "system": "Be brief."}) == parse({field: [system, *turns]})
    assert (
        parse({field: turns, "system": ""})
        == parse({field: turns, "system": None})
        == parse({field: turns})
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_newline_beside_a_placeholder_goes_whoever_wrote_it(newline):
    for text in (f"<image>{newline}What?", f"What?{newline}<image>"):
        row = chat(("human", text, {}), ("gpt", "a", {}), image="b.png")
        parts = [p.get("text", "<image>") for p in parse(row).messages[0]["content"]]
        assert sorted(parts) == ["<image>", "What?"]


def test_nulls_are_nothing():
    row = chat(
        ("human", "q", {"weight": None}),
        ("gpt", "a", {"tool_calls": None}),
        video=None,
        image=None,
        tools="[]",
        objects={},
        loss_mask=[],
    )
    assert parse(row).learned == (True,)


def test_an_image_part_that_contradicts_the_column_is_refused():
    content = [{"type": "image", "image": "b.png"}, {"type": "text", "text": "?"}]
    row = {"image": "a.png", "messages": [{"role": "user", "content": content},
                                          {"role": "assistant", "content": "a"}]}  # fmt: skip
    with pytest.raises(ValueError, match=r"image says 'a.png', but the image's part says 'b.png'"):
        parse(row)
    row["image"] = "b.png"
    assert parse(row).image_ids == ("b.png",)


def test_a_template_that_joins_turns_cannot_leave_one_out():
    """Two answers in one marked span: which half is not to be learned cannot be told."""
    processor = tiny_checkpoint()[1]
    processor.chat_template = (
        "{% generation %}{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}"
        "{% endfor %}{% endgeneration %}"
    )
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="test", on_bad_row="skip"))
    row = chat(("gpt", "wrong", {"weight": 0}), ("gpt", "right", {}))
    shard = chunks([(0, row, "row")])
    assert chunks.report.counts["skipped_samples"] == 1 and FEATURES and shard
    assert "marks 1 turns of the 2" in chunks.report.skipped[0]["reason"]
