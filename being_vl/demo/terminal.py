"""lines → answers: the session of `being-vl chat`, in a terminal or through pipes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import TextIO

from rich.console import Console

from ..bpe.drawing import save_image
from .conversation import Chat, Speaker

HELP = """\
/image PATH        show it an image (or the URL of one), which the next question is about
/draw FILE [TEXT]  write the image that it generates after TEXT to FILE
/reset             forget the conversation
/help              this list
/quit              leave; Ctrl-D does too, and Ctrl-C stops an answer
Anything else is a question."""


class Session:
    """A conversation by lines. What fails is one line on standard error; the session goes on.

    Args:
        system: what the checkpoint is told first.
        console: for answers.
        errors: for what fails.
        show_tracebacks: raise what fails instead of printing a line.
    """

    def __init__(
        self,
        speaker: Speaker,
        system: str | None = None,
        console: Console | None = None,
        errors: TextIO | None = None,
        *,
        show_tracebacks: bool = False,
    ):
        self.speaker = speaker
        self.conversation = Chat(system)
        self.console = console or Console(highlight=False)
        self.errors = errors or sys.stderr
        self.failures = 0
        self.show_tracebacks = show_tracebacks

    def run(self, lines: Iterator[str]) -> None:
        """Answer line after line, until there is none or one says `/quit`."""
        for line in lines:
            if line.strip() in ("/quit", "/exit"):
                return
            self.handle(line.strip())

    def handle(self, line: str) -> None:
        """Answer one line."""
        try:
            if line.startswith("/"):
                self._command(*line.split(maxsplit=1))
            elif line:
                self._answer(line)
        except KeyboardInterrupt:
            self.console.print("\n(stopped)", style="dim")
        except Exception as error:  # whatever a model, a file or a connection raises
            if self.show_tracebacks:
                raise
            self.failures += 1
            message = " ".join(str(error).split()) or type(error).__name__
            print(f"error: {message}", file=self.errors, flush=True)

    def _answer(self, text: str) -> None:
        with closing(self.speaker.ask(self.conversation, text)) as pieces:
            blank = True  # an answer begins with its first word
            for piece in pieces:
                self._write(piece.lstrip() if blank else piece)
                blank = blank and not piece.strip()
        self._write("\n")

    def _write(self, text: str) -> None:
        self.console.print(text, end="", markup=False, soft_wrap=True)
        self.console.file.flush()

    def _command(self, name: str, rest: str = "") -> None:
        match name:
            case "/image":
                self.add_image(rest)
            case "/draw":
                self._draw(rest)
            case "/reset":
                self.conversation.reset()
                self.console.print("(a new conversation)", style="dim")
            case "/help":
                self.console.print(HELP, markup=False)
            case _:
                raise ValueError(f"no command {name}; /help lists them")

    def add_image(self, source: str) -> None:
        """Quantize an image for the next question."""
        source = source.strip()
        if len(source) > 1 and source[0] == source[-1] and source[0] in "'\"":
            source = source[1:-1]
        if not source:
            raise ValueError("/image takes a path or a URL")
        is_url = source.startswith(("http://", "https://"))
        path = source if is_url else os.path.expanduser(source)
        if not is_url and not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: no such file")
        try:
            codes = self.speaker.look(path)
        except Exception as error:  # of a URL, whatever the client raises; it does not name the URL
            if not is_url:
                raise
            raise OSError(f"{source}: no image can be read there: {error}") from error
        self.conversation.waiting.append(codes)
        tokens = len(self.speaker.processor.tokenizer.image_bpe.encode(codes))
        height, width = codes.shape
        self.console.print(f"({height}×{width} codes, {tokens} tokens)", style="dim")

    def _draw(self, rest: str) -> None:
        file, _, text = rest.partition(" ")
        if not file:
            raise ValueError("/draw takes a file to write, and optionally what to draw")
        path = Path(os.path.expanduser(file))
        if not path.suffix:
            path = path.with_suffix(".png")
        image = self.speaker.draw(self.conversation, text)
        save_image(image, path)
        self.console.print(f"(wrote {path}, {image.width}×{image.height} pixels)", style="dim")


def typed_lines(console: Console) -> Iterator[str]:
    """Lines from a person, with a prompt and a history; ends at Ctrl-D and Ctrl-C."""
    with suppress(ImportError):  # Windows has none
        import readline  # noqa: F401  (input() edits lines with it)

    while True:
        try:
            yield input("> ")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
