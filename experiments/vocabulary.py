"""grids → statistics of visual vocabularies: photographs (1,024 codes) and the drawings of easy-VQA (256).

Rank and frequency, entropy and compression by rank, shapes, directions, and how many training grids it takes
until the tokens of held-out grids settle. A seed decides the codebook and, of photographs, the windows.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment_tools import image_grids, make_parser, once, seeds, write_results
from jsonargparse import Namespace

from being_vl import ImageBPE
from being_vl.studies.analysis.vocabulary_shapes import (
    DIRECTIONS,
    merge_directions,
    rank_frequency,
    shape_counts,
    tokens_by_training_size,
)
from being_vl.studies.analysis.vocabulary_stats import vocabulary_stats

# grids, codes, merges, training sizes
CASES = {
    "photographs": (16_000, 1024, 2048, (250, 500, 1000, 2000, 4000, 8000, 16_000)),
    "drawings": (4000, 256, 512, (60, 125, 250, 500, 1000, 2000, 4000)),
}
QUICK = {"photographs": (40, 32, 20, (20, 40)), "drawings": (40, 16, 20, (20, 40))}


def run(name: str, seed: int, quick: bool) -> dict[str, Any]:
    count, codebook_size, num_merges, sizes = (QUICK if quick else CASES)[name]
    training, held_out = image_grids(name, count, codebook_size, 32, seed)
    training, held_out = training[:count], held_out[: 20 if quick else 500]
    bpe = ImageBPE.train(training, num_merges, codebook_size)
    stats = vocabulary_stats(bpe, held_out)
    uses = np.array(stats.pop("merge_uses"))
    directions = merge_directions(bpe)
    by_direction = {
        kind: {"rules": int((directions == i).sum()), "tokens": int(uses[directions == i].sum())}
        for i, kind in enumerate(DIRECTIONS)
    }
    every_token = np.bincount(np.concatenate(bpe.encode_batch(training)), minlength=bpe.vocab_size)
    return {
        "data": name,
        "seed": seed,
        "codebook_size": codebook_size,
        "merges": bpe.num_merges,
        "stats": stats,
        "rank_frequency": {
            "codes alone": rank_frequency(np.bincount(training.reshape(-1))),
            "tokens": rank_frequency(every_token),
        },
        "directions": by_direction,
        "shapes": shape_counts(bpe)[:20],
        "training_size": tokens_by_training_size(
            training, held_out, sizes, num_merges, codebook_size
        ),
    }


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Of each data set: rank and frequency, tokens by merges, tokens by training grids; a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    panels = figure.subplots(2, 3)
    for line, name in zip(panels, CASES, strict=True):
        for row in (row for row in rows if row["data"] == name):
            label, colour = f"seed {row['seed']}", f"C{row['seed']}"
            fit = row["rank_frequency"]["tokens"]
            line[0].loglog(fit["ranks"], fit["counts"], ".-", color=colour, label=label)
            curve = row["stats"]["compression_by_rank"]
            line[1].plot(
                [point["merges"] for point in curve],
                [point["tokens_per_grid"] for point in curve],
                ".-", color=colour,
            )  # fmt: skip
            for key, style in (("held_out_tokens", "-"), ("training_tokens", ":")):
                sizes = row["training_size"]
                line[2].semilogx(
                    [point["grids"] for point in sizes], [point[key] for point in sizes], style,
                    color=colour, label=key.replace("_", " ") if row["seed"] == 0 else None,
                )  # fmt: skip
        line[0].set(title=f"{name}: rank and frequency", xlabel="rank", ylabel="uses")
        line[1].set(title="held-out tokens by merges", xlabel="merges", ylabel="tokens a grid")
        line[2].set(title="by training grids", xlabel="training grids", ylabel="tokens a grid")
        line[0].legend()
        line[2].legend()
    figure.savefig(path, dpi=90)


def main(args: Namespace) -> int:
    output = Path(args.output)
    rows = []
    for name in CASES:
        for seed in seeds(args):
            row = once(
                output / "vocabulary-runs", f"{name} {seed}", partial(run, name, seed, args.quick)
            )
            rows.append(row)
            fits = {kind: round(fit["exponent"], 3) for kind, fit in row["rank_frequency"].items()}
            print(name, seed, fits, row["directions"], row["training_size"][-1], flush=True)
    write_results(rows, output / "vocabulary.json")
    draw(rows, output / "vocabulary.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser(__doc__).parse_args()))
