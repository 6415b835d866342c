"""The command `being-vl`: one module a command, loaded only when it runs.

Each module of this folder has `make_parser()`, which returns a `parsing.Parser`, and
`main(args)`. Options that several commands share are declared in `options`. An error ends with one line on
standard error and exit status 2; `--traceback` shows where it arose.
"""

from __future__ import annotations

import difflib
import gc
import importlib
import io
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from . import signals

COMMANDS = {
    "quickstart": "train and test a small model on easy-VQA, end to end, in minutes",
    "train-vq": "train a VQ-GAN on images",
    "convert-vq": "convert a published VQ-GAN checkpoint",
    "encode": "quantize images into parquet shards of codes",
    "train-bpe": "train the image BPE on grids of codes",
    "convert": "convert the authors' released vocabulary from a pickle to JSON",
    "inspect": "draw a vocabulary's tokens, or an image with its tokens",
    "stats": "measure how a vocabulary compresses grids of codes",
    "init": "extend a text model by an image vocabulary",
    "tokenize": "turn conversations about images into a data set of token ids",
    "train": "train one stage of a checkpoint on tokenized samples",
    "ablate": "train and score the paper's comparison of stages, with and without merges",
    "eval": "score a checkpoint on benchmarks",
    "results": "tabulate results: tokens per image and accuracy",
    "chat": "chat with a checkpoint about images in the terminal, and let it draw",
    "demo": "chat in a browser, and look at the tokens of an image",
    "card": "write the model card of a checkpoint",
    "push": "push a checkpoint or codes to the Hub",
    "export": "export a checkpoint as a plain text model for other engines",
    "serve": "answer OpenAI's API over HTTP, with images in and images out",
    "env": "print versions and devices, and check for known problems",
}

_LONGEST = 1000  # characters of an error; values may be whole files
_PACKAGE = str(Path(__file__).parents[1])
# Torch and transformers make 650,000 that the collector of garbage tracks.
_OBJECTS_OF_IMPORTS = 500_000


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
            "being-vl COMMAND --help lists the options of a command, --help-all also the rare ones. All accept",
            "--config FILE.yaml, overridden by flags. being-vl --version prints the version.",
        ]
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 2 on an error, 130 on Ctrl-C, or the command's own.

    Without `argv`, the process is the command's own: its signals are handled, and SIGTERM ends it.
    """
    if argv is not None:
        return _main(argv)
    signals.handle()
    try:
        status = _main(sys.argv[1:])
        if status == 0:
            _leave_other_processes()
        return status
    finally:
        signals.let_go()


def _leave_other_processes() -> None:
    """End torch's process group: its threads, where they outlive the interpreter, may abort a command that is done."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def _main(argv: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows ? for –
            stream.reconfigure(errors="replace")
    name = argv[0] if argv else ""
    show_traceback = "--traceback" in argv
    try:
        status = _run(argv)
        sys.stdout.flush()  # here, where a pipe without a reader is told from an error
        return status
    except KeyboardInterrupt:
        print(f"being-vl {name}: interrupted", file=sys.stderr)
        return signals.INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except SystemExit as stop:
        if stop.code == signals.TERMINATED:
            print(f"being-vl {name}: terminated", file=sys.stderr, flush=True)
            signals.end_by_sigterm()
        raise
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
        if show_traceback or not (isinstance(error, Exception) or is_panic):
            raise
        print(f"being-vl {name}: error: {_one_line(error, argv[1:])}", file=sys.stderr)
        return 2


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        from being_vl import __version__

        print(f"being-vl {__version__}")
        return 0
    name = argv[0]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
        print(f"being-vl: error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    if "torch" not in sys.modules:
        _collect_after_imports()
    return run_command(name, argv[1:])


def run_command(name: str, argv: list[str]) -> int:
    """Run a command in this process; what it raises is the caller's."""
    command = importlib.import_module(f"being_vl.cli.{name.replace('-', '_')}")
    # Options that only a slow import knows are left out of the short help.
    asks_help = {"-h", "--help"} & set(argv) and hasattr(command, "make_help_parser")
    parser = command.make_help_parser() if asks_help else command.make_parser()
    parser.prog = f"being-vl {name}"
    args = parser.parse_args(argv)
    _check_output(args, is_file=name == "inspect" or args.get("format") == "gguf")
    if args.get("device") not in (None, "cpu"):
        from .loading import check_device

        check_device(args.device)
    return command.main(args) or 0


def _collect_after_imports() -> None:
    """Put off the search for garbage until most imports are done: a fifth of the time to the prompt of `chat`."""
    usual = gc.get_threshold()

    def restore(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            gc.callbacks.remove(restore)
            gc.set_threshold(*usual)
            gc.freeze()  # what imports made stays; later searches pass it over

    gc.callbacks.append(restore)
    gc.set_threshold(_OBJECTS_OF_IMPORTS, *usual[1:])


def _check_output(args: Any, *, is_file: bool) -> None:
    """Raises ValueError where a folder is to be written at, or below, what is a file, or the other way round."""
    for option in ("output", "output_dir"):
        value = args.get(option)
        if not isinstance(value, str) or "://" in value:
            continue
        path = Path(value)
        if is_file and path.is_dir():
            raise ValueError(f"--{option} {value}: is a folder, and a file is needed")
        for folder in path.parents if is_file else (path, *path.parents):
            if folder.exists() and not folder.is_dir():
                raise ValueError(f"--{option} {value}: {folder} is a file, and a folder is needed")


def _one_line(error: BaseException, argv: list[str]) -> str:
    """An error for a person, with the files that were read; one that no command foresees says its type and place."""
    text = " ".join(str(error).split())
    text = text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
    foreseen = isinstance(error, (ValueError, OSError, ImportError)) and text
    if isinstance(error, ImportError) and text:  # what to install, whatever the input
        return text
    if (foreseen and "--" in text) or any(word in text for word in argv if "/" in word):
        return text if foreseen else _unexpected(error, text)
    inputs = [
        f"{option} {value}"
        for option, value in zip(["", *argv], argv, strict=False)
        if os.path.exists(value) and option not in ("--output", "--output_dir")
    ]
    place = f" (from {', '.join(map(str.strip, inputs))})" if inputs else ""
    return (text if foreseen else _unexpected(error, text)) + place


def _unexpected(error: BaseException, text: str) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _PACKAGE in f.filename]
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return f"unexpected {type(error).__name__}{place}: {text}; --traceback shows all of it"
