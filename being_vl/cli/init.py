"""`being-vl init`: text model + VQ model + image BPE → a checkpoint to train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from .options import add, flag
from .parsing import Parser

if TYPE_CHECKING:
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor


def make_parser() -> Parser:
    """The options of the command."""
    parser = Parser(
        "Extend a text model by an image vocabulary. On text it behaves as before, bit for bit; the image tokens "
        "still have to be trained.",
        json="print a summary as JSON",
    )
    add(parser, "base", help="text model: folder, Hub id, or .gguf file", required=True)
    add(parser, "quantizer", "bpe", required=True)
    add(parser, "output", help="folder of the checkpoint", required=True)
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
    """Run the command.

    Raises:
        ValueError, OSError: an input does not load, the parts do not fit, or the output exists.
    """
    import torch
    from transformers import AutoModel

    from ..bpe.image_bpe import ImageBPE
    from ..hub.checkpoint import init_checkpoint, save_checkpoint
    from ..models.loading import base_family, load_base, load_base_tokenizer
    from ..processing.tokenization_being_vl import LLAMA_31_SPECIAL_TOKENS

    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not an empty folder")
    base_family(args.base)  # refuses at once what cannot be extended
    bpe_path = Path(args.bpe)
    image_bpe = ImageBPE.from_pretrained(bpe_path.parent if bpe_path.is_file() else bpe_path)
    vq_model = AutoModel.from_pretrained(args.quantizer)
    model, processor = init_checkpoint(
        load_base(args.base, dtype=args.dtype),
        load_base_tokenizer(args.base),
        vq_model,
        image_bpe,
        image_processor=_load_image_processor(args, vq_model.config),
        special_tokens=LLAMA_31_SPECIAL_TOKENS if args.special_tokens == "llama-3.1" else None,
        chat_template=Path(args.chat_template).read_text("utf-8") if args.chat_template else None,
        image_init=args.image_init,
        image_init_std=args.image_init_std,
        generator=torch.Generator().manual_seed(args.seed),
    )
    resolved = make_parser().dump(args)
    save_checkpoint(
        model, processor, output, remote_code=args.remote_code, settings={"init.yaml": resolved}
    )
    _report(args, model, processor)
    return 0


def _load_image_processor(args: Namespace, vq_config: Any) -> BeingVLImageProcessor:
    """The named one, else the VQ model's own, else the default at its resolution."""
    from transformers.utils import cached_file

    from ..hub.checkpoint import default_image_processor
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

    if args.image_processor is not None:
        return BeingVLImageProcessor.from_pretrained(args.image_processor)
    own = cached_file(
        args.quantizer, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False
    )
    if own is not None:
        return BeingVLImageProcessor.from_pretrained(args.quantizer)
    return default_image_processor(vq_config)


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
