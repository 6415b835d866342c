"""text that is not trusted → the special token it spells, if any.

A tokenizer turns text that spells one of its special tokens into that token's id, so that a row could end
its own turn or smuggle in an image token. transformers' `sanitize_control_tokens` guards chats against
that, but gives no assistant mask; here such rows are found instead.
"""

from __future__ import annotations

import re

from ..processing.tokenization_being_vl import BeingVLTokenizer
from .conversations import Conversation


class ControlTokens:
    """The special tokens of a tokenizer, to be looked for in texts."""

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
