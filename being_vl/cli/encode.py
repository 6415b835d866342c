"""`being-vl encode`: images → parquet shards of codes.

From a folder, a data set or WebDataset shards, on one device or, under `accelerate launch`, on many. What
interrupts it costs the unfinished shards alone: the same command continues.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ._image_source import add_source_arguments, open_source

if TYPE_CHECKING:
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

_DTYPES = Literal["float32", "bfloat16", "float16"]


def make_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        description="Quantize images into parquet shards of codes: OUTPUT/codes-*.parquet, "
        "manifest.json and skipped.jsonl. Run again after an interruption, it continues.",
        epilog="Many devices: accelerate launch -m being_vl encode …",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument(
        "--quantizer", type=str, required=True, help="folder or Hub id of a VQ model"
    )
    parser.add_argument("--output", type=str, required=True, help="folder of the shards")
    add_source_arguments(parser, streams=True)
    work = parser.add_argument_group("work")
    work.add_argument(
        "--image-processor", type=str, help="folder or Hub id; default: that of --quantizer"
    )
    work.add_argument("--shard-size", type=PositiveInt, default=4096, help="images in a shard")
    work.add_argument("--batch-size", type=PositiveInt, default=16, help="images in a batch")
    work.add_argument(
        "--num-workers", type=NonNegativeInt, default=2, help="processes that decode, per device"
    )
    work.add_argument(
        "--on-error",
        type=Literal["raise", "skip"],
        default="raise",
        help="stop at an unreadable image, or name it in skipped.jsonl",
    )
    work.add_argument("--device", type=str, help="default: a GPU if there is one")
    work.add_argument("--dtype", type=_DTYPES, default="float32", help="precision of the encoder")
    work.add_argument("--json", action="store_true", help="print a summary as JSON")
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError: as of `being_vl.data.quantizing.quantize_source`.
    """
    import torch
    from accelerate import PartialState
    from tqdm import tqdm
    from transformers import AutoModel

    import being_vl  # noqa: F401  (the Auto classes know our models)

    from ..data.quantizing import quantize_source, quantizer_identity, write_manifest

    started = time.perf_counter()
    output = Path(args.output)
    source = open_source(args, shard_size=args.shard_size)
    state = PartialState(cpu=args.device == "cpu")
    device = state.device if args.device is None else torch.device(args.device)
    dtype = getattr(torch, args.dtype)
    model = AutoModel.from_pretrained(args.quantizer).to(device).eval()
    processor = _image_processor(args, model.config)
    if state.is_main_process:
        _save_config(args, output)
    total = source.num_images if state.num_processes == 1 else None
    with tqdm(total=total, unit="image", disable=not state.is_main_process) as bar:
        summary = quantize_source(
            source,
            model,
            processor,
            output,
            quantizer=quantizer_identity(model, processor, dtype),
            shard_size=args.shard_size,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            on_error=args.on_error,
            dtype=dtype,
            rank=state.process_index,
            world=state.num_processes,
            progress=bar.update,
        )
    state.wait_for_everyone()
    if state.is_main_process:
        manifest = write_manifest(output, source)
        result = {
            "output": str(output),
            "images": manifest["images"],
            "skipped": manifest["skipped"],
            "cells": manifest["cells"],
            "shards": len(manifest["shards"]),
            "shards_found_done": summary.shards_found,
            "seconds": round(time.perf_counter() - started, 3),
        }
        if args.json:
            print(json.dumps(result))
        else:
            print(
                f"{output}: {result['images']} images in {result['shards']} shards, "
                f"{result['skipped']} skipped",
                file=sys.stderr,
            )
    return 0


def _image_processor(args: Namespace, vq_config: Any) -> BeingVLImageProcessor:
    """The named one, else the quantizer's own, else the defaults at the quantizer's resolution."""
    from ..hub.checkpoint import default_image_processor
    from ..quantizers.image_processing_being_vl import BeingVLImageProcessor

    if args.image_processor is not None:
        return BeingVLImageProcessor.from_pretrained(args.image_processor)
    try:
        return BeingVLImageProcessor.from_pretrained(args.quantizer)
    except OSError:
        print(
            f"{args.quantizer} has no preprocessor_config.json: images are resized and cropped to "
            f"{vq_config.resolution} × {vq_config.resolution} (give --image-processor for anything else)",
            file=sys.stderr,
        )
        return default_image_processor(vq_config)


def _save_config(args: Namespace, output: Path) -> None:
    from ..files import write_atomic

    output.mkdir(parents=True, exist_ok=True)
    text = make_parser().dump(args)
    write_atomic(output / "encode.yaml", text.encode())
