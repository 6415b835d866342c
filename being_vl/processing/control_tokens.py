"""messages → a rendered chat, and its ids → the special token that its texts spell, if any."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from inspect import signature
from typing import Any

import numpy as np

from .chat_messages import checked_messages, require_assistant_masks, require_sanitizing
from .template_limits import check_number, limited_template, template_file

_OF_A_BATCH = frozenset(
    "processor_kwargs tokenizer_kwargs return_tensors padding truncation max_length".split()
)
_OF_IDS = _OF_A_BATCH | frozenset(
    "tokenize return_dict return_assistant_tokens_mask sanitize_control_tokens".split()
)


class ControlTokens:
    """Looks for special tokens that the texts of a chat spell, where the tokenizer sees them: in its ids.

    A tokenizer turns text that spells one of its special tokens into that token's id, so that a text could
    end its own turn or smuggle in an image token; also two texts that stand side by side may spell one
    together. So the special ids of a chat are compared with those that the template alone makes.

    Args:
        tokenizer: a `BeingVLTokenizer`.
        encode: messages → ids, as of the chat.
    """

    def __init__(self, tokenizer: Any, encode: Callable[[list[dict[str, Any]]], Iterable[int]]):
        self._encode = encode
        self._layout, self._open_videos = tokenizer.layout, tokenizer.open_videos
        self._boi, self._eoi = tokenizer.boi_token_id, tokenizer.eoi_token_id
        self._bov = getattr(tokenizer, "bov_token_id", None)  # no video without it
        self._eov = getattr(tokenizer, "eov_token_id", None)
        self._names = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special = np.zeros(max(len(tokenizer), *self._names, 0) + 1, bool)
        self._special[list(self._names)] = True
        self._of_template: dict[Any, Counter[int]] = {}  # by messages without texts and images

    def find(self, messages: list[dict[str, Any]], ids: np.ndarray) -> str | None:
        """The first special token that a text of the messages spells, or None.

        Args:
            messages: checked ones, see `chat_messages`; content is a text or a list of parts.
            ids: (n,) of the chat, without padding.
        """
        found = self._special_ids(self._outside_images(ids))
        kinds = Counter(
            part["type"]
            for message in messages
            for part in message.get("content") or ()
            if isinstance(part, Mapping)
        )
        images, videos = kinds["image"] + kinds["image_url"], kinds["video"]
        expected, counts = self._expected(messages, images, videos), Counter(found)
        if counts == expected:  # of nearly all
            return None
        more = counts - expected
        return self._names[next(i for i in found if i in more)] if more else None

    def _special_ids(self, ids: np.ndarray) -> list[int]:
        return ids[self._special[ids]].tolist()

    def _outside_images(self, ids: np.ndarray) -> np.ndarray:
        """The ids that stand in no image or video: a text's image token would stand outside of one."""
        # What stands between the marks of a video is all the processor's.
        if self._bov is not None and (ids == self._bov).any():
            ids = ids[(self._open_videos(ids) <= 0) | (ids == self._bov)]
        begins = ids == self._boi
        if not begins.any():
            return ids
        depth = np.cumsum(begins) - np.cumsum(ids == self._eoi)
        image = (ids >= self._layout.first_code_id) & (ids < self._layout.size)
        return ids[~(image & (depth > 0))]

    def _expected(self, messages: list[dict[str, Any]], images: int, videos: int) -> Counter[int]:
        """Special ids of the messages with one harmless letter for each text, and the marks of their images."""
        bare = [{**message, "content": _bare(message.get("content"))} for message in messages]
        key = repr(bare), images, videos
        if key not in self._of_template:
            ids = np.asarray(list(self._encode(bare)))
            marks = dict.fromkeys((self._boi, self._eoi), images)
            marks |= dict.fromkeys((self._bov, self._eov), videos)
            self._of_template[key] = Counter(self._special_ids(ids)) + Counter(marks)
        return self._of_template[key]


def _bare(content: Any) -> Any:
    if isinstance(content, str):
        return "x"
    return [{"type": "text", "text": "x"} for part in content or () if part["type"] == "text"]


