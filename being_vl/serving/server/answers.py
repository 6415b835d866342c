"""ids as they come → pieces of an answer: texts, and the image where one has closed."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import PIL.Image
from tokenizers.decoders import DecodeStream

from ...processing.processing_being_vl import BeingVLProcessor
from .backends import Asked

Piece = str | PIL.Image.Image


class AnswerReader:
    """Reads one answer.

    Args:
        grid_size: (height, width) of generated images, in cells.
        stops: texts at which the answer ends; they are no part of it.
    """

    def __init__(
        self,
        processor: BeingVLProcessor,
        grid_size: tuple[int, int] | None,
        stops: Sequence[str] = (),
    ):
        self._processor, self._grid_size, self._stops = processor, grid_size, list(stops)
        self._backend = processor.tokenizer.backend_tokenizer
        self._image: list[int] | None = None
        self._begin_text()
        self._held = ""  # may be the beginning of a stop
        self.num_tokens = 0  # read so far
        self.stopped = False  # by a text of `stops`
        self._last: int | None = None

    def _begin_text(self) -> None:
        self._stream = DecodeStream(skip_special_tokens=True)
        self._run: list[int] = []  # the ids of the text, and what the stream has made of them
        self._streamed = ""

    def read(self, ids: Sequence[int]) -> Iterator[Piece]:
        """The pieces that some more ids make.

        Raises:
            ValueError: an image's ids do not cover its grid.
        """
        for token_id in ids:
            if self.stopped:
                return
            self.num_tokens += 1
            self._last = token_id
            if token_id == self._processor.boi_token_id:
                self._image = []
            elif token_id == self._processor.eoi_token_id and self._image is not None:
                yield from self.rest()
                if self.stopped:
                    return
                yield self._processor.decode_image(self._image, *(self._grid_size or ()))
                self._image = None
                self._begin_text()
            elif self._image is not None:
                self._image.append(token_id)
            else:
                self._run.append(token_id)
                if text := self._stream.step(self._backend, token_id):
                    self._streamed += text
                    yield from self._text(text)

    @property
    def has_ended(self) -> bool:
        """Whether the answer has come to its end, by a text or the end token."""
        return self.stopped or self._last == self._processor.tokenizer.eos_token_id

    def _text(self, text: str) -> Iterator[str]:
        self._held += text
        places = [(place, stop) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if places:
            self.stopped, self._held = True, self._held[: min(places)[0]]
            yield from self._unheld()
            return
        border = len(self._held) - max((_overlap(self._held, s) for s in self._stops), default=0)
        said, self._held = self._held[:border], self._held[border:]
        if said:
            yield said

    def rest(self) -> Iterator[str]:
        """The text that was held back: what may have begun a stop, and bytes that are no whole character."""
        whole = self._processor.tokenizer.decode(self._run, skip_special_tokens=True)
        if not self.stopped and whole.startswith(self._streamed):
            yield from self._text(whole[len(self._streamed) :])
        yield from self._unheld()

    def _unheld(self) -> Iterator[str]:
        held, self._held = self._held, ""
        if held:
            yield held


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of a text with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop)), 0, -1) if text.endswith(stop[:n])), 0)


def png(image: PIL.Image.Image) -> str:
    """An image as a PNG file in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def as_part(piece: Piece) -> dict[str, Any]:
    """A piece as a part of a message."""
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png(piece)}"}}


# The parts of an answer in OpenAI's JSON.


def event(fields: dict[str, Any]) -> str:
    return f"data: {json.dumps(fields)}\n\n"


def choice(reason: str | None, **content: Any) -> dict[str, Any]:
    return {"index": 0, **content, "finish_reason": reason, "logprobs": None}


def delta(piece: Piece) -> dict[str, Any]:
    return {"content": piece if isinstance(piece, str) else [as_part(piece)]}


def finish_reason(asked: Asked, reader: AnswerReader) -> str:
    cut = asked.mode != "image" and reader.num_tokens >= asked.max_tokens and not reader.has_ended
    return "length" if cut else "stop"


def usage(asked: Asked, reader: AnswerReader) -> dict[str, int]:
    prompt, answer = len(asked.prompt), reader.num_tokens
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
