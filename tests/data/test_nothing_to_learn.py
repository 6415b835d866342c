"""A template, a sample, a data set from which nothing is learned: each an error, or counted aloud."""

from __future__ import annotations

import warnings

import datasets
import numpy as np
import pytest
from checkpoint_fixtures import tiny_checkpoint

from being_vl.data import TokenizeSettings, mix
from being_vl.data.mixtures import load_mixture
from being_vl.data.tokenize_chunk import ChunkTokenizer


def test_a_template_that_marks_nothing_is_refused_at_once():
    processor = tiny_checkpoint()[1]
    processor.chat_template = processor.chat_template.replace("generation", "if true", 1).replace(
        "endgeneration", "endif"
    )
    with pytest.raises(ValueError, match=r"no \{% generation %\} around what the assistant says"):
        ChunkTokenizer(processor, None, TokenizeSettings(source="x"))


def test_the_default_of_several_templates_must_mark_it():
    processor = tiny_checkpoint()[1]
    marks = processor.chat_template
    processor.chat_template = {"default": "{{ messages[0].content }}", "other": marks}
    with pytest.raises(ValueError, match=r"no \{% generation %\} around what the assistant says"):
        ChunkTokenizer(processor, None, TokenizeSettings(source="x"))
    processor.chat_template = {"default": marks}
    ChunkTokenizer(processor, None, TokenizeSettings(source="x"))


def test_an_error_after_the_checks_is_no_rows_fault(monkeypatch):
    """Else a row could be in the shard and be counted as skipped."""
    processor = tiny_checkpoint()[1]
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="x", on_bad_row="skip"))

    def fail(*args):
        raise ValueError("a fault of the count")

    monkeypatch.setattr(chunks, "_count", fail)
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    with pytest.raises(ValueError, match="a fault of the count"):
        chunks([(0, row, "row")])


def test_a_sample_of_which_no_token_is_marked_is_refused():
    processor = tiny_checkpoint()[1]
    processor.chat_template = processor.chat_template.replace("'assistant'", "'nobody'")
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="x"))
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
    with pytest.raises(ValueError, match="row: the chat template marks no token of it"):
        chunks([(0, row, "row")])
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="x", on_bad_row="skip"))
    chunks([(0, row, "row")])
    assert chunks.report.counts["skipped_samples"] == 1 and chunks.report.counts["samples"] == 0


def test_ids_count_what_is_learned():
    processor = tiny_checkpoint()[1]
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="x"))
    row = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "weight": 0},
                             {"from": "gpt", "value": "bc"}]}  # fmt: skip
    chunks([(0, row, "row")])
    answer = processor.tokenizer("bc<|eot_id|>", add_special_tokens=False).input_ids
    assert chunks.report.counts["assistant_tokens"] == len(np.asarray(answer))


def test_an_answer_that_was_its_image_is_left_out_with_it():
    """--on-missing text takes the image away; the end of the turn alone would be learned."""
    processor = tiny_checkpoint()[1]
    chunks = ChunkTokenizer(processor, None, TokenizeSettings(source="x", on_missing="text"))
    turns = [{"from": "human", "value": "Draw."}, {"from": "gpt", "value": "<image>"}]
    chunks([(0, {"image": "a", "conversations": turns}, "row")])
    assert chunks.report.counts["samples"] == 0
    assert (
        chunks.report.skipped[0]["reason"]
        == "no --codes given, and it is all that the assistant says"
    )


def test_a_source_of_which_a_mixture_takes_nothing_is_named():
    sources = {name: datasets.Dataset.from_dict({"a": range(10)}) for name in ("one", "two")}
    with pytest.warns(
        UserWarning, match="the mixture takes no sample of 'two': 0.01 of 10 samples"
    ):
        assert len(mix(sources, {"one": 1, "two": 0.01})) == 10


def test_a_source_without_an_amount_is_named():
    """Of the one stage of a mixture; of several, each may leave sources to the others."""
    sources = {name: datasets.Dataset.from_dict({"a": range(10)}) for name in ("one", "two")}

    def load(**parts):
        spec = {"sources": {name: name for name in sources}, **parts}
        return load_mixture(spec, lambda folder: (sources[folder.name], ""))

    with pytest.warns(UserWarning, match="no amount is given for two: left out"):
        assert len(load(weights={"one": 1})) == 10
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(load(stages={"sft": {"weights": {"one": 1}}})) == 10
