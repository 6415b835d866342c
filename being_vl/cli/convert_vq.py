"""published VQ-GAN checkpoint → a folder that `BeingVLVQModel.from_pretrained` loads: `being-vl convert-vq`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

from ..files import new_folder, write_atomic
from .loading import check_part
from .options import add, answer, options, refuse_nonempty
from .parsing import Parser

if TYPE_CHECKING:
    from ..quantizers.modeling_being_vl_vq import BeingVLVQModel


def make_parser() -> Parser:
    parser = Parser(
        "Turn a Chameleon, taming-transformers or Being-VL checkpoint of a VQ-GAN into safetensors with a "
        "config.json, and an image processor for its resolution.",
        json="print a summary as JSON",
    )
    parser.add_argument(
        "source", type=str, help="file, folder (sharded or not) or Hub id; only the VQ-GAN is read"
    )
    add(parser, "output", help="folder to write; must be missing or empty", required=True)
    options(
        parser,
        ("resolution", PositiveInt, None,
         "pixels a side in training; default: that of a config.json there, else 512"),
        ("rescale-factor", PositiveFloat, None,
         "of the image processor; default: 1/127.5 for LlamaGen, else 0.0078 (Chameleon, Being-VL)"),
    )  # fmt: skip
    add(
        parser,
        "dtype",
        default="float32",
        help="of the weights (auto: float32); the codebook stays float32",
    )
    return parser


def main(args: Namespace) -> int:
    import torch

    from ..quantizers.vq_checkpoints import load_vq_checkpoint

    output = Path(args.output)
    refuse_nonempty(output)
    dtype = torch.float32 if args.dtype == "auto" else getattr(torch, args.dtype)
    try:
        model = load_vq_checkpoint(args.source, resolution=args.resolution, dtype=dtype)
    except FileNotFoundError:
        if not os.path.exists(args.source):
            check_part("source", args.source)  # says so where the Hub cannot be reached
        raise
    _write(model, args, output)
    data = {
        "folder": str(output),
        "num_embeddings": model.config.num_embeddings,
        "downsampling": model.config.downsampling,
        "parameters": model.num_parameters(),
        "decoder": model.config.has_decoder,
    }
    can = "encodes and decodes" if data["decoder"] else "encodes (the source has no decoder)"
    answer(
        args,
        data,
        f"{output}: {data['num_embeddings']} codes, {data['downsampling']} pixels a cell, "
        f"{data['parameters']:,} parameters; it {can}",
    )
    return 0


def _write(model: BeingVLVQModel, args: Namespace, output: Path) -> None:
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

    side = model.config.resolution
    processor = BeingVLImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        rescale_factor=args.rescale_factor or (1 / 127.5 if model.config.l2_norm else 0.0078),
        size_divisor=model.config.downsampling,
    )
    with new_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_atomic(folder / "convert-vq.yaml", make_parser().dump(args))
