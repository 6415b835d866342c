"""a checked request → the ids that an engine is asked: images quantized, text that spells a token as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...models.legal_logits import image_token_bound
from ...processing.processing_being_vl import BeingVLProcessor
from ...processing.untrusted_chats import UntrustedChats
from ...quantizers.image_loading import load_image
from ..request_masks import MAX_SIDE, Mode
from .backends import Asked
from .image_urls import image_file
from .schema import ChatRequest, ImagePart, ImagesRequest, TextPart


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may be."""

    max_body: int = 20_000_000  # bytes
    max_pixels: int = 2**24  # of an image
    max_images: int = 16
    max_model_len: int = 4096  # tokens of prompt and answer
    allow_image_urls: bool = False  # http(s), to be fetched
    timeout: float = 300.0  # seconds for an answer, waiting included
    max_waiting: int = 64  # requests, for the engine


class PromptMaker:
    """Makes prompts; for one thread at a time. What cannot be answered is a ValueError of one sentence.

    `grid_size` is the (height, width) of generated images where a request says none.
    """

    def __init__(
        self, processor: BeingVLProcessor, limits: Limits, grid_size: tuple[int, int] | None
    ):
        if not processor.chat_template:
            raise ValueError("the checkpoint has no chat template, so it cannot be talked with")
        self._processor, self._limits, self._grid_size = processor, limits, grid_size
        self._chats = UntrustedChats(processor.tokenizer)
        longest = max(map(len, processor.tokenizer.get_vocab()))
        self._max_characters = limits.max_model_len * longest

    def urls(self, request: ChatRequest) -> list[str]:
        """The URLs of a conversation's images, in order."""
        urls = [
            part.image_url.url
            for message in request.messages
            for part in message.content
            if isinstance(part, ImagePart)
        ]
        if len(urls) > self._limits.max_images:
            raise ValueError(
                f"a request may hold {self._limits.max_images} images, this one has {len(urls)}"
            )
        return urls

    def file(self, url: str) -> bytes:
        """The file of an image; for any thread."""
        limits = self._limits
        return image_file(url, max_bytes=limits.max_body, allow_urls=limits.allow_image_urls)

    def chat(self, request: ChatRequest, files: Sequence[bytes]) -> Asked:
        """The prompt of a conversation with the files of its images."""
        messages: list[dict[str, Any]] = []
        characters = 0
        for message in request.messages:
            content: Any = message.content
            if isinstance(content, str):
                characters += len(content)
            else:
                texts = [part.text if isinstance(part, TextPart) else None for part in content]
                characters += sum(len(text or "") for text in texts)
                content = [
                    {"type": "image"} if text is None else {"type": "text", "text": text}
                    for text in texts
                ]
            role = "system" if message.role == "developer" else message.role
            messages.append({"role": role, "content": content})
        if characters > self._max_characters:
            raise ValueError(
                f"the messages have {characters} characters, more than {self._limits.max_model_len} tokens can hold"
            )
        ids = self._with_images(self._chats.ids(messages, add_generation_prompt=True), files)
        return self._asked(request, ids, request.mode, request.limit)

    def image(self, request: ImagesRequest) -> Asked:
        """The prompt of an image."""
        if len(request.prompt) > self._max_characters:
            raise ValueError(f"prompt is longer than {self._limits.max_model_len} tokens can be")
        messages = [{"role": "user", "content": request.prompt}]
        ids = self._chats.ids(messages, add_generation_prompt=True)
        if request.size is not None:
            request = request.model_copy(update={"image_grid_size": self._grid_of(request.size)})
        return self._asked(request, ids, "image", None)

    def _grid_of(self, size: str) -> list[int]:
        width, height = map(int, size.split("x"))
        cell = self._processor.vq_model.config.downsampling
        if not all(0 < side <= MAX_SIDE * cell and side % cell == 0 for side in (width, height)):
            raise ValueError(f"size: the sides must be multiples of {cell} pixels, got {size}")
        return [height // cell, width // cell]

    def _with_images(self, ids: list[int], files: Sequence[bytes]) -> list[int]:
        """Replace each placeholder by its image's ids."""
        processor, left = self._processor, iter(files)
        whole: list[int] = []
        for token_id in ids:
            if token_id == processor.image_token_id:  # one by one: decoded they are large
                image = load_image(next(left), max_pixels=self._limits.max_pixels, name="the image")
                whole += processor.image_ids(image)[0]
            else:
                whole.append(token_id)
        return whole

    def _asked(
        self, request: ChatRequest | ImagesRequest, ids: list[int], mode: Mode, limit: int | None
    ) -> Asked:
        left, needed = self._limits.max_model_len - len(ids), 1
        size: Any = None
        if mode != "text":
            size = tuple(request.image_grid_size or self._grid_size or ())
            if not size:
                raise ValueError("image_grid_size must be given: the checkpoint has no default")
            needed = image_token_bound(*size) if mode == "image" else 1
        if left < needed:
            raise ValueError(
                f"the prompt has {len(ids)} tokens and the answer needs {needed}, more than the "
                f"{self._limits.max_model_len} that there is room for"
            )
        return Asked(
            ids, mode, size, min(limit or left, left), request.temperature, request.top_p,
            request.seed,
        )  # fmt: skip
