"""`being-vl encode`: images or videos → shards of codes.

From a folder, a data set or WebDataset shards, on one device or, under `accelerate launch`, on many. After an
interruption the same command continues; only unfinished shards are made again.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Literal

from jsonargparse import Namespace

from ..files import place, wait_for_everyone, write_atomic
from .loading import load_quantizer
from .options import add, add_engine, add_source, answer, flag, open_source, options, refuse_used
from .parsing import Parser


def make_parser() -> Parser:
    parser = Parser(
        "Quantize images, or frames of videos, into shards of codes: OUTPUT/codes-*.parquet (or .tar), manifest.json and skipped.jsonl.",
        epilog="Many devices: accelerate launch -m being_vl encode …",
        json="print a summary as JSON",
    )
    add(parser, "quantizer", required=True)
    add(parser, "output", help="folder of the shards", required=True)
    add(parser, "resume")
    options(
        parser,
        ("on-error", Literal["raise", "skip"], "raise",
         "stop at an unreadable image or video, or name it in skipped.jsonl"),
    )  # fmt: skip
    add_source(parser, streams=True)
    work = parser.add_argument_group("work")
    add(work, "device")
    add(work, "dtype", default="float32", help="of the encoder's weights")
    add(work, "batch-size", default=16)
    add(work, "workers", default=2, help="processes that decode, per device")
    add(work, "shard-size", help="images or videos a shard; default: 4096 or 64")
    formats = Literal["parquet", "webdataset"]
    options(work, ("format", formats, "parquet", "shards: webdataset is tars"))
    add(parser.rare("processor"), "image-processor")
    add_engine(parser)
    flag(parser, "dry-run", "say what there is, and stop")
    return parser


def main(args: Namespace) -> int:
    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from ..data import quantizing

    started = time.perf_counter()
    output = place(args.output)
    refuse_used(args, output, "codes-*")
    if args.shard_size is None:
        args.shard_size = 4096 if args.videos is None else 64
    source = open_source(args, shard_size=args.shard_size)
    if args.dry_run:
        print(quantizing.survey(source))
        return 0
    if args.rank >= args.world:
        raise ValueError(f"--rank must be below --world, got {args.rank} of {args.world}")
    things = "images" if source.sampling is None else "videos"
    by_ray = args.engine == "ray"
    state = PartialState(cpu=by_ray or args.device == "cpu")
    device = state.device if args.device is None else torch.device(args.device)
    model, processor = load_quantizer(args.quantizer, args.image_processor)
    dtype = model.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    if state.is_main_process:
        write_atomic(output / "encode.yaml", make_parser().dump(args))
        engine = f"{args.workers} actors of Ray" if by_ray else device
        print(f"{quantizing.survey(source)}: on {engine}, into {output}", file=sys.stderr)
    total = source.num_images if state.num_processes == 1 else None
    settings = quantizing.EncodeSettings(
        quantizer=quantizing.quantizer_identity(model, processor, dtype),
        shard_size=args.shard_size,
        batch_size=args.batch_size,
        on_error=args.on_error,
        dtype=dtype,
        format=args.format,
    )
    with tqdm(total=total, unit=things[:-1], disable=not state.is_main_process) as bar:
        if by_ray:
            summary = quantizing.quantize_with_ray(
                source,
                model,
                processor,
                output,
                settings,
                workers=args.workers,
                cpus_per_worker=args.cpus_per_worker,
                gpus_per_worker=args.gpus_per_worker,
                progress=bar.update,
            )
        else:
            summary = quantizing.quantize_source(
                source,
                model.to(device),
                processor,
                output,
                settings,
                num_workers=args.workers,
                rank=args.rank if args.world > 1 else state.process_index,
                world=args.world if args.world > 1 else state.num_processes,
                progress=bar.update,
            )
    wait_for_everyone(state)
    if not state.is_main_process:
        return 0
    try:
        manifest = quantizing.write_manifest(output, source, args.format)
    except quantizing.MissingShardError:
        if args.world == 1:
            raise
        return _wait_for_others(args, summary.images)
    work = {
        "shards_found_done": summary.shards_found,
        "seconds": round(time.perf_counter() - started, 3),
    }
    return _say_what_is_there(args, manifest, things, work)


def _say_what_is_there(
    args: Namespace, manifest: dict[str, Any], things: str, work: dict[str, Any]
) -> int:
    shards, left_out = len(manifest["shards"]), manifest["left_out"]
    counts = {name: manifest[name] for name in ("images", "skipped", "left_out", "cells")}
    counts[things] = manifest[things]
    reasons = ", ".join(f"{count:,} × {reason}" for reason, count in left_out.items())
    why = f" ({reasons})" if reasons else ""
    answer(
        args,
        {"output": args.output, **counts, "shards": shards, **work},
        f"{args.output}: {manifest[things]} {things} in {shards} shards, {manifest['skipped']} skipped, "
        f"{sum(left_out.values())} left out{why} (skipped.jsonl names them)",
        sys.stderr,
    )
    return 0


def _wait_for_others(args: Namespace, images: int) -> int:
    """Of an array of jobs, the one that ends last finds all shards and writes the manifest."""
    said = f"rank {args.rank} of {args.world} is done; other ranks have shards to make"
    result = {"output": args.output, "images": images, "rank": args.rank, "world": args.world}
    answer(args, result, f"{args.output}: {said}", sys.stderr)
    return 0
