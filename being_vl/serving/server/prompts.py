"""a checked request → the ids that an engine is asked: pictures quantized, text that spells a token as text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from ...models.legal_logits import image_token_bound
from ...processing.processing_being_vl import BeingVLProcessor
from ...processing.untrusted_chats import UntrustedChats
from ...quantizers.image_loading import load_image
from ..grid_rows import MAX_SIDE, Mode
from .backends import Asked
from .pictures import image_file
from .schema import ChatRequest, ImagePart, ImagesRequest, TextPart


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a request may be.

    Args:
        max_body: bytes of a request.
        max_pixels: of an image.
        max_images: in a request.
        max_model_len: tokens of prompt and answer.
        allow_image_urls: whether http(s) URLs of images are fetched.
        timeout: seconds for an answer, waiting included.
        max_waiting: requests that wait for the engine.
    """

    max_body: int = 20_000_000
    max_pixels: int = 2**24
    max_images: int = 16
    max_model_len: int = 4096
    allow_image_urls: bool = False
    timeout: float = 300.0
    max_waiting: int = 64


class PromptMaker:
    """Makes prompts; for one thread at a time.

    Args:
        processor: of the checkpoint.
        limits: of requests.
        grid_size: (height, width) of generated images where a request says none.

    Raises:
        ValueError: the checkpoint has no chat template.
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
        """The URLs of a conversation's images, in order.

        Raises:
            ValueError: there are too many.
        """
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
        """The file of an image; for any thread.

        Raises:
            ValueError: as of `image_file`.
        """
        limits = self._limits
        return image_file(url, max_bytes=limits.max_body, allow_urls=limits.allow_image_urls)

    def chat(self, request: ChatRequest, files: Sequence[bytes]) -> Asked:
        """The prompt of a conversation with the files of its images.

        Raises:
            ValueError: it cannot be answered; one sentence says why.
        """
        messages: list[dict[str, Any]] = []
        characters = 0
        for message in request.messages:
            role = "system" if message.role == "developer" else message.role
            parts: list[dict[str, Any]] = []
            given = message.content
            for part in [TextPart(type="text", text=given)] if isinstance(given, str) else given:
                if isinstance(part, TextPart):
                    parts.append({"type": "text", "text": part.text})
                    characters += len(part.text)
                else:
                    parts.append({"type": "image"})
            content = given if isinstance(given, str) else parts
            messages.append({"role": role, "content": content})
        if characters > self._max_characters:
            raise ValueError(
                f"the messages have {characters} characters, more than {self._limits.max_model_len} tokens can hold"
            )
        ids = self._with_images(self._chats.ids(messages, add_generation_prompt=True), files)
        return self._asked(request, ids, request.mode, request.limit)

    def image(self, request: ImagesRequest) -> Asked:
        """The prompt of a picture.

        Raises:
            ValueError: as of `chat`.
        """
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
        if (
            not width
            or not height
            or width % cell
            or height % cell
            or max(width, height) > MAX_SIDE * cell
        ):
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
        left = self._limits.max_model_len - len(ids)
        needed = 1
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
