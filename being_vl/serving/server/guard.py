"""raw HTTP → requests that may go on: size, key, and how long the client takes to send."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

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
        max_body: bytes.
        api_key: what `Authorization: Bearer` must hold, if anything.
    """

    def __init__(self, app: Any, *, max_body: int, api_key: str | None):
        self._app, self._max_body = app, max_body
        self._api_key = None if api_key is None else f"Bearer {api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"")
        if self._api_key is not None and scope["path"] not in _OPEN:
            if not hmac.compare_digest(given, self._api_key):
                await _refuse(send, 401, "The API key is missing or wrong.")
                return
        length = headers.get(b"content-length", b"0")
        too_long = f"The body is longer than {self._max_body} bytes."
        if not length.isdigit() or int(length[:20]) > self._max_body:
            await _refuse(send, 413, too_long)
            return
        try:
            body = await self._body(receive)
        except TimeoutError:
            await _refuse(send, 408, "The body did not come in time.")
            return
        except _DisconnectedError:
            return
        if body is None:
            await _refuse(send, 413, too_long)
            return
        sent = False

        async def replay() -> MutableMapping[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        await self._app(scope, replay, send)

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None once it is too long."""
        body = bytearray()
        while True:
            message = await asyncio.wait_for(receive(), _SENDING)
            if message["type"] != "http.request":
                raise _DisconnectedError
            body += message.get("body", b"")
            if len(body) > self._max_body:
                return None
            if not message.get("more_body"):
                return bytes(body)


class _DisconnectedError(Exception):
    pass


async def _refuse(send: Send, status: int, message: str) -> None:
    kind = "authentication_error" if status == 401 else "invalid_request_error"
    body = json.dumps(error_body(message, kind)).encode()
    # What the client still sends is not read: the connection ends.
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
