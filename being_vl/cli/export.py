"""`being-vl export`: a Being-VL checkpoint → a plain text model, for vLLM, llama.cpp and the rest."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import Namespace

from .options import add, add_about
from .parsing import Parser


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Write a checkpoint as a plain text model with a plain fast tokenizer: it loads where being_vl is not "
        "installed. Images go in as ids, which processor(images=…) gives.",
        json="print a summary as JSON",
    )
    add_about(parser, "checkpoint")
    add(parser, "output", help="folder of the plain checkpoint", required=True)
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError: the checkpoint does not load, has grid positions, or the output exists.
    """
    from ..serving.plain import export_checkpoint
    from ..models.loading import load_language_model
    from ..processing.tokenization_being_vl import BeingVLTokenizer

    model = load_language_model(args.checkpoint, dtype="auto")
    tokenizer = BeingVLTokenizer.from_pretrained(args.checkpoint)
    resolved = make_parser().dump(args)
    export_checkpoint(model, tokenizer, Path(args.output), settings={"export.yaml": resolved})
    if args.json:
        print(json.dumps({"output": args.output, "vocab_size": model.config.vocab_size}))
    else:
        print(
            f"wrote {args.output}: a {model.stock_class.__name__}, {model.config.vocab_size:,} ids"
        )
    return 0
