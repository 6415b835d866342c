"""The command `being-vl`: one module a command, loaded only when it runs.

Each module of this folder has `make_parser()`, which returns a `jsonargparse.ArgumentParser`, and
`main(args)`. Bad input ends with one line on standard error and exit status 2; the environment variable
BEING_VL_DEBUG=1 shows the traceback instead.
"""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "quickstart": "train and test a small model on easy-VQA, end to end, in minutes",
    "train-vq": "train a VQ-GAN on images",
    "convert-vq": "turn a published VQ-GAN checkpoint into a folder that loads here",
    "encode": "quantize images into parquet shards of codes",
    "train-bpe": "train the image BPE on grids of codes",
    "convert": "turn the authors' released vocabulary into a table that can be read safely",
    "inspect": "draw a vocabulary's tokens, or an image with its tokens",
    "stats": "measure how a vocabulary compresses grids of codes",
    "init": "extend a text model by an image vocabulary: a checkpoint to train",
    "tokenize": "turn conversations about images into a data set of ids to train on",
    "train": "train a stage of a checkpoint on tokenized rows",
    "ablate": "train and score the paper's grid: with and without merges, one stage and two",
    "eval": "score a checkpoint on benchmarks",
    "results": "tabulate result files: tokens per image against accuracy",
    "chat": "talk with a checkpoint in the terminal, about images and in images",
    "demo": "the same in a browser, with an image's tokens",
    "card": "describe a checkpoint, from what its files say",
    "push": "send a checkpoint, or codes, to the Hub",
    "export": "write a checkpoint as a plain text model, for engines that know no other",
    "env": "print versions and devices, and check what is known to break",
}

_INTERRUPTED = 130


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            "usage: being-vl COMMAND [options]",
            "",
            "commands:",
            *lines,
            "",
            "being-vl COMMAND --help lists the options of a command; each takes --config FILE.yaml,",
            "whose values flags override. being-vl --version prints the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status (0, or 2 on bad input, 130 on Ctrl-C)."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from being_vl import __version__

        print(f"being-vl {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        print(
            f"being-vl: error: no command {name!r}; there are: {', '.join(COMMANDS)}",
            file=sys.stderr,
        )
        return 2
    try:
        command = importlib.import_module(f"being_vl.cli.{name.replace('-', '_')}")
        parser = command.make_parser()
        parser.prog = f"being-vl {name}"
        args = parser.parse_args(argv[1:])
        return command.main(args) or 0
    except KeyboardInterrupt:
        print(f"being-vl {name}: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("BEING_VL_DEBUG"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"being-vl {name}: error: {message}", file=sys.stderr)
        return 2
