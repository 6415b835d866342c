"""HTTP of the stand-in Hub: reads a request whatever its fate, lets faults happen, sends answers."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from .server import HubServer

TOKEN = "hf_stand_in"
_CHUNK = 1 << 13


@dataclass(frozen=True)
class Upload:
    """What came of one PUT of an LFS object: bytes that arrived, of how many."""

    oid: str
    received: int
    expected: int


class ConnectionCutError(Exception):
    """The client is gone, or a fault closes its connection: there is nobody to answer."""


class HubRequest(BaseHTTPRequestHandler):
    """One connection. Subclasses say which method answers which path."""

    hub: HubServer
    protocol_version = "HTTP/1.1"
    # (method, pattern of the quoted path, name of the method that answers)
    routes: tuple[tuple[str, re.Pattern[str], str], ...] = ()
    open_to_all: frozenset[str] = frozenset()  # names that need no token, though they are no GET

    def log_message(self, *_: Any) -> None:
        """Silent: pytest shows what matters."""

    def handle(self) -> None:
        # A killed client, or one that was cut off, is what this server is there for.
        with contextlib.suppress(ConnectionError):
            super().handle()

    def _dispatch(self) -> None:
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        self.fault = None
        with self.hub.lock:
            self.hub.busy += 1
            self.hub.requests.append((self.command, unquote(url.path)))
            for fault in self.hub.faults:
                if fault.befalls(self.command, url.path):
                    self.fault = fault
                    break
        try:
            # The body is read first, whatever the answer: the connection goes on being used.
            self.body = self._read_body(url.path)
            if self.fault is not None and self.fault.status is not None:
                self.send(b"a fault", self.fault.status, self.fault.headers)
                return
            self._route(url.path)
        except ConnectionCutError:
            self.close_connection = True
        finally:
            with self.hub.lock:
                self.hub.busy -= 1

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _dispatch

    def _route(self, path: str) -> None:
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, name in self.routes:
            match = pattern.match(path)
            if wanted == method and match:
                answer = getattr(self, name)
                groups = [part and unquote(part) for part in match.groups()]
                if method != "GET" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    if name not in self.open_to_all:
                        self.fail(401, "Invalid username or password.")
                        return
                answer(*groups)
                return
        self.fail(404, f"no route for {self.command} {path}")

    def _read_body(self, path: str) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        limit = length
        if self.fault is not None and self.fault.cut_upload is not None:
            limit = min(length, self.fault.cut_upload)
        parts, received = [], 0
        with contextlib.suppress(ConnectionError):
            while received < limit and (part := self.rfile.read(min(_CHUNK, limit - received))):
                parts.append(part)
                received += len(part)
                with self.hub.lock:
                    self.hub.bytes_arrived += len(part) if self.command == "PUT" else 0
                if self.hub.bytes_per_second is not None and self.command == "PUT":
                    time.sleep(len(part) / self.hub.bytes_per_second)
        if path.startswith("/lfs/") and self.command == "PUT":
            with self.hub.lock:
                self.hub.uploads.append(Upload(path[len("/lfs/") :], received, length))
        if received < length:
            raise ConnectionCutError
        return b"".join(parts)

    # ---- answers

    def send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        if self.fault is not None and self.fault.lose_reply:
            raise ConnectionCutError
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault is not None and self.fault.cut_download is not None:
            self.wfile.write(content[: self.fault.cut_download])
            raise ConnectionCutError
        self.wfile.write(content)

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def fail(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.send(json.dumps({"error": message}).encode(), status, headers)
