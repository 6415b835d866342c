"""`image_url` of a request → a picture: data URLs, and where it is allowed, URLs of the public internet.

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
import time
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import PIL.Image

from ...quantizers.image_loading import UnreadableImageError, load_image

_REDIRECTS = 3
_AGENT = "being-vl"
# IPv6 that leads into IPv4 by way of a gateway: NAT64, Teredo.
_TUNNELS = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "2001::/32")))


def picture(
    url: str, *, max_pixels: int, max_bytes: int, allow_urls: bool, timeout: float = 10.0
) -> PIL.Image.Image:
    """Read the picture that a URL holds or names.

    Args:
        url: `data:image/…;base64,…`, or http(s).
        max_pixels, max_bytes: of the picture, and of its file.
        allow_urls: whether http(s) is fetched.
        timeout: seconds for a fetch, redirects included.

    Raises:
        ValueError: it is none that this server reads; one sentence says why.
    """
    scheme = url[:8].partition(":")[0].lower()
    if scheme == "data":
        data = _data(url)
    elif scheme in ("http", "https"):
        if not allow_urls:
            raise ValueError("this server fetches no URLs: send the image as a data URL")
        data = _fetched(url, max_bytes, time.monotonic() + timeout)
    else:
        raise ValueError("image_url must be a data URL" + " or http(s)" * allow_urls)
    try:
        return load_image(data, max_pixels=max_pixels, name="the image")
    except UnreadableImageError as error:
        raise ValueError(str(error)) from None


def _data(url: str) -> bytes:
    head, comma, body = url.partition(",")
    if not comma or not head[5:].lower().startswith("image/"):
        raise ValueError("a data URL of an image begins with data:image/…")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the data URL is not valid base64") from None


def _fetched(url: str, max_bytes: int, deadline: float) -> bytes:
    for _ in range(_REDIRECTS + 1):
        try:
            response = _request(url, deadline)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(
                f"the image's URL cannot be fetched: {error or type(error).__name__}"
            ) from None
        with response:
            if response.status in (301, 302, 303, 307, 308):
                url = urljoin(url, response.headers.get("Location") or "")
                continue
            if response.status != 200:
                raise ValueError(f"the image's URL answers with status {response.status}")
            return _body(response, max_bytes, deadline)
    raise ValueError(f"the image's URL redirects more than {_REDIRECTS} times")


def _body(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    chunks, size = [], 0
    try:
        while chunk := response.read1(1 << 16):
            size += len(chunk)
            if size > max_bytes:
                raise ValueError(f"the image's URL sends more than {max_bytes} bytes")
            if time.monotonic() > deadline:
                raise ValueError("the image's URL took too long")
            chunks.append(chunk)
    except (OSError, http.client.HTTPException) as error:
        raise ValueError(
            f"the image's URL cannot be read: {error or type(error).__name__}"
        ) from None
    return b"".join(chunks)


def _request(url: str, deadline: float) -> http.client.HTTPResponse:
    """GET from an address that has been judged."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("the image's URL must be http(s) and name a host")
    port = port or (443 if parts.scheme == "https" else 80)
    address = public_address(host, port)
    left = max(0.1, deadline - time.monotonic())
    connection = http.client.HTTPConnection(host, port, timeout=left)
    raw = socket.create_connection((address, port), timeout=left)
    try:
        secure = parts.scheme == "https"
        connection.sock = (
            ssl.create_default_context().wrap_socket(raw, server_hostname=host) if secure else raw
        )
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers={"User-Agent": _AGENT, "Accept": "image/*"})
        return connection.getresponse()
    except BaseException:
        raw.close()
        raise


def public_address(host: str, port: int) -> str:
    """The first address of a host; all that it resolves to must be of the public internet.

    Raises:
        ValueError: one is not, or there is none.
    """
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
