"""`being-vl demo`: a page in the browser: an image's tokens, and a chat."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from .loading import load_speaker
from .options import add, add_about, flag, option
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Serve a page on this machine: an image, its reconstruction and its tokens by a number of merges, and a "
        'chat. Requires gradio: pip install "being-vl[demo]". No data is sent to other hosts.'
    )
    add_about(parser, "checkpoint")
    option(parser, "host", str, "0.0.0.0 serves the network too", default="127.0.0.1")
    option(parser, "port", PositiveInt, "default: the first free one from 7860 on")
    flag(parser, "browser", "open the page in a browser")
    add(parser, "max-new-tokens", default=256)
    add(parser, "temperature", "top-p", "device")
    return parser


def main(args: Namespace) -> int:
    from ..demo.page import build_page, launch_page  # first of all: gradio may be missing

    page = build_page(load_speaker(args), Path(args.checkpoint).name)
    launch_page(page, host=args.host, port=args.port, open_browser=args.browser)
    return 0
