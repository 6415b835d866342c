"""rows of a data set → conversations: messages of the chat template, and the ids of their images.

Source: the JSON of LLaVA (`id`, `image`, `conversations` of `from` and `value` with `<image>`), and the
`messages` of TRL and the Hub (`role`, `content` as text or as parts). It differs from LLaVA's own reader in
that a row is checked before it is used, and that an image whose placeholder is missing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..processing.tokenization_being_vl import BeingVLTokenizer

PLACEHOLDER = "<image>"
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}  # fmt: skip

# LLaVA writes a newline between an image and its question. A chat message of an image part and a text part
# has none, so it goes: what is asked after training is then spelled as it was in training.
_PLACEHOLDER_AND_NEWLINE = re.compile(rf"\n?{PLACEHOLDER}\n?")


@dataclass(frozen=True)
class Conversation:
    """A row, checked.

    Attributes:
        id: the row's own, or its number.
        image_ids: one for each image part of the messages, in order.
        messages: `[{"role": …, "content": [{"type": "image"} or {"type": "text", "text": …}, …]}, …]`.
    """

    id: str
    image_ids: tuple[str, ...]
    messages: list[dict[str, Any]]

    def without_images(self, missing: Iterable[str]) -> Conversation:
        """The same conversation without the images of these ids."""
        missing = set(missing)
        ids = iter(self.image_ids)
        messages = [
            {
                **message,
                "content": [
                    part
                    for part in message["content"]
                    if part["type"] != "image" or next(ids) not in missing
                ],
            }
            for message in self.messages
        ]
        kept = tuple(image_id for image_id in self.image_ids if image_id not in missing)
        return Conversation(self.id, kept, messages)


def parse_sample(row: Any, *, where: str, number: int) -> Conversation:
    """Read a row of LLaVA's form (`conversations`) or of chat form (`messages`).

    Args:
        row: a mapping. Its images are in `image` or `images`: an id, a list of ids, or nothing.
        where: names the row in errors: the file and the line or row.
        number: the row's number, its id where it has none.

    Raises:
        ValueError: a field is missing, of another type, or out of range, or the placeholders are not as
            many as the images; the message names row, field, rule and value.
    """
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: must be an object, got {_shown(row)}")
    row_id = row.get("id")
    if row_id is not None and not isinstance(row_id, (str, int)):
        raise ValueError(f"{where}: id must be text or an integer, got {_shown(row_id)}")
    forms = [name for name in ("conversations", "messages") if row.get(name) is not None]
    if len(forms) != 1:
        raise ValueError(
            f"{where}: exactly one of conversations and messages must be there, got fields "
            f"{sorted(map(str, row))}"
        )
    turns = row[forms[0]]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError(f"{where}: {forms[0]} must be a list of turns, got {_shown(turns)}")
    read = _llava_turn if forms[0] == "conversations" else _chat_turn
    messages, named = [], []
    for i, turn in enumerate(turns):
        message, ids = read(turn, f"{where}: {forms[0]}[{i}]")
        messages.append(message)
        named += ids
    if all(message["role"] != "assistant" for message in messages):
        raise ValueError(f"{where}: {forms[0]} must have a turn of the assistant, got none")
    image_ids = _image_ids(row, named, where)
    return Conversation(str(number if row_id is None else row_id), image_ids, messages)


def _image_ids(row: Mapping[str, Any], named: list[str | None], where: str) -> tuple[str, ...]:
    """The images of the row's own column, or those that its parts name; one for each placeholder."""
    given = [
        (name, row[name]) for name in ("image", "images") if row.get(name) not in (None, [], "")
    ]
    if len(given) > 1:
        raise ValueError(f"{where}: give image or images, not both")
    if not given and None not in named:
        return tuple(named)  # type: ignore[arg-type]
    column, value = given[0] if given else ("image", [])
    ids = [value] if isinstance(value, str) else value
    if not isinstance(ids, Sequence) or not all(isinstance(one, str) and one for one in ids):
        raise ValueError(
            f"{where}: {column} must be an image id or a list of them, got {_shown(value)}"
        )
    if len(ids) != len(named):
        raise ValueError(
            f"{where}: {column} has {len(ids)} image(s), but the turns have {len(named)} {PLACEHOLDER} "
            f"placeholder(s); got {_shown(value)}"
        )
    return tuple(ids)


def _llava_turn(turn: Any, where: str) -> tuple[dict[str, Any], list[str | None]]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: must be an object with from and value, got {_shown(turn)}")
    role = _role(turn.get("from"), f"{where}.from")
    parts = _text_parts(turn.get("value"), f"{where}.value")
    return {"role": role, "content": parts}, [None for part in parts if part["type"] == "image"]


def _chat_turn(turn: Any, where: str) -> tuple[dict[str, Any], list[str | None]]:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: must be an object with role and content, got {_shown(turn)}")
    role = _role(turn.get("role"), f"{where}.role")
    content = turn.get("content")
    if isinstance(content, str):
        parts = _text_parts(content, f"{where}.content")
        return {"role": role, "content": parts}, [None for p in parts if p["type"] == "image"]
    if not isinstance(content, Sequence):
        raise ValueError(f"{where}.content must be text or a list of parts, got {_shown(content)}")
    parts, named = [], []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "image":
            image_id = part.get("image")
            named.append(image_id if isinstance(image_id, str) and image_id else None)
            parts.append({"type": "image"})
        elif kind == "text" and isinstance(part.get("text"), str):
            if PLACEHOLDER in part["text"]:
                raise ValueError(
                    f"{where}.content[{i}].text must not spell {PLACEHOLDER}: an image is a part of its "
                    f"own, got {_shown(part['text'])}"
                )
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise ValueError(
                f"{where}.content[{i}] must be a part of type text or image, got {_shown(part)}"
            )
    return {"role": role, "content": parts}, named


def _role(value: Any, where: str) -> str:
    if not isinstance(value, str) or value not in ROLES:
        raise ValueError(f"{where} must be one of {', '.join(ROLES)}, got {_shown(value)}")
    return ROLES[value]


def _text_parts(text: Any, where: str) -> list[dict[str, Any]]:
    """Text with placeholders → parts; empty texts are left out."""
    if not isinstance(text, str):
        raise ValueError(f"{where} must be text, got {_shown(text)}")
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(_PLACEHOLDER_AND_NEWLINE.split(text)):
        if i:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class ControlTokens:
    """The special tokens of a tokenizer, to be looked for in texts.

    A tokenizer turns text that spells one of its special tokens into that token's id, so that a sample
    could end its own turn or smuggle in an image token.
    """

    def __init__(self, tokenizer: BeingVLTokenizer):
        self._tokens = {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }
        self._lengths = sorted({len(token) for token in self._tokens}, reverse=True)
        # Thousands of image tokens begin alike: look where one can begin, not for each.
        self._begin = re.compile(f"[{re.escape(''.join(sorted({t[0] for t in self._tokens})))}]")

    def find(self, conversation: Conversation) -> str | None:
        """The first special token that a text of the conversation spells, or None."""
        for message in conversation.messages:
            for part in message["content"]:
                if part["type"] == "text" and (token := self._find_in(part["text"])):
                    return token
        return None

    def _find_in(self, text: str) -> str | None:
        for match in self._begin.finditer(text):
            for length in self._lengths:
                if (candidate := text[match.start() : match.start() + length]) in self._tokens:
                    return candidate
        return None
