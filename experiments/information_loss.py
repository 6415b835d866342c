"""grids → bits that paper mode loses: appendix A.1 of "From Pixels to Tokens", exactly where that is possible.

- every grid: all binary grids of 4×4 cells, each with its probability under a Markov source;
- sampled grids: 5×5 cells, −log2 Pr(grid | ids) by listing every grid with the same ids;
- a corpus of blocks: 4×4 windows of photographs in 16 codes, by their frequency;
- a corpus of images: 32×32 codes of photographs, by the bound of `information_loss.offset_bits`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from experiment_tools import SOURCES, image_grids, make_parser, once, seeds, write_results
from jsonargparse import Namespace

from being_vl import ImageBPE
from being_vl.studies.analysis.information_loss import (
    all_grids,
    lost_bits,
    lost_bits_of,
    offset_bits,
)
from being_vl.studies.analysis.markov import MarkovSource

RULES = ("pair", "shape")


def every_grid(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """H(grid | ids) of all 4×4 grids under a source, and under the uniform law."""
    side = 3 if quick else 4
    grids = all_grids(side, side, 2)
    uniform = MarkovSource("rows", p=0.5, q=0.5)
    sources = {"uniform": uniform, **{name: SOURCES[name] for name in ("mixed-1", "rows-1")}}
    for name, source in sources.items():
        probabilities = np.exp(source.log_probability(grids))
        sample = source.sample(1000, 16, 16, np.random.default_rng(seed))
        for rule, sizes in (("pair", (1, 8, 32)), ("shape", (32,))):
            for num_merges in sizes:
                bpe = ImageBPE.train(sample, num_merges, 2, merge_rule=rule)
                lost = lost_bits(bpe, grids, probabilities)
                yield {"kind": "every grid", "source": name, "seed": seed, "side": side,
                       "merge_rule": rule, "merges": num_merges, **lost}  # fmt: skip


def sampled_grids(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """The mean of −log2 Pr(grid | ids) over grids of a source, with its standard error."""
    count, side = (5, 3) if quick else (25, 5)
    for name in ("mixed-1", "rows-1"):
        source, rng = SOURCES[name], np.random.default_rng(seed)
        sample = source.sample(1000, 16, 16, rng)
        for num_merges in (1, 2):
            bpe = ImageBPE.train(sample, num_merges, 2, merge_rule="pair")
            bits = [
                lost_bits_of(bpe, grid, source.log_probability)
                for grid in source.sample(count, side, side, rng)
            ]
            total = source.grid_entropy(side, side) / np.log(2)
            yield {"kind": "sampled grids", "source": name, "seed": seed, "side": side,
                   "merge_rule": "pair", "merges": num_merges, "grid_bits": total,
                   "lost_bits": float(np.mean(bits)), "lost_share": float(np.mean(bits) / total),
                   "standard_error": float(np.std(bits, ddof=1) / np.sqrt(count))}  # fmt: skip


def block_corpus(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """H(grid | ids) of small windows of photographs, each as likely as it is frequent."""
    count, side, codebook_size = (2000, 2, 8) if quick else (100_000, 4, 16)
    large, _ = image_grids("photographs", 50 if quick else 2000, codebook_size, 32, seed)
    blocks = _blocks(large, side)[:count]
    for rule in RULES:
        for num_merges in (2, 8) if quick else (16, 256, 1024):
            bpe = ImageBPE.train(large, num_merges, codebook_size, merge_rule=rule)
            yield {"kind": "corpus of blocks", "source": "photographs", "seed": seed, "side": side,
                   "codebook_size": codebook_size, "grids": len(blocks), "merge_rule": rule,
                   "merges": num_merges, "raw_bits": side * side * float(np.log2(codebook_size)),
                   **lost_bits(bpe, blocks)}  # fmt: skip


def image_corpus(seed: int, quick: bool) -> Iterator[dict[str, Any]]:
    """The bound for whole images."""
    for codebook_size, num_merges in ((64, 20),) if quick else ((1024, 1024), (8192, 8192)):
        count, shown = (50, 2) if quick else (4000, 25)
        training, held_out = image_grids("photographs", count, codebook_size, 32, seed)
        bpe = ImageBPE.train(training, num_merges, codebook_size, merge_rule="pair")
        bound = offset_bits(bpe, held_out[:shown])
        yield {"kind": "corpus of images", "source": "photographs", "seed": seed, "side": 32,
               "codebook_size": codebook_size, "grids": shown, "merge_rule": "pair",
               "merges": bpe.num_merges, "raw_bits": bound["raw_bits"],
               "merges_a_grid": bound["merges"], "lost_bits_at_most": bound["offset_bits"],
               "lost_share_at_most": bound["offset_bits"] / bound["raw_bits"],
               "one_bit_a_merge": bound["merges"] / bound["raw_bits"]}  # fmt: skip


def _blocks(grids: np.ndarray, side: int) -> np.ndarray:
    """The grids cut into blocks: (n, side, side)."""
    count, height, width = grids.shape
    cut = grids.reshape(count, height // side, side, width // side, side)
    return np.ascontiguousarray(cut.swapaxes(2, 3).reshape(-1, side, side))


def main(args: Namespace) -> int:
    output = Path(args.output)
    rows = []
    for kind in (every_grid, sampled_grids, block_corpus, image_corpus):
        for seed in seeds(args):
            name = f"{kind.__name__} {seed}"
            rows_of_kind = partial(list, kind(seed, args.quick))
            found = once(output / "information-loss-runs", name, rows_of_kind)
            rows += found
            print(*found, sep="\n", flush=True)
    write_results(rows, output / "information-loss.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(make_parser(__doc__).parse_args()))
