"""Images by URL: only of the public internet, whatever a name or a redirect says, and within limits."""

from __future__ import annotations

import io
import socket
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from server_fixtures import data_url, picture

from being_vl.quantizers.image_loading import load_image
from being_vl.serving.server import image_urls


def read(url: str, *, allow_urls: bool = True, timeout: float = 3.0) -> Image.Image:
    file = image_urls.image_file(url, max_bytes=50_000, allow_urls=allow_urls, timeout=timeout)
    return load_image(file, max_pixels=100_000, name="the image")


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/slow"):
            self.drip()
            return
        file = io.BytesIO()
        picture(0, (8, 12)).save(file, "PNG")
        pages = {
            "/a.png": (200, file.getvalue()),
            "/%C3%A9%20a.png?b=%20": (200, file.getvalue()),
            "/long": (200, b"x" * 60_000),
            "/text": (200, b"hi"),
        }
        status, body = pages.get(self.path, (302, b""))
        self.send_response(status)
        if status == 302:
            self.send_header("Location", self.path.removeprefix("/to/"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        """A byte now and then, of the headers or of the body."""
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 999\r\n\r\n"
        self.wfile.write(b"HTTP/1.1 200 OK\r\nA: " if self.path == "/slow-head" else head)
        with suppress(OSError):
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.1)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture(scope="module")
def web():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://pictures.example:{server.server_port}"
    server.shutdown()


@pytest.fixture
def public(monkeypatch):
    """pictures.example is a public host; it lives on this machine."""

    def address(host: str, port: int) -> str:
        if host == "pictures.example":
            return "127.0.0.1"
        return judged(host, port)

    judged = image_urls.public_address
    monkeypatch.setattr(image_urls, "public_address", address)


def test_data_urls() -> None:
    url = data_url(picture(0, (8, 12)))
    assert read(url).size == (12, 8)
    assert read(url[:60] + "\n" + url[60:]).size == (12, 8)  # as the command base64 writes it
    for url, words in (
        ("data:image/png;base64,@@", "not valid base64"),
        ("data:text/plain;base64,AAAA", "begins with data:image"),
        ("data:image/png", "begins with data:image"),
        (data_url(picture(0, (400, 400)).convert("1")), "more than the limit"),
        ("file:///etc/passwd", "must be a data URL"),
        ("/etc/passwd", "must be a data URL"),
        ("ftp://example.com/a.png", "must be a data URL"),
    ):
        with pytest.raises(ValueError, match=words):
            read(url)


def test_a_public_url_is_fetched(web, public) -> None:
    assert read(f"{web}/a.png").size == (12, 8)
    assert read(f"{web}/to/{web}/a.png").size == (12, 8)
    assert read(f"{web}/é a.png?b= ").size == (12, 8)
    assert read(f"{web}/%C3%A9%20a.png?b=%20").size == (12, 8)


@pytest.mark.parametrize("path", ["/slow-head", "/slow-body"])
def test_a_server_that_drips_does_not_keep_us(web, public, path: str) -> None:
    """Each byte would begin a socket's time-out anew."""
    start = time.monotonic()
    with pytest.raises(ValueError, match="took too long"):
        read(f"{web}{path}", timeout=0.5)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/to/http://127.0.0.1/a.png", "not public"),
        ("/to/http://169.254.169.254/latest/meta-data", "not public"),
        ("/to/file:///etc/passwd", "must be http"),
        ("/long", "more than 50000 bytes"),
        ("/text", "not a readable image"),
    ],
)
def test_redirects_are_judged_too(web, public, path: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(f"{web}{path}")


def test_redirects_end(web, public) -> None:
    with pytest.raises(ValueError, match="redirects more than 3 times"):
        read(f"{web}/to/{web}/to/{web}/to/{web}/to/{web}/a.png")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "10.1.2.3", "192.168.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1",
        "[::1]", "[::ffff:127.0.0.1]", "[fd00::1]", "[fe80::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "2130706433", "0x7f.1", "224.0.0.1",
    ],
)  # fmt: skip
def test_private_addresses_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r"not public|not known"):
        read(f"http://{host}/a.png")


def test_all_addresses_of_a_name_are_judged(monkeypatch) -> None:
    """A name with a public and a private address is refused."""

    def resolved(host, port, **_):
        family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*family, ("93.184.216.34", port)), (*family, ("10.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    with pytest.raises(ValueError, match="not public"):
        image_urls.public_address("two.example", 80)


def test_urls_need_leave() -> None:
    with pytest.raises(ValueError, match="fetches no URLs"):
        read("http://93.184.216.34/a.png", allow_urls=False)
