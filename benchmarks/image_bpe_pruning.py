"""Does a vocabulary compress better when it is trained too large and cut back to what is used?

    PYTHONPATH=. python benchmarks/image_bpe_pruning.py     # photographs, 1,024 and 8,192 codes, minutes

Half as many merges again are trained; then, in rounds, those that training grids use least go, as long as
no other merge is made of them. Tokens a grid of the same number of merges are compared, beside those of the
uncut vocabulary, which bound the gain.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from being_vl.bpe.image_bpe import ImageBPE


def uses_and_length(bpe: ImageBPE, grids: np.ndarray, segmentation: str) -> tuple:
    """How often each visual id is used, and tokens a grid."""
    ids = bpe.encode_batch(grids, segmentation=segmentation)
    return np.bincount(np.concatenate(ids), minlength=bpe.vocab_size), np.mean([*map(len, ids)])


def without(merges: np.ndarray, gone: np.ndarray, codebook_size: int) -> np.ndarray:
    """The merges that stay, (n, 4), renumbered."""
    new_id = np.append(np.arange(codebook_size), np.cumsum(~gone) - 1 + codebook_size)
    left = merges[~gone].copy()
    left[:, :2] = new_id[left[:, :2]]
    return left


def pruned(bpe: ImageBPE, grids: np.ndarray, num_merges: int, segmentation: str) -> ImageBPE:
    """The vocabulary cut to num_merges, an eighth of what is too much in each round."""
    merges, size = bpe.merges, bpe.codebook_size
    step = -(-(len(merges) - num_merges) // 8)
    while len(merges) > num_merges:
        uses, _ = uses_and_length(ImageBPE(merges, size), grids, segmentation)
        uses[np.unique(merges[:, :2])] = np.iinfo(np.int64).max  # parts of other merges stay
        least = np.argsort(uses[size:], kind="stable")[: min(step, len(merges) - num_merges)]
        gone = np.zeros(len(merges), bool)
        gone[least] = True
        merges = without(merges, gone, size)
    return ImageBPE(merges, size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--codes", type=int, nargs="+", default=[1024, 8192])
    parser.add_argument("--merges", type=int, default=4096)
    parser.add_argument("--grids", type=int, default=8000, help="to train on")
    args = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parent))
    from bpe_data import photographs

    for codes in args.codes:
        training, held_out = photographs(args.grids, codes)
        plain = ImageBPE.train(training, num_merges=args.merges, codebook_size=codes)
        large = ImageBPE.train(training, num_merges=args.merges * 3 // 2, codebook_size=codes)
        for segmentation in ("merges", "compact"):
            cut = pruned(large, training[:3000], args.merges, segmentation)
            for name, grids in (("training", training[:3000]), ("held out", held_out)):
                lengths = [uses_and_length(b, grids, segmentation)[1] for b in (plain, cut, large)]
                row = dict(zip(("plain", "pruned", "uncut"), np.round(lengths, 1), strict=True))
                row |= {"pruning_saves": round(1 - lengths[1] / lengths[0], 4)}
                print(f"{codes} codes, {segmentation:<8} {name:<9} {json.dumps(row)}", flush=True)


if __name__ == "__main__":
    main()
