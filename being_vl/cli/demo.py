"""`being-vl demo`: a page in the browser: an image's tokens, and a chat."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from .loading import check_part
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
    from ..demo.page import build_page, launch_page

    title = Path(args.checkpoint).name
    from ..demo.conversation import load_speaker  # after the page, which may lack gradio

    check_part("checkpoint", args.checkpoint)
    speaker = load_speaker(
        args.checkpoint,
        device=args.device,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
    )
    page = build_page(speaker, title)
    launch_page(page, host=args.host, port=args.port, open_browser=args.browser)
    return 0
