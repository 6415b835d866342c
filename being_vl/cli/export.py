"""`being-vl export`: a Being-VL checkpoint → what vLLM, SGLang, llama.cpp and others read."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from ..files import reading
from .loading import check_part
from .options import add, add_about, answer, options
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Write a checkpoint as a plain text model with a plain fast tokenizer (plain), or as one file for "
        "llama.cpp (gguf); both load where being_vl is not installed. Images go in as ids, which "
        "processor(images=…) gives.",
        json="print a summary as JSON",
    )
    add_about(parser, "checkpoint")
    add(parser, "output", help="folder of the plain checkpoint, or the .gguf file", required=True)
    options(parser, ("format", Literal["plain", "gguf"], "plain", "what is written"))
    options(
        parser.rare("gguf", "options of --format gguf"),
        ("weight-type", Literal["f32", "f16", "bf16", "q8_0"], "f16", "of the weights"),
        ("pre-tokenizer", str, None,
         "llama.cpp's name of it, such as llama-bpe or qwen2; default: recognised", "NAME"),
    )  # fmt: skip
    return parser


def main(args: Namespace) -> int:
    from ..models.loading import load_language_model
    from ..processing.tokenization_being_vl import BeingVLTokenizer
    from ..serving.gguf import export_gguf
    from ..serving.plain import export_checkpoint

    check_part("checkpoint", args.checkpoint)
    with reading(args.checkpoint):
        model = load_language_model(args.checkpoint, dtype="auto")
        tokenizer = BeingVLTokenizer.from_pretrained(args.checkpoint)
    if args.format == "gguf":
        export_gguf(
            model,
            tokenizer,
            args.output,
            weight_type=args.weight_type,
            pre_tokenizer=args.pre_tokenizer,
        )
    else:
        resolved = make_parser().dump(args)
        export_checkpoint(model, tokenizer, Path(args.output), settings={"export.yaml": resolved})
    summary = {
        "output": args.output,
        "format": args.format,
        "architecture": model.stock_class.__name__,
        "vocab_size": model.config.vocab_size,
    }
    answer(
        args,
        summary,
        f"wrote {args.output}: a {model.stock_class.__name__}, {model.config.vocab_size:,} ids",
    )
    return 0
