"""lmms-eval's chat messages → prompts and images; its generation options → those of `generate`.

Source: the formats of lmms-eval 0.7. Kept apart from the model class, so that it works, and is tested, without
lmms-eval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...processing.processing_being_vl import BeingVLProcessor

_SAMPLING = ("temperature", "top_k", "top_p")
_OPTIONS = ("max_new_tokens", "min_new_tokens", "num_beams", "repetition_penalty", *_SAMPLING)
DEFAULT_MAX_NEW_TOKENS = 1024


def read_messages(
    processor: BeingVLProcessor, messages: Sequence[Mapping[str, Any]]
) -> tuple[str, list[Any]]:
    """A conversation → its prompt, and its images (PIL, or paths) in order."""
    conversation, images = [], []
    for message in messages:
        parts = message["content"]
        if isinstance(parts, str):
            parts = [{"type": "text", "text": parts}]
        content = []
        for part in parts:
            kind = part["type"]
            if kind == "image":
                images.append(part["url"])
                content.append({"type": "image"})
            elif kind == "text":
                content.append({"type": "text", "text": part["text"]})
            else:
                raise ValueError(f"a message has a part of type {kind!r}; image and text are known")
        conversation.append({"role": message["role"], "content": content})
    prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    return prompt, images


def generation_options(task_options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `generate` for a task's `generation_kwargs`.

    Tasks ask for greedy decoding by `temperature: 0`, which `generate` refuses; the options of sampling go
    where nothing is sampled. `until` is for [`cut_at`], not for `generate`.
    """
    options = {name: task_options[name] for name in _OPTIONS if task_options.get(name) is not None}
    temperature = options.get("temperature", 0)
    sample = temperature > 0 and task_options.get("do_sample", True)
    if not sample:
        options = {name: value for name, value in options.items() if name not in _SAMPLING}
    return {"max_new_tokens": DEFAULT_MAX_NEW_TOKENS, **options, "do_sample": bool(sample)}


def cut_at(answer: str, until: str | Sequence[str] | None) -> str:
    """The answer up to the first of the texts that end it."""
    for end in [until] if isinstance(until, str) else until or ():
        if end:
            answer = answer.partition(end)[0]
    return answer
