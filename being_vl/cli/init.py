"""`being-vl init`: text model + VQ model + image BPE → a checkpoint to train."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from .loading import check_part, load_quantizer, load_vocabulary
from .options import add, flag
from .parsing import Parser


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Extend a text model by an image vocabulary. On text it behaves as before, bit for bit; the image tokens "
        "still have to be trained.",
        json="print a summary as JSON",
    )
    add(parser, "base", help="text model: folder, Hub id, or .gguf file", required=True)
    flag(
        parser,
        "check",
        "say whether --base can be extended, and make nothing; asks for no other option",
    )
    add(parser, "bpe")
    add(parser, "quantizer")
    parser.add_argument(
        "--codebook-size",
        type=PositiveInt,
        help="without --quantizer: K of the codes that it is given",
    )
    add(parser, "output", help="folder of the checkpoint")
    add(parser, "image-init", "image-init-std")
    add(parser, "seed", help="of the new rows")
    add(parser, "dtype", help="of the weights; auto: as in the base")
    parser.add_argument(
        "--special-tokens",
        type=Literal["default", "llama-3.1"],
        default="default",
        help="llama-3.1: the five tokens of the authors' checkpoints, in their order",
    )
    parser.add_argument(
        "--chat-template",
        type=str,
        metavar="FILE",
        help="Jinja; default: fits the base's turn markers",
    )
    add(parser, "image-processor")
    flag(
        parser,
        "remote-code",
        "add the code that trust_remote_code=True needs where being_vl is not installed",
    )
    return parser


def main(args: Namespace) -> int:
    """Run the command."""
    import torch

    from ..hub.checkpoint import check_base, init_checkpoint, save_checkpoint
    from ..models.loading import load_base, load_base_tokenizer
    from ..processing.tokenization_being_vl import LLAMA_31_SPECIAL_TOKENS

    if not args.check:
        _check_output(args)
    if not args.base.endswith(".gguf"):
        check_part("--base", args.base)
    template = Path(args.chat_template).read_text("utf-8") if args.chat_template else None
    found = check_base(args.base, chat_template=template)  # refuses at once what cannot be extended
    if args.check:
        print(json.dumps(found) if args.json else _can_be_extended(args.base, found))
        return 0
    image_bpe = load_vocabulary("--bpe", args.bpe)
    if not image_bpe.num_merges:
        print(f"warning: --bpe {args.bpe} has no merges: every code is a token", file=sys.stderr)
    vq_model = image_processor = None
    if args.quantizer is not None:
        vq_model, image_processor = load_quantizer(args.quantizer, args.image_processor)
    elif args.codebook_size is None:
        raise ValueError(
            "give --quantizer, or --codebook-size for a model that is given codes alone"
        )
    if args.codebook_size not in (None, image_bpe.codebook_size):
        raise ValueError(
            f"--codebook-size is {args.codebook_size}, but {args.bpe} has {image_bpe.codebook_size} codes"
        )
    model, processor = init_checkpoint(
        load_base(args.base, dtype=args.dtype),
        load_base_tokenizer(args.base),
        vq_model,
        image_bpe,
        image_processor=image_processor,
        special_tokens=LLAMA_31_SPECIAL_TOKENS if args.special_tokens == "llama-3.1" else None,
        chat_template=template,
        image_init=args.image_init,
        image_init_std=args.image_init_std,
        generator=torch.Generator().manual_seed(args.seed),
    )
    resolved = make_parser().dump(args)
    save_checkpoint(
        model,
        processor,
        args.output,
        remote_code=args.remote_code,
        settings={"init.yaml": resolved},
    )
    _report(args, model, processor)
    return 0


def _check_output(args: Namespace) -> None:
    missing = [f"--{name}" for name in ("bpe", "output") if args[name] is None]
    if missing:
        raise ValueError(
            f"options are required: {', '.join(missing)}; or --check, for --base alone"
        )
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not an empty folder")


def _can_be_extended(base: str, found: dict[str, Any]) -> str:
    rows = f"{found['rows']:,} rows for {found['text_size']:,} ids of its tokenizer"
    template = {
        "own": "its own chat template",
        "given": "the chat template given",
        "default": "a chat template made for it",
    }[found["chat_template"]]
    return (
        f"{base} can be extended: {found['family']}, {rows}; a checkpoint is a {found['model_class']} with {template}, "
        f"and {found['stock_class']} loads it too"
    )


def _report(args: Namespace, model: Any, processor: Any) -> None:
    layout = processor.tokenizer.layout
    summary = {
        "output": args.output,
        "vocab_size": model.config.vocab_size,
        "text_size": layout.text_size,
        "num_special_tokens": layout.num_special_tokens,
        "codebook_size": layout.codebook_size,
        "num_merges": layout.num_merges,
        "first_code_id": layout.first_code_id,
        "first_merge_id": layout.first_merge_id,
        "boi_token_id": processor.boi_token_id,
        "eoi_token_id": processor.eoi_token_id,
        "image_token_id": processor.image_token_id,
        "num_parameters": model.num_parameters(),
    }
    if args.json:
        print(json.dumps(summary))
        return
    print(f"wrote {args.output}: {summary['num_parameters']:,} parameters, {layout.size:,} ids")
    print(
        f"  text [0, {layout.text_size})  special to {layout.first_code_id}  "
        f"codes to {layout.first_merge_id}  merges to {layout.size}"
    )
