"""samples in the usual formats → conversations: messages for the chat template, ids of their images and videos.

Formats: LLaVA's and ShareGPT's (`conversations` of `from` and `value` with `<image>`, `<video>`), the
`messages` of TRL, OpenAI and the Hub (`role`, `content` as text or as parts), and ms-swift's `query`,
`response`, `history`. A sample is checked before it is used: a field that changes what is learned is
applied (`weight`, `train`, `loss` of a turn) or refused by name (`audio`, `tool_calls`), never ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..files import shown

MEDIA = ("image", "video")
ROLES = {
    "human": "user", "user": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant",
    "system": "system",
    "tool": "tool", "function": "tool", "observation": "tool",
}  # fmt: skip
_FORMS = ("conversations", "messages", "query")
# Columns: <audio> in texts; tools that a template renders; boxes that ms-swift puts into texts.
_UNREAD = ("audio", "audios", "tools", "functions", "objects", "loss_mask")
_UNREAD_IN_TURNS = (
    "tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "audio", "loss_mask",
)  # fmt: skip
_NOTHING: tuple[Any, ...] = (None, "", [], {}, "[]", "{}")  # as columns say it
_LEARNED = ("weight", "train", "loss")  # OpenAI's, axolotl's and ms-swift's names
_PART_TYPES = {
    "image": "image", "image_url": "image", "input_image": "image",
    "video": "video", "video_url": "video", "input_video": "video",
}  # fmt: skip

# LLaVA writes a newline between an image or video and its question. A chat message of an image part and a text part
# has none, so it goes: what is asked after training is then spelled as it was in training.
_PLACEHOLDER_AND_NEWLINE = re.compile(r"(?:\r?\n)?<(image|video)>(?:\r?\n)?")

Names = list[tuple[str, str | None]]  # "image" or "video", and the id


@dataclass(frozen=True)
class Conversation:
    """A sample, checked.

    Attributes:
        id: the sample's own, or its number.
        image_ids: one for each image part of the messages, in order.
        messages: `[{"role": …, "content": [{"type": "image"} or {"type": "text", "text": …}, …]}, …]`.
        learned: for each message of the assistant, whether it is learned.
        fixed: what was put right, in words; "" if nothing was.
        video_ids: one for each video part of the messages, in order.
    """

    id: str
    image_ids: tuple[str, ...]
    messages: list[dict[str, Any]]
    learned: tuple[bool, ...] = ()
    fixed: str = ""
    video_ids: tuple[str, ...] = ()

    def without(self, missing: Iterable[tuple[str, str]]) -> Conversation:
        """The same conversation without the images and videos of these kinds and ids."""
        gone = set(missing)
        own = {"image": self.image_ids, "video": self.video_ids}
        ids = {kind: iter(names) for kind, names in own.items()}
        messages = [
            {
                **message,
                "content": [
                    part
                    for part in message["content"]
                    if part["type"] == "text" or (part["type"], next(ids[part["type"]])) not in gone
                ],
            }
            for message in self.messages
        ]
        images, videos = (
            tuple(name for name in names if (kind, name) not in gone) for kind, names in own.items()
        )
        return Conversation(self.id, images, messages, self.learned, self.fixed, videos)


def parse_sample(sample: Any, *, where: str, number: int, fix: bool = False) -> Conversation:
    """Read a sample of any of the forms above; `where` names it in errors, `number` is its id if it has none.

    With `fix`, placeholders that are missing go in front of the first question, as in LLaVA's loaders.
    """
    if not isinstance(sample, Mapping):
        raise ValueError(f"{where}: must be an object, got {shown(sample)}")
    sample_id = sample.get("id")
    if sample_id is not None and not isinstance(sample_id, (str, int)):
        raise ValueError(f"{where}: id must be text or an integer, got {shown(sample_id)}")
    for name in _UNREAD:
        if sample.get(name) not in _NOTHING:
            raise ValueError(f"{where}: {name} is not read here, got {shown(sample[name])}")
    field, turns = _turns(sample, where)
    if field != "query" and not _is_learned(sample, where, ("weight", "train")):
        raise ValueError(f"{where}: its weight is 0: nothing of it is to be learned")
    messages, learned = [], []
    named: dict[str, list[str | None]] = {kind: [] for kind in MEDIA}
    for i, turn in enumerate(turns):
        message, names, weight = _message(turn, f"{where}: {field}[{i}]")
        messages.append(message)
        for kind, own in names:
            named[kind].append(own)
        if message["role"] == "assistant":
            learned.append(weight)
    # ShareGPT's and LLaMA-Factory's column
    if field != "query" and sample.get("system") not in (None, ""):
        if any(message["role"] == "system" for message in messages):
            raise ValueError(f"{where}: system is said twice, in its column and in {field}")
        turn = {"role": "system", "content": sample["system"]}
        messages.insert(0, _message(turn, f"{where}: system")[0])
    if not learned:
        raise ValueError(f"{where}: {field} must have a turn of the assistant, got none")
    if not any(learned):
        raise ValueError(f"{where}: {field} must have a turn of the assistant that is learned")
    fixable = messages if fix else None
    image_ids, fixed = _ids_of("image", sample, named["image"], fixable, where)
    video_ids, also = _ids_of("video", sample, named["video"], fixable, where)
    fixed = "; ".join(filter(None, (fixed, also)))
    name = str(number if sample_id is None else sample_id)
    _check_text(name, f"{where}: id")
    return Conversation(name, image_ids, messages, tuple(learned), fixed, video_ids)


def spoken_text(sample: Any) -> str:
    """What the assistant says in a sample that is not checked yet, for statistics; "" where it says nothing."""
    if not isinstance(sample, Mapping):
        return ""
    try:
        _, turns = _turns(sample, "")
    except ValueError:
        return ""
    texts = []
    for turn in turns:
        if not isinstance(turn, Mapping):
            continue
        role = turn.get("role", turn.get("from"))
        content = turn.get("content", turn.get("value"))
        if not isinstance(role, str) or ROLES.get(role.lower()) != "assistant":
            continue
        parts = content if isinstance(content, list) else [{"text": content}]
        texts += [
            p["text"] for p in parts if isinstance(p, dict) and isinstance(p.get("text"), str)
        ]
    return " ".join(texts)


def _turns(sample: Mapping[str, Any], where: str) -> tuple[str, Sequence[Any]]:
    """The name of the field that holds the turns, and the turns."""
    forms = [name for name in _FORMS if sample.get(name) is not None]
    if len(forms) != 1:
        raise ValueError(
            f"{where}: exactly one of conversations and messages must be there, got fields "
            f"{sorted(map(str, sample))}"
        )
    if forms[0] == "query":
        return "query", _swift_turns(sample, where)
    turns = sample[forms[0]]
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise ValueError(f"{where}: {forms[0]} must be a list of turns, got {shown(turns)}")
    return forms[0], turns


def _swift_turns(sample: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """ms-swift's `system`, `history` (pairs of question and answer), `query` and `response` as turns."""
    history = sample.get("history") or []
    if not isinstance(history, Sequence) or not all(
        isinstance(pair, Sequence) and not isinstance(pair, str) and len(pair) == 2
        for pair in history
    ):
        raise ValueError(f"{where}: history must be pairs of texts, got {shown(history)}")
    turns = []
    if sample.get("system"):
        turns.append({"role": "system", "content": sample["system"]})
    for question, answer in [*history, (sample["query"], sample.get("response"))]:
        turns.append({"role": "user", "content": question})
        turns.append({"role": "assistant", "content": answer})
    return turns


