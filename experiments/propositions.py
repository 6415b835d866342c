"""grids → losses of unigram models: Propositions 1 and 2 of "From Pixels to Tokens", in nats a cell.

Grids of 64×64 cells; a vocabulary is learned from one sample, its frequencies from the same, the loss is taken
on another sample. Beside the proposed 2D tokens stands the entropy that a model with memory can reach.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment_tools import SOURCES, make_parser, once, seeds, write_results
from jsonargparse import Namespace

from being_vl import ImageBPE
from being_vl.studies.analysis.markov import MarkovSource
from being_vl.studies.analysis.propositions import epsilon, loss_bound, unigram_losses

DICTIONARY_SIZES = (2, 4, 6, 10, 20, 50, 100, 200, 500, 1000, 2000)
# The third is close to copying its parent, where the gap of Proposition 1 is wide.
CASES = {
    "mixed-1": SOURCES["mixed-1"],
    "rows-1": SOURCES["rows-1"],
    "rows-2": SOURCES["rows-2"],
    "mixed-1, p = q = 0.05": MarkovSource("mixed", p=0.05, q=0.05),
    "rows-1, p = q = 0.05": MarkovSource("rows", p=0.05, q=0.05),
}


def run(name: str, seed: int, quick: bool) -> dict[str, Any]:
    source, rng = CASES[name], np.random.default_rng(seed)
    count, side = (20, 16) if quick else (300, 64)
    sizes = DICTIONARY_SIZES[:4] if quick else DICTIONARY_SIZES
    training, held_out = (source.sample(count, side, side, rng) for _ in range(2))
    bpe = ImageBPE.train(training, sizes[-1] - 2, codebook_size=2)
    sizes = [size for size in sizes if size <= bpe.vocab_size]
    return {
        "source": name,
        "seed": seed,
        "grids": count,
        "side": side,
        "stationary_entropy": source.stationary_entropy(),
        "entropy_rate": source.entropy_rate(),
        "optimum": source.grid_entropy(side, side) / side**2,
        "dictionary_sizes": sizes,
        "losses": unigram_losses(bpe, sizes, training, held_out),
        "epsilons": [epsilon(source.least_probability, size) for size in sizes],
        "bounds": [bound if np.isfinite(bound := _bound(source, size)) else None for size in sizes],
    }


def _bound(source: MarkovSource, size: int) -> float:
    return loss_bound(source.entropy_rate(), source.least_probability, size)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss against the size of the dictionary, a panel a source, with the lines that the propositions name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(CASES), 3.2), layout="constrained")
    panels = figure.subplots(1, len(CASES))
    for panel, name in zip(panels, CASES, strict=True):
        of_source = [row for row in rows if row["source"] == name]
        sizes, losses = of_source[0]["dictionary_sizes"], [row["losses"] for row in of_source]
        spread = np.std(losses, axis=0, ddof=1) if len(losses) > 1 else None
        panel.errorbar(
            sizes, np.mean(losses, axis=0), spread, fmt="o-", label="unigram of BPE tokens"
        )
        panel.axhline(of_source[0]["stationary_entropy"], color="grey", linestyle=":", label="H(π)")
        panel.axhline(of_source[0]["entropy_rate"], color="black", linestyle="--", label="H∞")
        bounds = [np.nan if bound is None else bound for bound in of_source[0]["bounds"]]
        panel.plot(sizes, bounds, "C3-", label="H∞/(1−ε)")
        panel.set_ylim(0, 1.25 * max(map(max, losses)))
        panel.set_xscale("log")
        panel.set_xlabel("dictionary size D")
        panel.set_title(name)
    panels[0].set_ylabel("nats a cell")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=90)


def main(args: Namespace) -> int:
    output = Path(args.output)
    rows = []
    for name in CASES:
        for seed in seeds(args):
            rows.append(
                once(
                    output / "propositions-runs",
                    f"{name} {seed}",
                    partial(run, name, seed, args.quick),
                )
            )
            pairs = zip(rows[-1]["dictionary_sizes"], rows[-1]["losses"], strict=True)
            print(name, seed, *(f"{size}: {loss:.4f}" for size, loss in pairs), flush=True)
    write_results(rows, output / "propositions.json")
    draw(rows, output / "propositions.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser(__doc__).parse_args()))
