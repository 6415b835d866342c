"""`being-vl init`: text model + VQ model + image BPE → a checkpoint to train."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ..files import read_text, reading
from .loading import check_part, load_quantizer, load_vocabulary
from .options import add, answer, flag, options, refuse_nonempty
from .parsing import Parser

_SIZES = (
    "text_size", "num_special_tokens", "codebook_size", "num_merges", "first_code_id", "first_merge_id",
)  # fmt: skip
_TOKENS = ("boi_token_id", "eoi_token_id", "image_token_id")


def make_parser() -> Parser:
    parser = Parser(
        "Extend a text model by an image vocabulary. On text it behaves as before, bit for bit; the image tokens "
        "still have to be trained.",
        json="print a summary as JSON",
    )
    add(parser, "base", help="text model: folder, Hub id, or .gguf file", required=True)
    flag(parser, "check", "say whether --base can be extended, and make nothing; asks for no other option")  # fmt: skip
    add(parser, "bpe", "quantizer")
    options(parser, ("codebook-size", PositiveInt, None, "without --quantizer: K of the codes that it is given"))  # fmt: skip
    add(parser, "output", help="folder of the checkpoint")
    add(parser, "image-init", "image-init-std")
    add(parser, "seed", help="of the new rows")
    add(parser, "dtype", help="of the weights; auto: as in the base")
    options(
        parser,
        ("special-tokens", Literal["default", "llama-3.1"], "default",
         "llama-3.1: the five tokens of the authors' checkpoints, in their order"),
        ("chat-template", str, None, "Jinja; default: fits the base's turn markers", "FILE"),
    )  # fmt: skip
    add(parser, "image-processor")
    flag(parser, "remote-code", "add the code that trust_remote_code=True needs where being_vl is not installed")  # fmt: skip
    return parser


def main(args: Namespace) -> int:
    import torch

    from ..hub.checkpoint import check_base, init_checkpoint, save_checkpoint
    from ..models.loading import load_base, load_base_tokenizer
    from ..processing.tokenization_being_vl import LLAMA_31_SPECIAL_TOKENS

    if not args.check:
        _check_output(args)
    if not args.base.endswith(".gguf"):
        check_part("--base", args.base)
    template = read_text(args.chat_template) if args.chat_template else None
    with reading(args.base):  # refuses at once what cannot be extended
        found = check_base(args.base, chat_template=template)
    if args.check:
        answer(args, found, _can_be_extended(args.base, found))
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
    with reading(args.base):
        base, base_tokenizer = (
            load_base(args.base, dtype=args.dtype),
            load_base_tokenizer(args.base),
        )
    model, processor = init_checkpoint(
        base,
        base_tokenizer,
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
    refuse_nonempty(Path(args.output))


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
        **{name: getattr(layout, name) for name in _SIZES},
        **{name: getattr(processor, name) for name in _TOKENS},
        "num_parameters": model.num_parameters(),
    }
    answer(
        args,
        summary,
        f"wrote {args.output}: {summary['num_parameters']:,} parameters, {layout.size:,} ids\n"
        f"  text [0, {layout.text_size})  special to {layout.first_code_id}  "
        f"codes to {layout.first_merge_id}  merges to {layout.size}",
    )
