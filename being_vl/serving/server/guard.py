"""raw HTTP → requests that may go on: key, place in the queue, size, and how long the client takes to send."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from fastapi import Request, Response

from .prompts import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_OPEN = ("/health", "/metrics")
_SENDING = 30.0  # seconds between two pieces of a body


def error_body(message: str, kind: str, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


class Guard:
    """An ASGI middleware.

    Args:
        app: what is guarded.
        api_key: what `Authorization: Bearer` must hold, if anything.
        count: called with the status of each answer.
    """

    def __init__(
        self, app: Any, limits: Limits, *, api_key: str | None, count: Callable[[int], None]
    ):
        self._app, self._limits, self._count = app, limits, count
        self._api_key = None if api_key is None else f"Bearer {api_key}".encode()
        self.waiting = 0  # requests that are being sent, wait or are answered

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN:
            await self._app(scope, receive, send)
            return

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self._count(message["status"])
            await send(message)

        body = _Body(receive)
        with suppress(_DisconnectedError):
            try:
                self._judge(scope)
                await self._pass_on(scope, body, receive, counted)
            except _RefusedError as refused:
                if not any(name == b"expect" for name, _ in scope["headers"]):
                    await body.forget()
                await _refuse(counted, *refused.args)

    async def _pass_on(self, scope: Scope, body: _Body, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        # A body is memory, so a request has its place from its first byte to that of its answer.
        if self.waiting > self._limits.max_waiting:
            raise _RefusedError(429, "The server is busy; try again in a while.")
        self.waiting += 1
        try:
            await self._app(scope, _replay(await self._whole(body), receive), send)
        finally:
            self.waiting -= 1

    def _judge(self, scope: Scope) -> None:
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._api_key is not None and not hmac.compare_digest(given, self._api_key):
            raise _RefusedError(401, "The API key is missing or wrong.")
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > self._limits.max_body:
            raise self._too_long()

    async def _whole(self, body: _Body) -> bytes:
        kept = bytearray()
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for piece in body.pieces():
                    kept += piece
                    if len(kept) > self._limits.max_body:
                        raise self._too_long()
        except TimeoutError:
            body.is_over = True
            raise _RefusedError(408, "The body did not come in time.") from None
        return bytes(kept)

    def _too_long(self) -> _RefusedError:
        return _RefusedError(413, f"The body is longer than {self._limits.max_body} bytes.")


class _DisconnectedError(Exception):
    pass


class _RefusedError(Exception):
    """With a status and a sentence."""


class _Body:
    """What a client sends."""

    def __init__(self, receive: Receive):
        self._receive = receive
        self.is_over = False

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        while not self.is_over:
            message = await asyncio.wait_for(self._receive(), _SENDING)
            if message["type"] != "http.request":
                raise _DisconnectedError
            self.is_over = not message.get("more_body", False)
            yield message.get("body", b"")

    async def forget(self) -> None:
        """Read on for a while: most clients look for an answer only when all is sent."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_SENDING):
                async for _ in self.pieces():
                    pass


def _replay(body: bytes, receive: Receive) -> Receive:
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> MutableMapping[str, Any]:
        return messages.pop() if messages else await receive()

    return replay


async def _refuse(send: Send, status: int, message: str) -> None:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = json.dumps(error_body(message, kind)).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def unless_gone(request: Request, work: Any) -> Any:
    """Await the work, and end it when the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            return Response(status_code=499)  # nobody reads it
        return task.result()
    finally:
        for future in (task, gone):
            future.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await task
