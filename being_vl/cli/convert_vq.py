"""published VQ-GAN checkpoint → a folder that `BeingVLVQModel.from_pretrained` loads: `being-vl convert-vq`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from ..quantizers.modeling_being_vl_vq import BeingVLVQModel


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Turn a Chameleon, taming-transformers or Being-VL checkpoint of a VQ-GAN into safetensors "
        "with a config.json, and an image processor for its resolution."
    )
    parser.add_argument("--config", action="config", help="YAML file whose values flags override")
    parser.add_argument(
        "source", type=str, help="file, folder (sharded or not) or Hub id; only the VQ-GAN is read"
    )
    parser.add_argument("output", type=str, help="folder to write; must be missing or empty")
    parser.add_argument(
        "--resolution",
        type=PositiveInt,
        help="side in pixels that it was trained on; default: that of a config.json there, else 512",
    )
    parser.add_argument(
        "--rescale-factor",
        type=PositiveFloat,
        default=0.0078,
        help="of the image processor: 0.0078 for Chameleon and Being-VL, 0.00784314 for taming's own",
    )
    parser.add_argument(
        "--dtype",
        type=Literal["float32", "bfloat16", "float16"],
        default="float32",
        help="of the weights; the codebook stays float32",
    )
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError: as of `load_vq_checkpoint`, or the output folder is not empty.
    """
    import torch

    from ..quantizers.vq_checkpoints import load_vq_checkpoint

    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"output must be a missing or empty folder, got {output}")
    model = load_vq_checkpoint(
        args.source, resolution=args.resolution, dtype=getattr(torch, args.dtype)
    )
    _write(model, args, output)
    answer = {
        "folder": str(output),
        "num_embeddings": model.config.num_embeddings,
        "downsampling": model.config.downsampling,
        "parameters": model.num_parameters(),
        "decoder": model.config.has_decoder,
    }
    if args.json:
        print(json.dumps(answer))
    else:
        can = "encodes and decodes" if answer["decoder"] else "encodes (the source has no decoder)"
        print(
            f"{output}: {answer['num_embeddings']} codes, {answer['downsampling']} pixels a cell, "
            f"{answer['parameters']:,} parameters; it {can}"
        )
    return 0


def _write(model: BeingVLVQModel, args: Namespace, output: Path) -> None:
    """Write everything to a folder beside the output, then rename it."""
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

    side = model.config.resolution
    processor = BeingVLImageProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        rescale_factor=args.rescale_factor,
        size_divisor=model.config.downsampling,
    )
    parent = output.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=parent))
    try:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        make_parser().save(args, folder / "convert-vq.yaml")
        folder.chmod(0o755)
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder)
        raise
