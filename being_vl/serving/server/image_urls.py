"""`image_url` of a request → the file of an image: data URLs, and where it is allowed, URLs of the public internet.

A server that fetches what strangers name can be sent to addresses that only it can reach. So each address that
a name resolves to is judged, the connection goes to the judged address and not to the name again, and a
redirect is judged like a first URL.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit

_REDIRECTS = 3
_AGENT = "being-vl"
_SAFE = "%/:=&?~#+!$,;'@()*[]"  # of a path and query: not quoted, or not once more
# IPv6 that leads into IPv4 by way of a gateway: NAT64, Teredo.
_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32")))


def is_remote(url: str) -> bool:
    """Whether another server must be asked for it."""
    return url[:8].partition(":")[0].lower() in ("http", "https")


def image_file(url: str, *, max_bytes: int, allow_urls: bool, timeout: float = 10.0) -> bytes:
    """The file that a URL holds (`data:image/…;base64,…`) or, where `allow_urls`, names by http(s).

    `timeout` is in seconds, redirects included; the resolver of names has a limit of its own. What this server
    does not read is a ValueError of one sentence.
    """
    if is_remote(url):
        if not allow_urls:
            raise ValueError("this server fetches no URLs: send the image as a data URL")
        return _fetched(url, max_bytes, time.monotonic() + timeout)
    if url[:5].lower() != "data:":
        raise ValueError("image_url must be a data URL" + " or http(s)" * allow_urls)
    head, comma, body = url.partition(",")
    if not comma or not head[5:].lower().startswith("image/"):
        raise ValueError("a data URL of an image begins with data:image/…")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the data URL is not valid base64") from None


def _fetched(url: str, max_bytes: int, deadline: float) -> bytes:
    for _ in range(_REDIRECTS + 1):
        failure: Exception | None = None
        try:
            with _answer(url, deadline) as response:
                status, target = response.status, response.headers.get("Location")
                body = response.read(max_bytes + 1) if status == 200 else b""
        except (OSError, http.client.HTTPException) as error:
            failure = error
        if time.monotonic() > deadline:  # what has been read is cut, whether or not it failed
            raise ValueError("the image's URL took too long")
        if failure:
            reason = str(failure) or type(failure).__name__
            raise ValueError(f"the image's URL cannot be fetched: {reason}")
        if status in (301, 302, 303, 307, 308):
            url = urljoin(url, target or "")
            continue
        if status != 200:
            raise ValueError(f"the image's URL answers with status {status}")
        if len(body) > max_bytes:
            raise ValueError(f"the image's URL sends more than {max_bytes} bytes")
        return body
    raise ValueError(f"the image's URL redirects more than {_REDIRECTS} times")


@contextmanager
def _answer(url: str, deadline: float) -> Iterator[http.client.HTTPResponse]:
    """GET from an address that has been judged; at the deadline the connection ends, whatever still comes."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("the image's URL must be http(s) and name a host")
    secure = parts.scheme == "https"
    port = port or (443 if secure else 80)
    address = public_address(host, port)
    left = max(0.1, deadline - time.monotonic())
    with closing(http.client.HTTPConnection(host, port)) as connection:
        connection.sock = sock = socket.create_connection((address, port), timeout=left)
        if secure:
            connection.sock = sock = ssl.create_default_context().wrap_socket(
                sock, server_hostname=host, do_handshake_on_connect=False
            )
        # Time-outs of sockets begin anew with each byte.
        end = threading.Timer(max(0.1, deadline - time.monotonic()), _shut, (sock,))
        end.start()
        try:
            if isinstance(sock, ssl.SSLSocket):
                sock.do_handshake()
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            headers = {"User-Agent": _AGENT, "Accept": "image/*"}
            connection.request("GET", quote(path, safe=_SAFE), headers=headers)
            with connection.getresponse() as response:
                yield response
        finally:
            end.cancel()


def _shut(sock: socket.socket) -> None:
    with suppress(OSError):  # it may have ended by itself
        sock.shutdown(socket.SHUT_RDWR)


def public_address(host: str, port: int) -> str:
    """The first address of a host; all that it resolves to must be of the public internet."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise ValueError("the host of the image's URL is not known") from None
    addresses = [str(entry[4][0]) for entry in found]
    for text in addresses:
        address = ipaddress.ip_address(text.partition("%")[0])
        mapped = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None)
        for judged in filter(None, (address, mapped)):
            tunnel = any(judged in network for network in _TUNNELS)
            if not judged.is_global or judged.is_multicast or tunnel:
                raise ValueError("the image's URL leads to an address that is not public")
    if not addresses:
        raise ValueError("the host of the image's URL is not known")
    return addresses[0]
