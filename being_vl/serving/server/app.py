"""routes, errors and figures of the server."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client import generate_latest as figures_as_text
from starlette.exceptions import HTTPException

from ...processing.processing_being_vl import BeingVLProcessor
from .answers import AnswerReader, Piece, as_part, choice, delta, event, finish_reason, png, usage
from .backends import Asked, Backend
from .guard import Guard, error_body, unless_gone
from .image_urls import is_remote
from .prompts import Limits, PromptMaker
from .schema import ChatRequest, ImagesRequest, as_sentence, sentence

logger = logging.getLogger(__name__)


class _Figures:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        names = {"registry": self.registry}
        self.requests = Counter("being_vl_requests", "answered, by status", ["status"], **names)
        self.prompt = Counter("being_vl_prompt_tokens", "of prompts", **names)
        self.answer = Counter("being_vl_answer_tokens", "of answers", **names)
        self.first = Histogram("being_vl_first_token_seconds", "to the first token", **names)
        self.waiting = Gauge("being_vl_waiting_requests", "asked or waiting", **names)

    def count(self, status: int) -> None:
        self.requests.labels(str(status)).inc()


class Server:
    """Answers requests by a backend.

    Args:
        name: of the model, as clients call it.
        grid_size: (height, width) of generated images where a request says none.
        api_key: that clients must send, if any.
    """

    def __init__(
        self,
        name: str,
        processor: BeingVLProcessor,
        backend: Backend,
        limits: Limits,
        *,
        grid_size: tuple[int, int] | None = None,
        api_key: str | None = None,
    ):
        self.name, self.processor, self.backend, self.limits = name, processor, backend, limits
        self._api_key = api_key
        self._prompts = PromptMaker(processor, limits, grid_size)
        # One thread makes prompts and images: the quantizer takes all cores, and tokenizers have state.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prompts")
        self._fetching = ThreadPoolExecutor(16, thread_name_prefix="images by URL")
        self._figures = _Figures()
        self._created = int(time.time())

    def app(self) -> Any:
        """The ASGI application."""

        @asynccontextmanager
        async def life(app: FastAPI) -> AsyncIterator[None]:
            yield
            await self.backend.close()
            for threads in (self._thread, self._fetching):
                threads.shutdown(cancel_futures=True)

        app = FastAPI(title=f"being-vl: {self.name}", lifespan=life)
        app.get("/health")(self._health)
        app.get("/metrics")(self._metrics)
        app.get("/v1/models")(self._models)
        app.post("/v1/chat/completions")(self._chat)
        app.post("/v1/images/generations")(self._images)
        app.exception_handler(RequestValidationError)(self._invalid)
        app.exception_handler(HTTPException)(self._no_route)
        app.exception_handler(RecursionError)(self._nested)
        guard = Guard(app, self.limits, api_key=self._api_key, count=self._figures.count)
        self._figures.waiting.set_function(lambda: guard.waiting)
        return guard

    async def _health(self) -> dict[str, str]:
        return {"status": "ok"}

    async def _metrics(self) -> Response:
        return Response(figures_as_text(self._figures.registry), media_type=CONTENT_TYPE_LATEST)

    async def _models(self) -> dict[str, Any]:
        kept = {"object": "model", "created": self._created, "owned_by": "being-vl"}
        return {"object": "list", "data": [{"id": self.name, **kept}]}

    async def _chat(self, body: ChatRequest, request: Request) -> Response:
        return await self._answered(request, self._whole_chat(body), body.model)

    async def _images(self, body: ImagesRequest, request: Request) -> Response:
        return await self._answered(request, self._whole_images(body), body.model)

    async def _answered(self, request: Request, work: Any, model: str | None) -> Response:
        """What the work comes to, or the one sentence of what is wrong."""
        if model not in (None, self.name):
            work.close()
            return self._error(404, f"There is no model {model[:80]!r} here, but {self.name!r}.")
        try:
            async with asyncio.timeout(self.limits.timeout):
                return await unless_gone(request, work)
        except ValueError as error:
            return self._error(400, as_sentence(error))
        except TimeoutError:
            return self._error(504, f"There was no answer within {self.limits.timeout:g} seconds.")
        except Exception:
            logger.exception("a request failed")
            return self._error(500, "The server failed to answer; its log says why.")

    async def _whole_chat(self, body: ChatRequest) -> Response:
        asked = await self._prompt(self._prompts.chat, body, await self._files(body))
        reader = AnswerReader(self.processor, asked.grid_size, body.stops)
        pieces = self._pieces(asked, reader)
        head: dict[str, Any] = {"id": f"chatcmpl-{uuid.uuid4().hex}", "model": self.name}
        head["created"] = int(time.time())
        if body.stream:
            # The first piece is waited for, so that what fails at once has a status of its own.
            first = await anext(pieces, None)
            events = self._events(body, asked, reader, head, first, pieces)
            return StreamingResponse(events, media_type="text/event-stream")
        parts: list[Piece] = []
        async for piece in pieces:
            if parts and isinstance(piece, str) and isinstance(parts[-1], str):
                parts[-1] += piece
            else:
                parts.append(piece)
        content: Any = [as_part(piece) for piece in parts]
        if asked.mode == "text":
            content = "".join(map(str, parts))
        message = {"role": "assistant", "content": content}
        answer = {
            **head, "object": "chat.completion", "usage": usage(asked, reader),
            "choices": [choice(finish_reason(asked, reader), message=message)],
        }  # fmt: skip
        return JSONResponse(answer)

    async def _events(
        self,
        body: ChatRequest,
        asked: Asked,
        reader: AnswerReader,
        head: dict[str, Any],
        first: Piece | None,
        pieces: AsyncGenerator[Piece, None],
    ) -> AsyncIterator[str]:
        head = {**head, "object": "chat.completion.chunk"}

        def chunk(said: dict[str, Any], cut: str | None = None) -> str:
            return event({**head, "choices": [choice(cut, delta=said)]})

        try:
            yield chunk({"role": "assistant", "content": ""})
            if first is not None:
                yield chunk(delta(first))
            async with asyncio.timeout(self.limits.timeout):
                async for piece in pieces:
                    yield chunk(delta(piece))
            yield chunk({}, finish_reason(asked, reader))
            if body.stream_options and body.stream_options.include_usage:
                yield event({**head, "choices": [], "usage": usage(asked, reader)})
        except Exception as error:  # the status is sent: what is wrong comes as an event
            logger.exception("a stream failed")
            what = "took too long" if isinstance(error, TimeoutError) else "failed"
            yield event(error_body(f"The answer {what}.", "server_error"))
        finally:
            await pieces.aclose()
        yield "data: [DONE]\n\n"

    async def _whole_images(self, body: ImagesRequest) -> Response:
        asked = await self._prompt(self._prompts.image, body)
        data, tokens = [], 0
        for number in range(body.n):
            seed = None if body.seed is None else body.seed + number
            reader = AnswerReader(self.processor, asked.grid_size)
            async for piece in self._pieces(dataclasses.replace(asked, seed=seed), reader):
                if not isinstance(piece, str):
                    data.append({"b64_json": png(piece)})
            tokens += reader.num_tokens
        given = len(asked.prompt)
        counts = {"input_tokens": given, "output_tokens": tokens, "total_tokens": given + tokens}
        return JSONResponse({"created": int(time.time()), "data": data, "usage": counts})

    async def _files(self, body: ChatRequest) -> list[bytes]:
        """The files of a request's images; who fetches keeps nobody else waiting."""
        loop, file = asyncio.get_running_loop(), self._prompts.file
        read = [
            loop.run_in_executor(self._fetching if is_remote(url) else self._thread, file, url)
            for url in self._prompts.urls(body)
        ]
        return await asyncio.gather(*read)

    async def _prompt(self, make: Callable[..., Asked], *given: Any) -> Asked:
        asked = await asyncio.get_running_loop().run_in_executor(self._thread, make, *given)
        self._figures.prompt.inc(len(asked.prompt))
        return asked

    async def _pieces(self, asked: Asked, reader: AnswerReader) -> AsyncGenerator[Piece, None]:
        loop, start, seen = asyncio.get_running_loop(), time.monotonic(), 0
        answer = self.backend.answer(asked)
        try:
            async for ids in answer:
                if not seen:
                    self._figures.first.observe(time.monotonic() - start)
                if self.processor.eoi_token_id in ids:  # an image is decoded beside the loop
                    found = await loop.run_in_executor(self._thread, list, reader.read(ids))
                else:
                    found = list(reader.read(ids))
                self._figures.answer.inc(reader.num_tokens - seen)
                seen = reader.num_tokens
                for piece in found:
                    yield piece
                if reader.stopped:
                    return
        finally:
            await answer.aclose()
        for piece in reader.rest():
            yield piece

    def _error(self, status: int, message: str, param: str | None = None) -> JSONResponse:
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return JSONResponse(error_body(message, kind, param), status)

    async def _invalid(self, request: Request, error: Any) -> Response:
        return self._error(400, *sentence(error.errors()))

    async def _no_route(self, request: Request, error: Any) -> Response:
        message = f"{request.method} {request.url.path[:80]}: {error.detail}."
        return self._error(error.status_code, message)

    async def _nested(self, request: Request, error: Any) -> Response:
        return self._error(400, "The body is nested too deeply.")
