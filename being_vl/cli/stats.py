"""codes → figures about a vocabulary: the command `being-vl stats`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse import Namespace

from ..files import write_atomic
from .loading import load_vocabulary, marked_frames, open_codes
from .options import add, add_about, answer, options
from .parsing import Parser

if TYPE_CHECKING:
    from ..bpe.image_bpe import ImageBPE


def make_parser() -> Parser:
    parser = Parser(
        "Measure how a vocabulary compresses grids of codes: tokens per grid, compression by rank, rank against "
        "frequency, coverage, entropy.",
        json="print the figures as JSON",
    )
    add_about(parser, "bpe")
    add(parser, "codes", required=True)
    add(parser, "verify")
    add(parser, "limit", help="use only the first so many grids; default: all")
    options(
        parser,
        ("segmentation", Literal["merges", "compact"], "merges",
         "encode by merges in rank order, or look for coverings of fewer tokens"),
    )  # fmt: skip
    add(parser, "key-frame-interval", "num-threads")
    add(parser, "output", help="folder of stats.json and stats.yaml")
    return parser


def main(args: Namespace) -> int:
    from tqdm import tqdm

    from ..studies.analysis.vocabulary_stats import default_curve, vocabulary_stats

    bpe = load_vocabulary("bpe", args.bpe)
    with tempfile.TemporaryDirectory() as folder:
        grids = _grids(args, bpe, Path(folder))
        count = len(grids) if args.limit is None else min(len(grids), args.limit)
        rounds = 1 + len(default_curve(bpe.num_merges))
        with tqdm(total=count * rounds, unit="grid", disable=None) as bar:
            stats = vocabulary_stats(
                bpe,
                grids,
                max_grids=count,
                segmentation=args.segmentation,
                num_threads=args.num_threads,
                progress=bar.update,
            )
    if args.output is not None:
        write_atomic(Path(args.output) / "stats.json", json.dumps(stats, indent=1) + "\n")
        write_atomic(Path(args.output) / "stats.yaml", make_parser().dump(args))
    answer(args, stats, "\n".join(report(stats)))
    return 0


def _grids(args: Namespace, bpe: ImageBPE, folder: Path) -> Any:
    """The grids of --codes as a sequence; `folder` is for what must be read from a shard."""
    import numpy as np

    size = bpe.quantizer_codebook_size
    codes = open_codes(args.codes, size, folder / "codes.parquet", verify=args.verify)
    if not isinstance(codes, str):
        is_marked = bpe.repeat_code is not None and codes.has_videos
        return (
            marked_frames(codes, key_frame_interval=args.key_frame_interval) if is_marked else codes
        )
    grids = np.load(codes, mmap_mode="r", allow_pickle=False)
    got = f"{grids.dtype} {grids.shape}"
    if not grids.size:
        raise ValueError(f"{codes}: must hold grids of codes, got {got}")
    if grids.ndim != 3 or grids.dtype.kind not in "iu":
        raise ValueError(f"{codes}: must hold integers (N, H, W), got {got}")
    return grids


def report(stats: dict[str, Any]) -> list[str]:
    """The figures as lines for a person."""
    exponent = stats["rank_exponent"]
    lines = [
        f"{stats['grids']} grids, {stats['cells']} cells, {stats['tokens']} tokens",
        f"{stats['tokens_per_grid']:.1f} tokens a grid, compression ratio {stats['compression_ratio']:.3f}",
        f"entropy: {stats['bits_per_token']:.3f} bits a token, {stats['bits_per_cell']:.3f} a cell "
        f"(codes alone: {stats['code_bits_per_cell']:.3f} a cell)",
        f"used: {stats['codes_used']:.1%} of the codes, {stats['merges_used']:.1%} of the merges; "
        f"{stats['cells_in_merges']:.1%} of the cells lie in merged tokens",
        "rank against frequency: "
        + ("too few tokens" if exponent is None else f"count ~ rank^-{exponent:.2f}"),
        "",
        "merges   tokens a grid   compression ratio   bits a cell",
    ]
    lines += [
        f"{point['merges']:6d}   {point['tokens_per_grid']:13.1f}   {point['compression_ratio']:17.3f}"
        f"   {point['bits_per_cell']:11.3f}"
        for point in stats["compression_by_rank"]
    ]
    if "tokens_by_cells" in stats:
        lines += ["", "cells   ids in the vocabulary   tokens in the grids"]
        lines += [
            f"{row['cells']:5d}   {row['ids']:21d}   {row['tokens']:19d}"
            for row in stats["tokens_by_cells"]
        ]
        kinds = (f"{count} {kind}" for kind, count in stats["merge_directions"].items())
        lines += ["", f"parts of a rule touch: {', '.join(kinds)}"]
    lines += ["", *_rank_plot(stats["merge_uses"])]
    return lines


def _rank_plot(uses: list[int]) -> list[str]:
    """Uses per merge rule, in bins of ranks, as bars on a logarithmic scale."""
    import numpy as np

    if not uses:
        return ["no merges"]
    parts = np.array_split(np.array(uses, dtype=float), min(16, len(uses)))
    means = [float(part.mean()) for part in parts]
    top = np.log1p(max(means)) or 1.0
    lines = ["ranks             uses of a rule (mean; bars are logarithmic)"]
    begin = 0
    for part, mean in zip(parts, means, strict=True):
        bar = "█" * round(40 * np.log1p(mean) / top)
        lines.append(f"{begin:6d}–{begin + len(part) - 1:<6d}  {mean:12.1f}  {bar}")
        begin += len(part)
    return lines
