"""Pictures from a URL or within a text: the same pixels as of the file, and no larger than a file may be."""

from __future__ import annotations

import base64
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from being_vl import BeingVLImageProcessor
from being_vl.quantizers import video_loading
from being_vl.quantizers.image_loading import UnreadableImageError
from being_vl.quantizers.video_loading import UnreadableVideoError, load_video

RNG = np.random.default_rng(0)


def file_of(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(*shape, dtype=np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


_TURNED = Image.Exif()
_TURNED[0x0112] = 6

FILES = {
    "rgb.png": file_of(Image.fromarray(noise(8, 12, 3))),
    "transparent.png": file_of(Image.fromarray(noise(8, 12, 4), "RGBA")),
    "palette.png": file_of(Image.fromarray(noise(8, 12, 3)).quantize(9), transparency=3),
    "deep.png": file_of(Image.fromarray(noise(8, 12, dtype=np.uint16))),
    "turned.jpg": file_of(Image.fromarray(noise(8, 16, 3)), "JPEG", exif=_TURNED),
    "large.png": file_of(Image.new("1", (3000, 3000))),
    "page.html": b"<html>not found</html>",
}


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name == "moved":
            self.send_response(302)
            self.send_header("Location", "/rgb.png")
            self.end_headers()
            return
        self.send_response(200 if name in FILES or name == "endless" else 404)
        self.end_headers()
        if name == "endless":
            with_end = 1 << 24  # so that a reader without a limit ends, too
            try:
                for _ in range(with_end >> 16):
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
            self.server.sent_all = True
        self.wfile.write(FILES.get(name, b""))

    def log_message(self, *args) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.sent_all = False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def processor() -> BeingVLImageProcessor:
    return BeingVLImageProcessor(do_resize=False, do_center_crop=False, max_image_pixels=1 << 16)


def pixels(processor, image) -> np.ndarray:
    return processor(image, return_tensors="np")["pixel_values"][0]


def url(server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}/{name}"


@pytest.mark.parametrize("name", [n for n in FILES if n not in ("large.png", "page.html")])
def test_a_fetched_picture_is_the_files(server, processor, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    want = pixels(processor, str(tmp_path / name))
    text = base64.b64encode(FILES[name]).decode()
    for form in (url(server, name), text, f"data:image/png;base64,{text}", {"bytes": FILES[name]}):
        np.testing.assert_array_equal(pixels(processor, form), want)


def test_videos_are_fetched_alike(server, tmp_path, monkeypatch):
    frames = [Image.fromarray(noise(8, 12, 3)) for _ in range(3)]
    file = file_of(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    monkeypatch.setitem(FILES, "clip.webp", file)
    fetched, metadata = load_video(url(server, "clip.webp"))
    np.testing.assert_array_equal(fetched, np.stack(frames))
    assert metadata.total_num_frames == 3
    with pytest.raises(UnreadableVideoError, match=r"none\.webp: .*404"):
        load_video(url(server, "none.webp"))
    monkeypatch.setattr(video_loading, "MAX_VIDEO_BYTES", 1 << 16)
    with pytest.raises(UnreadableVideoError, match="more than 65536 bytes"):
        load_video(url(server, "endless"))


def test_a_pipe_is_no_video(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UnreadableVideoError, match=r"pipe\.mp4: .*not a regular file"):
        load_video(tmp_path / "pipe.mp4")


def test_moved(server, processor):
    np.testing.assert_array_equal(
        pixels(processor, url(server, "moved")), pixels(processor, FILES["rgb.png"])
    )


@pytest.mark.parametrize("form", ["url", "base64", "data"])
def test_the_header_is_read_before_a_pixel(server, processor, monkeypatch, form):
    text = base64.b64encode(FILES["large.png"]).decode()
    forms = {
        "url": url(server, "large.png"),
        "base64": text,
        "data": f"data:image/png;base64,{text}",
    }
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(
        UnreadableImageError, match="3000×3000 pixels, more than the limit of 65536"
    ):
        processor(forms[form])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("page.html", r"/page\.html: not a readable image: its format is not known"),
        ("missing", "/missing: cannot be fetched: HTTP Error 404"),
        ("endless", "/endless: more than 524288 bytes"),
    ],
)
def test_what_is_no_picture_is_named(server, processor, name, message):
    with pytest.raises(UnreadableImageError, match=message):
        processor(url(server, name))
    assert not server.sent_all


def test_no_server(processor):
    with pytest.raises(
        UnreadableImageError, match=r"http://127\.0\.0\.1:9/a\.png: cannot be fetched"
    ):
        processor("http://127.0.0.1:9/a.png")
