"""messages of people who are not trusted → ids: what spells a special token stays text.

Source: `sanitize_control_tokens` of transformers 5.20, whose ids it gives. It differs in that it works on
every version, that it costs the same however many image tokens there are (theirs tries each of them at each
character), and that nothing of the tokenizer changes, so threads may share it.
"""

import re
from typing import Any

from tokenizers import Tokenizer

from .chat_messages import checked_messages
from .template_limits import check_number
from .tokenization_being_vl import BeingVLTokenizer

# Of the private use area: in a text of a user they are dropped before anything else happens.
_START, _END = "\U000f0000", "\U000f0001"


class UntrustedChats:
    """Renders chats by the template of a checkpoint's tokenizer."""

    def __init__(self, tokenizer: BeingVLTokenizer):
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder.values()
        self._tokens = {token.content for token in added if token.special}
        named = [text for text in self._tokens if not text.startswith("<|visual_")]
        named.sort(key=len, reverse=True)  # a token before those that it begins with
        spelled = "|".join([*map(re.escape, named), r"<\|visual_[0-9]+\|>"])
        self._spelled = re.compile(spelled)
        self._marks = re.compile(f"{_START}({spelled}){_END}|[{_START}{_END}]")
        self._literal = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._literal.encode_special_tokens = True
        self._newline = self._plain("\n")

    def ids(self, messages: Any, *, chat_template: str | None = None, **options: Any) -> list[int]:
        """The ids of one conversation; each image is one placeholder id.

        Args:
            messages, chat_template, options: as of `apply_chat_template`; options are the template's variables too.

        Raises:
            ValueError: a message or part that would not be rendered, or there is no template, or one that drops images.
        """
        template = self._tokenizer.get_chat_template(chat_template, options.get("tools"))
        messages = checked_messages(messages, template, join_texts=True)
        text = self._tokenizer.apply_chat_template(
            self._marked(messages),
            chat_template=chat_template,
            tokenize=False,
            **self._marked(options),
        )
        first, *pieces = self._marks.split(text)
        ids = self._plain(first)
        for index, piece in enumerate(pieces):
            if piece:  # a token, then what follows it, and so on; None for a mark that has lost its partner
                ids += self._piece(piece, self._plain if index % 2 else self._as_text)
        contents = [message.get("content") or () for message in messages]
        parts = [part for parts in contents if not isinstance(parts, str) for part in parts]
        images = sum(part["type"].startswith("image") for part in parts)
        check_number(self._tokenizer, "image", images, ids.count(self._tokenizer.image_token_id))
        return ids

    def _marked(self, value: Any) -> Any:
        if isinstance(value, str):
            text = value.replace(_START, "").replace(_END, "")
            return self._spelled.sub(self._mark, text)
        if isinstance(value, dict):
            return {key: self._marked(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._marked(entry) for entry in value]
        return value

    def _mark(self, match: re.Match[str]) -> str:
        text = match.group()
        return f"{_START}{text}{_END}" if text in self._tokens else text

    def _plain(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _as_text(self, text: str) -> list[int]:
        return self._literal.encode(text, add_special_tokens=False).ids

    def _piece(self, piece: str, encode: Any) -> list[int]:
        """Encode from the middle of a text: sentencepiece puts a space before what begins one."""
        ids = encode(f"\n{piece}")
        count = len(self._newline)
        return ids[count:] if ids[:count] == self._newline else encode(piece)
