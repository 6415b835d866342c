"""Patch k-means, VQ-GAN, finite scalars and lookup-free codes on a folder of pictures: what merges make of each.

    apt-get download openclipart-png && dpkg-deb -x openclipart-png_*.deb clipart    # 8,121 drawings by people
    python benchmarks/quantizers.py --images clipart --output quantizers --seeds 0 1 2

Each quantizer is trained by `train-vq` with the defaults of its kind, on a seeded subset of the pictures; its
codes train a vocabulary. Reconstruction, codes in use and tokens are those of pictures held out from both.
A run that was stopped goes on where it was; `--table` prints what there is.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import sys
from pathlib import Path

from being_vl.cli import run_command
from being_vl.files import read_json, write_atomic
from being_vl.quantizers.image_loading import UnreadableImageError, load_image
from being_vl.studies.commands import Commands

KINDS = ("patch", "patch-1024", "vqgan", "fsq", "lfq")


def pictures(source: Path, folder: Path, args: argparse.Namespace) -> tuple[Path, Path]:
    """Folders of training and held-out pictures, drawn from the source by seed 0."""
    names = sorted(path for path in source.rglob("*.png") if path.is_file())
    random.Random(0).shuffle(names)
    parts = folder / "train", folder / "held-out"
    counts = args.train, args.held_out
    for part, count in zip(parts, counts, strict=True):
        part.mkdir(parents=True, exist_ok=True)
        done = 0
        while done < count:
            if not names:
                raise SystemExit(f"{source} has fewer than {sum(counts)} readable pictures")
            name, path = names.pop(), part / f"{done:05d}.png"
            try:
                if not path.exists():
                    picture = load_image(name)
                    picture.thumbnail((4 * args.resolution,) * 2)
                    picture.save(path)
            except UnreadableImageError as error:
                print(f"left out: {error}", file=sys.stderr)
                continue
            done += 1
    return parts


def fit_patches_1024(
    train: Path, held_out: Path, output: Path, args: argparse.Namespace, seed: int
) -> None:
    """The patch quantizer with as many codes as the others; `train-vq` has no option for it."""
    from being_vl import BeingVLPatchVQConfig
    from being_vl.data.quantizing import FolderSource
    from being_vl.quantizers.metrics import (
        ReconstructionMetrics,
        evaluate_reconstruction,
    )
    from being_vl.quantizers.quantizer import default_image_processor
    from being_vl.training.vq.data import SourceImages
    from being_vl.training.vq.presets import fit_patch_vq

    config = BeingVLPatchVQConfig(num_embeddings=1024, patch_size=4, resolution=args.resolution)
    processor = default_image_processor(config)
    seen, unseen = (
        SourceImages(FolderSource(folder, shard_size=1), processor) for folder in (train, held_out)
    )
    model = fit_patch_vq(config, seen, seed=seed)
    metrics = ReconstructionMetrics(1024, processor, ssim=True)
    batches = (unseen[index]["pixel_values"][None] for index in range(len(unseen)))
    values = evaluate_reconstruction(model, batches, metrics)
    model.save_pretrained(output)
    processor.save_pretrained(output)
    write_atomic(output / "metrics.json", json.dumps(values))


def measure(
    kind: str, seed: int, folder: Path, parts: tuple[Path, Path], args: argparse.Namespace
) -> dict:
    """Train a quantizer and a vocabulary, and measure both on the held-out pictures."""
    train, held_out = parts
    vq, command = folder / "vq", Commands(run_command)
    before = resource.getrusage(resource.RUSAGE_SELF)
    if not (vq / "model.safetensors").exists():
        if kind == "patch-1024":
            fit_patches_1024(train, held_out, vq, args, seed)
        else:
            steps = None if kind == "patch" else args.steps
            sizes = {"resolution": args.resolution, "steps": steps, "cache-images": True}
            command(
                "train-vq", kind=kind, images=train, seed=seed, workers=0, device="cpu", output=vq,
                **{"eval-images": held_out, **sizes},
            )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_SELF)
    codes, unseen = folder / "codes", folder / "held-out-codes"
    for output, images in ((codes, train), (unseen, held_out)):
        command("encode", quantizer=vq, images=images, device="cpu", workers=0, output=output)
    command("train-bpe", codes=codes, output=folder / "bpe", **{"num-merges": args.merges})
    command("stats", folder / "bpe", codes=unseen, output=folder / "stats")
    stats = read_json(folder / "stats" / "stats.json")
    metrics = {
        name.removeprefix("eval_"): value for name, value in read_json(vq / "metrics.json").items()
    }
    return {
        "kind": kind,
        "seed": seed,
        "codes": read_json(vq / "config.json")["num_embeddings"],
        "training_cpu_seconds": round(after.ru_utime - before.ru_utime, 1),
        **{name: metrics[name] for name in ("psnr", "ssim", "code_usage", "perplexity")},
        "cells": stats["cells"] / stats["grids"],
        "tokens": stats["tokens_per_grid"],
    }


def table(results: list[dict]) -> str:
    """Markdown: means over the seeds, and the range of what differs."""
    lines = [
        "| quantizer | codes | PSNR | SSIM | codes in use | perplexity | tokens of CELLS |",
        "|---" * 7 + "|",
    ]
    for kind in KINDS:
        rows = [row for row in results if row["kind"] == kind]
        if not rows:
            continue
        cells = [
            f"{kind} ({len(rows)} seeds)" if len(rows) > 1 else f"{kind} (one seed)",
            f"{rows[0]['codes']:,}",
        ]
        for name, form in (
            ("psnr", "{:.2f}"),
            ("ssim", "{:.3f}"),
            ("code_usage", "{:.0%}"),
            ("perplexity", "{:.0f}"),
            ("tokens", "{:.1f}"),
        ):
            values = [row[name] for row in rows]
            text = form.format(statistics.mean(values))
            if len(values) > 1:
                text += f" ({form.format(min(values))}–{form.format(max(values))})"
            cells.append(text)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).replace("CELLS", f"{results[0]['cells']:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--held-out", type=int, default=300)
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--merges", type=int, default=1024)
    parser.add_argument("--steps", type=int, help="default: of the kind")
    parser.add_argument("--table", action="store_true", help="only print what there is")
    args = parser.parse_args()
    parts = None if args.table else pictures(args.images, args.output / "pictures", args)
    for seed in args.seeds:
        for kind in args.kinds:
            folder = args.output / f"{kind}-{seed}"
            if parts is not None and not (folder / "result.json").exists():
                result = measure(kind, seed, folder, parts, args)
                write_atomic(folder / "result.json", json.dumps(result, indent=1))
    found = [read_json(path) for path in sorted(args.output.glob("*/result.json"))]
    print(table(found))


if __name__ == "__main__":
    main()