def _message(turn: Any, where: str) -> tuple[dict[str, Any], Names, bool]:
    """A turn as a message, the images and videos that its parts name, and whether it is learned."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where}: must be an object with from and value, got {shown(turn)}")
    for name in _UNREAD_IN_TURNS:
        if turn.get(name) not in _NOTHING:
            raise ValueError(f"{where}.{name} is not read here, got {shown(turn[name])}")
    role_field = "from" if "from" in turn else "role"
    content_field = "value" if "value" in turn else "content"
    value, content = turn.get(role_field), turn.get(content_field)
    if not isinstance(value, str) or value.lower() not in ROLES:
        raise ValueError(
            f"{where}.{role_field} must be one of {', '.join(ROLES)}, got {shown(value)}"
        )
    role = ROLES[value.lower()]
    if isinstance(content, str):
        parts = _text_parts(content, f"{where}.{content_field}")
        named: Names = [(part["type"], None) for part in parts if part["type"] != "text"]
    elif isinstance(content, Sequence) and not isinstance(content, bytes):
        parts, named = _parts(content, f"{where}.{content_field}")
    else:
        raise ValueError(
            f"{where}.{content_field} must be text, got {shown(content)}; or a list of parts"
        )
    learned = _is_learned(turn, where)
    if (
        role == "assistant"
        and learned
        and not any(part["type"] != "text" or part["text"].strip() for part in parts)
    ):
        raise ValueError(
            f"{where}.{content_field} is empty: its end alone would be learned; weight: 0 leaves it out"
        )
    return {"role": role, "content": parts}, named, learned


def _is_learned(turn: Mapping[str, Any], where: str, names: Sequence[str] = _LEARNED) -> bool:
    learned = True
    for name in names:
        value = turn.get(name)
        if value is None:
            continue
        if value not in (0, 1):  # False and True are
            raise ValueError(f"{where}.{name} must be 0 or 1, got {shown(value)}")
        learned = learned and bool(value)
    return learned


def _parts(content: Sequence[Any], where: str) -> tuple[list[dict[str, Any]], Names]:
    """The parts of a message; images and videos by the names that they bear, None where they bear none."""
    parts: list[dict[str, Any]] = []
    named: Names = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in _PART_TYPES:
            medium = _PART_TYPES[kind]
            named.append((medium, _name_in_part(part, medium, f"{where}[{i}]")))
            parts.append({"type": medium})
        elif kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
            _check_text(part["text"], f"{where}[{i}].text")
            parts.append({"type": "text", "text": part["text"]})
        else:
            raise ValueError(
                f"{where}[{i}] must be a part of type text, image or video, got {shown(part)}"
            )
    # Parts of text stand side by side in the rendered chat, where two halves make one placeholder.
    text = "".join("\0" if part["type"] != "text" else part["text"] for part in parts)
    for medium in MEDIA:
        if f"<{medium}>" in text:
            article = "an" if medium == "image" else "a"
            raise ValueError(
                f"{where}: text must not spell <{medium}>: {article} {medium} is a part of its own, got "
                f"{shown(text)}"
            )
    return parts, named


def _name_in_part(part: Mapping[str, Any], medium: str, where: str) -> str | None:
    """The id that a part bears: transformers' image (or video), url, path, or OpenAI's image_url."""
    names = (medium, "url", "path", f"{medium}_url")
    for name in names:
        value = part.get(name)
        if isinstance(value, Mapping):  # OpenAI's {"url": …}, an Image of datasets {"path": …}
            value = value.get("url") or value.get("path")
        if isinstance(value, str) and value:
            if value.startswith("data:"):
                break
            _check_text(value, f"{where}.{name}")
            return value
    if part.get("base64") or any(part.get(name) for name in names):
        raise ValueError(
            f"{where}: the {medium} itself stands in the sample; encode it first, and name it by its id"
        )
    return None


def _ids_of(
    medium: str,
    sample: Mapping[str, Any],
    named: list[str | None],
    fixable: list[dict[str, Any]] | None,
    where: str,
) -> tuple[tuple[str, ...], str]:
    """The images (or videos) of the sample's own column, or those that its parts name; and what was put right."""
    columns = (medium, f"{medium}s")
    given = [(name, sample[name]) for name in columns if sample.get(name) not in (None, [], "")]
    if len(given) > 1:
        raise ValueError(f"{where}: give {medium} or {medium}s, not both")
    if not given and None not in named:
        return tuple(named), ""  # type: ignore[arg-type]
    column, value = given[0] if given else (medium, [])
    ids = _ids_of_column(value)
    if ids is None:
        raise ValueError(
            f"{where}: {column} must be {'an image' if medium == 'image' else 'a video'} id or a list of them, got "
            f"{shown(value)}"
        )
    for image_id in ids:
        _check_text(image_id, f"{where}: {column}")
    missing = len(ids) - len(named)
    fixed = ""
    if missing > 0 and fixable is not None:
        first = next((m for m in fixable if m["role"] == "user"), fixable[0])
        first["content"] = [{"type": medium}] * missing + first["content"]
        before = sum(
            part["type"] == medium
            for message in fixable[: fixable.index(first)]
            for part in message["content"]
        )
        named = [*named[:before], *[None] * missing, *named[before:]]
        fixed = f"{missing} missing <{medium}> put in front of the first question"
    if len(ids) != len(named):
        raise ValueError(
            f"{where}: {column} has {len(ids)} {medium}(s), but the turns have {len(named)} <{medium}> "
            f"placeholder(s); got {shown(value)}"
        )
    for own, name in zip(ids, named, strict=True):
        if name is not None and name != own:
            raise ValueError(
                f"{where}: {column} says {own!r}, but the {medium}'s part says {name!r}"
            )
    return tuple(ids), fixed


def _ids_of_column(value: Any) -> list[str] | None:
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    ids = []
    for one in values:
        name = one.get("path") or one.get("url") if isinstance(one, Mapping) else one
        if not isinstance(name, str) or not name:
            return None
        ids.append(name)
    return ids


def _text_parts(text: str, where: str) -> list[dict[str, Any]]:
    """Text with placeholders → parts; empty texts are left out."""
    _check_text(text, where)
    parts: list[dict[str, Any]] = []
    for i, piece in enumerate(_PLACEHOLDER_AND_NEWLINE.split(text)):
        if i % 2:  # which placeholder stood between two texts
            parts.append({"type": piece})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts


def _check_text(text: str, where: str) -> None:
    """Raises ValueError for a placeholder of what is not read, and for text that is no Unicode."""
    if "<audio>" in text:
        raise ValueError(f"{where} must not spell <audio>: audio is not read here")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        bad = text[error.start]
        raise ValueError(f"{where} must be Unicode text, got the lone surrogate {bad!r}") from None
