"""messages → messages that a chat template renders whole: what it would drop without a word is an error.

A Jinja template passes over a part whose type it does not know and prints None as "None". So the parts are
checked before it sees them. Forms: transformers' parts, OpenAI's `image_url`, and rows of a data set, whose
parts hold a None for every key that another part has.
"""

import re
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import transformers
from packaging.version import Version
from transformers import ProcessorMixin

from ..files import shown

_KEYS = {
    "text": {"type", "text"},
    "image": {"type", "image", "url", "path", "base64"},
    "image_url": {"type", "image_url"},
    "video": {"type", "video", "url", "path"},
}


def checked_messages(
    conversation: Any, template: str, *, join_texts: bool = False, videos: bool = True
) -> Any:
    """A conversation, or a list of them, as it is but for keys that hold None.

    Args:
        conversation: messages with a role and a content: a text, or a list of parts.
        template: Jinja source; what a message may hold beside its content depends on it.
        join_texts: texts that stand side by side in a message become one part, so that whoever looks for
            control tokens in it sees what the tokenizer will see.
        videos: whether the vocabulary has a token for them.

    Raises:
        ValueError: a message or part that would not be rendered; its place and the reason are named.
    """
    if isinstance(conversation, (list, tuple)) and conversation:
        if isinstance(conversation[0], (list, tuple)):
            return [
                checked_messages(c, template, join_texts=join_texts, videos=videos)
                for c in conversation
            ]
        if isinstance(conversation[0], Mapping):
            return [
                _message(message, f"messages[{index}]", template, join_texts, videos)
                for index, message in enumerate(conversation)
            ]
    return conversation  # transformers says what is wrong with it


def template_source(own: Any, chat_template: str | None = None, tools: Any = None) -> str:
    """The Jinja source that a processor renders, whatever the tools: see its `apply_chat_template`.

    Args:
        own: the processor's: a source, names and sources, or None.
        chat_template: a name of these, or a source.
    """
    if isinstance(own, Mapping):
        return own.get("default" if chat_template is None else chat_template, chat_template) or ""
    return (own if chat_template is None else chat_template) or ""


def require_sanitizing() -> None:
    """Fail where transformers would pass over `sanitize_control_tokens`, which guards against hostile text.

    Raises:
        ValueError: the installed version does not have it.
    """
    if "sanitize_control_tokens" not in signature(ProcessorMixin.apply_chat_template).parameters:
        raise ValueError(
            f"sanitize_control_tokens needs transformers 5.20, and this is {transformers.__version__}"
        )


def require_assistant_masks() -> None:
    """Fail where transformers marks what the assistant says in wrong places once an image is expanded.

    Raises:
        ValueError: the installed version is older than 5.18.
    """
    if Version(transformers.__version__).release < (5, 18):
        raise ValueError(
            f"return_assistant_tokens_mask needs transformers 5.18, and this is {transformers.__version__}"
        )


def _message(
    message: Any, where: str, template: str, join_texts: bool, videos: bool
) -> dict[str, Any]:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"{where} must have a role, got {shown(message)}")
    kept = {key: value for key, value in message.items() if value is not None}
    if kept.get("tool_calls") and "tool_calls" not in template:
        raise ValueError(f"{where}.tool_calls: the chat template does not render tool calls")
    content = kept.get("content")
    handles_none = re.search(r"content['\"\]]* is (not )?(defined|none)", template)
    if content is None and not kept.get("tool_calls") and not handles_none:
        raise ValueError(f"{where}.content is None; an empty turn has the content ''")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        parts = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
        for index, part in enumerate(parts):
            if part["type"] == "video" and not (videos and "video_token" in template):
                lacks = "chat template" if videos else "vocabulary"
                raise ValueError(
                    f"{where}.content[{index}]: a video, but the {lacks} has no video_token"
                )
        kept["content"] = _joined(parts) if join_texts else parts
    elif content is not None and not isinstance(content, str):
        raise ValueError(f"{where}.content must be a text or a list of parts, got {shown(content)}")
    return kept


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise ValueError(
            f'{where} must be a part such as {{"type": "text", "text": …}}, got {shown(part)}'
        )
    kept = {key: value for key, value in part.items() if value is not None}
    kind = kept.get("type")
    if kind not in _KEYS:
        raise ValueError(f"{where}.type must be one of {', '.join(_KEYS)}, got {kind!r}")
    unknown = sorted(map(str, kept.keys() - _KEYS[kind]))
    if unknown:
        raise ValueError(f"{where}: a part of type {kind} has no key {unknown[0]!r}")
    if kind == "text" and not isinstance(kept.get("text"), str):
        raise ValueError(f"{where}.text must be a text, got {shown(kept.get('text'))}")
    if kind == "image_url" and "image_url" not in kept:
        raise ValueError(f"{where}.image_url is missing")
    if kind in ("image", "video") and len(kept) > 2:
        raise ValueError(f"{where}: one {kind} is named once, got {sorted(kept.keys() - {'type'})}")
    return kept


def _joined(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    joined: list[dict[str, Any]] = []
    for part in parts:
        if joined and part["type"] == joined[-1]["type"] == "text":
            joined[-1] = {"type": "text", "text": joined[-1]["text"] + part["text"]}
        else:
            joined.append(part)
    return joined
