"""ids of a prompt → ids of an answer, as they come, by the engine in this process.

Source: transformers' `generate`, which is asked by one thread, one answer at a time. It differs from
`transformers serve` in that images go in and out, and that nothing is waited for by a request that has gone.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from ...models.stopping import StopOnEvent
from ..request_masks import Mode


@dataclass(frozen=True)
class Asked:
    """What an engine is asked."""

    prompt: list[int]  # token ids, images included
    mode: Mode
    grid_size: tuple[int, int] | None  # (height, width) of generated images, in cells
    max_tokens: int  # of the answer; an image's length follows from its grid
    temperature: float  # 0 for the likeliest token each time
    top_p: float
    seed: int | None


class Backend(Protocol):
    """An engine."""

    def answer(self, asked: Asked) -> AsyncGenerator[list[int], None]:
        """Token ids as they come; closing it ends the generation."""

    async def close(self) -> None:
        """Stop, and end what is being generated."""


@dataclass
class _Job:
    asked: Asked
    loop: asyncio.AbstractEventLoop
    ids: asyncio.Queue[list[int] | Exception | None] = field(default_factory=asyncio.Queue)
    stopped: threading.Event = field(default_factory=threading.Event)

    def put(self, item: list[int] | Exception | None) -> None:
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.ids.put_nowait, item)


class _Relay(BaseStreamer):
    """New ids → the job; the first that `generate` puts is the prompt."""

    def __init__(self, job: _Job):
        self._job = job
        self._is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._is_prompt:
            self._job.put(value.reshape(-1).tolist())
        self._is_prompt = False

    def end(self) -> None:
        pass


class TransformersBackend:
    """`generate` of a Being-VL language model, in a thread of its own."""

    def __init__(self, model: Any):
        self._model = model.eval()
        self._jobs: queue.Queue[_Job | None] = queue.Queue()
        self._thread = threading.Thread(target=self._work, name="generate", daemon=True)
        self._thread.start()

    async def answer(self, asked: Asked) -> AsyncGenerator[list[int], None]:
        """See [`Backend`]."""
        job = _Job(asked, asyncio.get_running_loop())
        self._jobs.put(job)
        try:
            while (item := await job.ids.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.stopped.set()

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if job.stopped.is_set():
                continue
            try:
                self._generate(job)
                job.put(None)
            except Exception as error:  # raised again where the answer is awaited
                job.put(error)

    @torch.inference_mode()
    def _generate(self, job: _Job) -> None:
        asked = job.asked
        options: dict[str, Any] = {"do_sample": asked.temperature > 0}
        if asked.temperature > 0:
            options |= {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
        if asked.mode != "text":
            options |= {"generation_mode": asked.mode, "image_grid_size": asked.grid_size}
        if asked.mode != "image":
            options["max_new_tokens"] = asked.max_tokens
        if asked.seed is None:
            torch.seed()  # or the seed of the answer before would rule this one too
        else:
            torch.manual_seed(asked.seed)
        ids = torch.tensor([asked.prompt], device=self._model.device)
        self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            streamer=_Relay(job),
            stopping_criteria=StoppingCriteriaList([StopOnEvent(job.stopped)]),
            **options,
        )
