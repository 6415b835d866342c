"""OpenAI's messages → ids in vLLM's frontend, where text that spells a token stays text."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.renderers.hf import HfRenderer
from vllm.tokenizers.hf import get_cached_tokenizer

from ...processing.tokenization_being_vl import BeingVLTokenizer
from ...processing.untrusted_chats import UntrustedChats


class _ChatTokenizer(BeingVLTokenizer):
    """A tokenizer whose chats are ids at once: as a text, they would be tokenized by who does not know whose it is."""

    _chats: UntrustedChats | None = None

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """A conversation → its ids, whatever `tokenize` and `return_dict` say."""
        if self._chats is None:
            plain: Any = copy.copy(self)
            plain.__class__ = BeingVLTokenizer
            self._chats = UntrustedChats(plain)
        for name in ("tokenize", "return_dict"):
            kwargs.pop(name, None)
        return self._chats.ids(conversation, *args, **kwargs)


class ServedTokenizer:
    """What vLLM loads for its tokenizer mode `being_vl`."""

    @classmethod
    def from_pretrained(
        cls, path_or_repo_id: str | Path, *args: Any, download_dir: str | None = None, **kwargs: Any
    ) -> Any:
        """The checkpoint's tokenizer, with the properties that vLLM asks for often kept."""
        kwargs.pop("trust_remote_code", None)
        tokenizer = BeingVLTokenizer.from_pretrained(
            path_or_repo_id, *args, cache_dir=download_dir, **kwargs
        )
        tokenizer.__class__ = _ChatTokenizer
        return get_cached_tokenizer(tokenizer)


class Renderer(HfRenderer):
    """vLLM's, which hands the parts of a message to the template as they are, images in their places.

    Left to guess from a template, it may join them to one text, with all images in front.
    """

    def render_messages(self, messages: Any, params: Any) -> Any:
        return super().render_messages(messages, replace(params, **_AS_PARTS))

    async def render_messages_async(self, messages: Any, params: Any) -> Any:
        return await super().render_messages_async(messages, replace(params, **_AS_PARTS))


_AS_PARTS = {"chat_template_content_format": "openai"}
