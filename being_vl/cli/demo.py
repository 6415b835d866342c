"""`being-vl demo`: a page in the browser: an image's tokens, and a chat."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeFloat, PositiveInt


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Serve a page on this machine: an image, its reconstruction and its tokens by a number of "
        'merges, and a chat. It needs gradio: pip install "being-vl[demo]". Nothing leaves the machine.'
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument("checkpoint", type=str, help="folder or Hub id")
    parser.add_argument(
        "--host", type=str, default="127.0.0.1", help="0.0.0.0 serves the network too"
    )
    parser.add_argument("--port", type=PositiveInt, help="default: the first free one from 7860 on")
    parser.add_argument("--browser", action="store_true", help="open the page in a browser")
    parser.add_argument("--max-new-tokens", type=PositiveInt, default=256, help="of an answer")
    parser.add_argument(
        "--temperature", type=NonNegativeFloat, default=0.0, help="0: always the likeliest token"
    )
    parser.add_argument("--device", type=str, help="default: a GPU where there is one")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ImportError: gradio is not installed.
        ValueError, OSError: the checkpoint does not load, or the port is taken.
    """
    from ..demo.page import build_page, launch_page

    title = Path(args.checkpoint).name
    from ..demo.conversation import load_speaker  # after the page, which may lack gradio

    speaker = load_speaker(
        args.checkpoint,
        device=args.device,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
    )
    page = build_page(speaker, title)
    launch_page(page, host=args.host, port=args.port, open_browser=args.browser)
    return 0
