"""`being-vl chat`: questions about images → answers, and images, in the terminal."""

from __future__ import annotations

import sys

from jsonargparse import Namespace

from .loading import load_speaker
from .options import add, add_about, option
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Chat with a checkpoint. In a session, /image PATH adds an image to the next question, /draw FILE TEXT saves a "
        "generated image, /reset starts a new conversation, and /help lists all commands. Input may come from a pipe: "
        "answers go to standard output, errors to standard error, and the exit status is 1 if an error occurred."
    )
    add_about(parser, "checkpoint")
    add(parser, "image", help="image of the first question")
    option(parser, "system", str, "system message")
    add(parser, "max-new-tokens", default=256)
    add(parser, "temperature", "top-p", "seed", "device")
    return parser


def main(args: Namespace) -> int:
    import torch
    from rich.console import Console
    from transformers.utils import logging

    from ..demo.terminal import Session, typed_lines

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.manual_seed(args.seed)  # transformers.set_seed would import the trainer, and peft with it
    console = Console(highlight=False)
    session = Session(load_speaker(args), args.system, console, show_tracebacks=args.traceback)
    if args.image is not None:
        session.add_image(args.image)
    if sys.stdin.isatty():
        console.print(f"{args.checkpoint}: /help lists the commands, Ctrl-D leaves.", style="dim")
        session.run(typed_lines(console))
        return 0
    session.run(iter(sys.stdin))
    return 1 if session.failures else 0