def render_chat(
    tokenizer: Any,
    resolve: Callable[[str | None, Any], str],
    apply: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """An `apply_chat_template` of transformers, between checks of what goes in and what comes out.

    Args:
        tokenizer: a `BeingVLTokenizer`.
        resolve: what the caller names as `chat_template`, and its tools → the Jinja source that is rendered.
        apply: the method of the base class; the rest are its arguments, by position or by name.

    Raises:
        ValueError: a message or part that would not be rendered, see `chat_messages`, or tools or documents; a
            template that takes too long, or drops images; or a text that spells a special token, though it was to
            be sanitized.
    """
    kwargs = signature(apply).bind(*args, **kwargs).arguments
    kwargs |= kwargs.pop("kwargs", {})
    conversation = kwargs.pop("conversation")
    template = resolve(kwargs.get("chat_template"), kwargs.get("tools"))
    for name in ("tools", "documents"):
        if kwargs.get(name) and name not in template:
            raise ValueError(f"{name}: the chat template does not render {name}")
    if sanitize_control_tokens := kwargs.get("sanitize_control_tokens", False):
        require_sanitizing()
    if kwargs.get("return_assistant_tokens_mask"):
        require_assistant_masks()
    conversation = checked_messages(
        conversation,
        template,
        join_texts=sanitize_control_tokens,
        videos="video_token" in tokenizer.special_tokens_map,
    )
    with limited_template(template, template_file(tokenizer.name_or_path)):
        try:
            rendered = apply(conversation, **kwargs)
        except ValueError as error:
            if str(error).startswith("The number of "):
                plain = {name: value for name, value in kwargs.items() if name not in _OF_IDS}
                check_placeholders(
                    tokenizer,
                    conversation,
                    lambda bare: apply(bare, **plain, tokenize=False),
                )
            raise
    if sanitize_control_tokens:
        alone = {key: value for key, value in kwargs.items() if key not in _OF_A_BATCH}
        alone |= {"tokenize": True, "return_dict": True}
        control = ControlTokens(
            tokenizer, lambda messages: apply([messages], **alone)["input_ids"][0]
        )
        _check_sanitized(control, tokenizer.pad_token_id, conversation, rendered)
    return rendered


def check_placeholders(
    tokenizer: Any, conversation: Any, render: Callable[[list[dict[str, Any]]], str]
) -> None:
    """See that the chat template puts one placeholder for each image and video, whatever the texts say.

    Args:
        tokenizer: a `BeingVLTokenizer`.
        conversation: messages, or a list of such.
        render: messages → text, by the template.

    Raises:
        BrokenTemplateError: it does not; its file is named.
    """
    is_batched = isinstance(conversation[0], (list, tuple))
    for messages in conversation if is_batched else [conversation]:
        bare = [
            {**message, "content": _without_texts(message.get("content"))} for message in messages
        ]
        parts = [part["type"] for message in bare for part in message["content"] or ()]
        text = render(bare)
        for name in ("image", "video"):
            given = sum(part.startswith(name) for part in parts)
            token = getattr(tokenizer, f"{name}_token", None) or "\0"
            check_number(tokenizer, name, given, text.count(token))


def _without_texts(content: Any) -> list[dict[str, Any]]:
    if isinstance(content, str) or content is None:
        return [{"type": "text", "text": "x"}]
    return [
        {**part, "text": "x"} if part["type"] == "text" else {"type": part["type"]}
        for part in content
    ]


def _check_sanitized(
    control: ControlTokens, pad_token_id: int | None, conversation: Any, rendered: Any
) -> None:
    """Raise ValueError where a text of a chat, or of a list of them, became a special token in what was rendered."""
    mapping = isinstance(rendered, Mapping)
    rows, mask = (
        (rendered["input_ids"], rendered.get("attention_mask")) if mapping else (rendered, None)
    )
    is_batched = isinstance(conversation[0], (list, tuple))
    if not is_batched and not np.ndim(rows[0]):
        rows, mask = [rows], None if mask is None else [mask]
    for index, messages in enumerate(conversation if is_batched else [conversation]):
        ids = np.asarray(rows[index])
        if mask is not None:
            ids = ids[np.asarray(mask[index]) == 1]
        elif (padding := ids == pad_token_id).any() and not padding.all():
            kept = np.flatnonzero(~padding)
            ids = ids[kept[0] : kept[-1] + 1]
        if (token := control.find(messages, ids)) is not None:
            raise ValueError(
                f"sanitize_control_tokens: the chat template joins texts to the special token {token!r}"
            )
