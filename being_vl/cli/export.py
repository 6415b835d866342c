"""`being-vl export`: a Being-VL checkpoint → a plain text model, for vLLM, llama.cpp and the rest."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Write a checkpoint as a plain text model with a plain fast tokenizer: it loads where "
        "being_vl is not installed. Images go in as ids, which processor(images=…) gives."
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument("checkpoint", type=str, help="folder or Hub id of a Being-VL checkpoint")
    parser.add_argument("--output", type=str, required=True, help="folder of the plain checkpoint")
    parser.add_argument("--json", action="store_true", help="print a summary as JSON")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError: the checkpoint does not load, has grid positions, or the output exists.
    """
    from ..hub.checkpoint import export_checkpoint
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
