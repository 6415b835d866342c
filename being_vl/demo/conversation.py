"""messages → answer and image: several turns with a checkpoint, streamed.

Source: transformers' `TextIteratorStreamer` and its chat templates. It differs in that an image is
quantized once, when it comes, and not again for each turn.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import StoppingCriteriaList, TextIteratorStreamer

from ..files import reading
from ..models.loading import load_language_model
from ..models.modeling_being_vl import BeingVLLanguageModel
from ..models.stopping import StopOnEvent
from ..processing.processing_being_vl import BeingVLProcessor


@dataclass
class Chat:
    """What has been said, and the codes of the images in it, in order."""

    system: str | None = None  # what the model is told first
    messages: list[dict[str, Any]] = field(default_factory=list)
    codes: list[np.ndarray] = field(default_factory=list)
    waiting: list[np.ndarray] = field(default_factory=list)  # for the next question

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages, self.codes, self.waiting = [], [], []

    def with_question(self, text: str) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
        """Messages and codes with one more turn of the user, the waiting images before its text."""
        content = [*({"type": "image"} for _ in self.waiting), {"type": "text", "text": text}]
        head = [{"role": "system", "content": self.system}] if self.system else []
        turn = {"role": "user", "content": content}
        return [*head, *self.messages, turn], [*self.codes, *self.waiting]

    def add_turn(self, text: str, answer: str) -> None:
        """Keep a question, with the images that waited for it, and its answer."""
        messages, self.codes = self.with_question(text)
        answered = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        self.messages = [*messages[1 if self.system else 0 :], answered]
        self.waiting = []


class Speaker:
    """A checkpoint that answers.

    `temperature` is 0 for the likeliest token each time, else that of the sampling.
    """

    def __init__(
        self,
        model: BeingVLLanguageModel,
        processor: BeingVLProcessor,
        *,
        max_new_tokens: int = 256,
        temperature: float = 0.0,
        top_p: float = 1.0,
    ):
        if not processor.chat_template:
            raise ValueError("the checkpoint has no chat template, so it cannot be talked with")
        self.model = model.eval()
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        self._decoding: dict[str, Any] = sampling if temperature > 0 else {"do_sample": False}

    def look(self, image: Any) -> np.ndarray:
        """An image (loaded, a path, or a URL) → its codes, int32 (h, w)."""
        if isinstance(image, (str, os.PathLike)):
            image = self.processor.image_processor.fetch_images(image)
        return self.processor.quantize([image])[0]

    def _inputs(self, conversation: Chat, text: str) -> dict[str, torch.Tensor]:
        messages, codes = conversation.with_question(text)
        prompt = self.processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        # The template has the special tokens.
        options: dict[str, Any] = {"add_special_tokens": False, "return_tensors": "pt"}
        inputs = self.processor(text=prompt, image_codes=codes or None, **options)
        return {name: values.to(self.model.device) for name, values in inputs.items()}

    def ask(self, conversation: Chat, text: str) -> Generator[str, None, None]:
        """Pieces of the answer, as they come; the turn is kept when the last has come.

        A caller that stops early (closes the iterator) ends the generation, and the turn is kept with what
        was said.
        """
        if not text.strip():
            raise ValueError("there is no question")
        inputs = self._inputs(conversation, text)
        length, limit = inputs["input_ids"].shape[1], self.model.config.max_position_embeddings
        if length >= limit:
            raise ValueError(
                f"the conversation has {length} tokens, the model takes {limit}: reset it"
            )
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, skip_special_tokens=True
        )
        stopped, failures = threading.Event(), []

        def generate() -> None:
            try:
                self.model.generate(
                    **inputs,
                    **self._decoding,
                    max_new_tokens=min(self.max_new_tokens, limit - length),
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([StopOnEvent(stopped)]),
                )
            except Exception as error:  # raised again in the caller's thread
                failures.append(error)
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        said = []
        try:
            for piece in streamer:
                if piece:
                    said.append(piece)
                    yield piece
        finally:
            stopped.set()
            thread.join()
            if not failures:
                conversation.add_turn(text, "".join(said))
        if failures:
            raise failures[0]

    @torch.inference_mode()
    def draw(self, conversation: Chat, text: str) -> Image.Image:
        """An image, as the model goes on after `text`; the conversation stays as it was."""
        inputs = self._inputs(conversation, text)
        ids = self.model.generate(**inputs, **self._decoding, generation_mode="image")
        size = self.model.config.image_grid_size
        return self.processor.post_process_multimodal_output(
            ids, generation_mode="image", height=size[0], width=size[1]
        )[0]


def load_speaker(checkpoint: str, *, device: str | None = None, **options: Any) -> Speaker:
    """Load a folder or repository for talking."""
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with reading(checkpoint):
        processor = BeingVLProcessor.from_pretrained(checkpoint, vq_device=place)
        model = load_language_model(checkpoint, dtype="auto").to(place)
    processor.tokenizer.check_rows(model.config.vocab_size)
    return Speaker(model, processor, **options)
