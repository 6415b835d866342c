"""ids of a sample → the special token that its text spells, if any."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..processing.processing_being_vl import BeingVLProcessor
from .conversations import Conversation


class ControlTokens:
    """Looks for special tokens that a sample's text spells, where the tokenizer would see them: in its ids.

    A tokenizer turns text that spells one of its special tokens into that token's id, so that a sample could
    end its own turn or smuggle in an image token; also two texts that stand side by side may spell one
    together. transformers' `sanitize_control_tokens` guards chats against that, but gives no assistant mask.
    So the special ids of a sample are compared with those that the template alone makes.
    """

    def __init__(self, processor: BeingVLProcessor):
        tokenizer = processor.tokenizer
        self._processor = processor
        self._names = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._special = np.zeros(max(len(tokenizer), *self._names, 0) + 1, bool)
        self._special[list(self._names)] = True
        self._of_template: dict[Any, Counter[int]] = {}

    def find(self, conversation: Conversation, ids: np.ndarray) -> str | None:
        """The first special token that a text of the conversation spells, or None."""
        found = self._special_ids(self._outside_images(ids))
        expected = self._expected(conversation) + Counter(
            dict.fromkeys(
                (self._processor.boi_token_id, self._processor.eoi_token_id),
                len(conversation.image_ids),
            )
        )
        more = Counter(found) - expected
        return self._names[next(i for i in found if i in more)] if more else None

    def _special_ids(self, ids: np.ndarray) -> list[int]:
        return ids[self._special[ids]].tolist()

    def _outside_images(self, ids: np.ndarray) -> np.ndarray:
        """The ids that stand in no image: a text's image token would stand outside of one."""
        depth = np.cumsum(ids == self._processor.boi_token_id)
        depth -= np.cumsum(ids == self._processor.eoi_token_id)
        layout = self._processor.tokenizer.layout
        image = (ids >= layout.first_code_id) & (ids < layout.size)
        return ids[~(image & (depth > 0))]

    def _expected(self, conversation: Conversation) -> Counter[int]:
        """Special ids of the conversation with one harmless letter for each text and without its images."""
        key = tuple(
            (m["role"], sum(part["type"] == "text" for part in m["content"]))
            for m in conversation.messages
        )
        if key not in self._of_template:
            bare = [
                {"role": role, "content": [{"type": "text", "text": "x"}] * texts}
                for role, texts in key
            ]
            encoded: Any = self._processor.apply_chat_template(
                [bare], tokenize=True, return_dict=True
            )
            self._of_template[key] = Counter(self._special_ids(np.asarray(encoded["input_ids"][0])))
        return self._of_template[key]
