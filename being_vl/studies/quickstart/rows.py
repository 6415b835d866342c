"""Questions and image ids → training rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from ...evaluation.easyvqa import Question
from ...processing.processing_being_vl import BeingVLProcessor
from ...training.packing import IGNORE_INDEX, pack_shared_image


def training_rows(
    processor: BeingVLProcessor,
    questions: Mapping[int, Sequence[Question]],
    codes: Mapping[int, Any] | None,
) -> list[dict[str, Any]]:
    """One row an image, with all its questions; labels on the answers and their end token alone.

    Args:
        processor: tokenizes through its chat template.
        questions: image id → its questions.
        codes: image id → int (h, w) codes, or None for rows without images.
    """

    @cache
    def turn(question: str, answer: str) -> tuple[list[int], list[int]]:
        ids, answer_mask = tokenize_turn(processor, question, answer)
        return ids, [i if m else IGNORE_INDEX for i, m in zip(ids, answer_mask, strict=True)]

    bos = [processor.tokenizer.bos_token_id]
    images = {} if codes is None else image_ids(processor, {i: codes[i] for i in questions})
    return [
        pack_shared_image(bos + images.get(i, []), [turn(q.text, q.answer) for q in group])
        for i, group in questions.items()
    ]


def tokenize_turn(
    processor: BeingVLProcessor, question: str, answer: str
) -> tuple[list[int], list[int]]:
    """Ids and answer mask of a question and its answer, as the chat template has them after bos."""
    encoded = processor.tokenizer.apply_chat_template(
        conversation(question, answer, image=False),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    return list(encoded["input_ids"][1:]), list(encoded["assistant_masks"][1:])


def conversation(question: str, answer: str | None = None, *, image: bool) -> list[dict[str, Any]]:
    """Messages of one turn; without an answer, a prompt."""
    content = [{"type": "image"}] if image else []
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": question}]}]
    if answer is not None:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return messages


def image_ids(processor: BeingVLProcessor, codes: Mapping[int, Any]) -> dict[int, list[int]]:
    """Image id → token ids of the image between boi and eoi."""
    tokenizer = processor.tokenizer
    encoded = tokenizer.encode_codes(codes.values())
    boi, eoi = tokenizer.boi_token_id, tokenizer.eoi_token_id
    return {i: [boi, *token_ids.tolist(), eoi] for i, token_ids in zip(codes, encoded, strict=True)}
