"""The cells of the ablation: a vocabulary, a way of training, a seed.

Source: Being-VL-0, Tables 5.1 and C.1: {LLM+VQ, LLM+VQ+BPE} × {SFT, PT(full)+SFT, PT(freeze)+SFT,
PT(freeze)+SFT(freeze)}, and Figure 3a for sizes of the vocabulary. It differs in a fifth way of training,
`sft-long`: SFT alone with the steps of both stages, so that "two stages beat one" is not just "more steps
beat fewer".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

# Way of training → its stages, each with the options of the stage.
PRETRAIN_FREEZE = ("pretrain-image", {"stage": "pretrain", "train_embeddings": "image"})
PRETRAIN_FULL = ("pretrain-all", {"stage": "pretrain", "train_embeddings": "all"})
SFT = ("sft", {"stage": "sft", "freeze": "none"})
SFT_LONG = ("sft-long", {"stage": "sft", "freeze": "none"})
SFT_FREEZE = ("sft-freeze", {"stage": "sft", "freeze": "image"})
REGIMES: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    "sft": (SFT,),
    "sft-long": (SFT_LONG,),
    "pt-full+sft": (PRETRAIN_FULL, SFT),
    "pt-freeze+sft": (PRETRAIN_FREEZE, SFT),
    "pt-freeze+sft-freeze": (PRETRAIN_FREEZE, SFT_FREEZE),
}
TITLES = {
    "sft": "SFT",
    "sft-long": "SFT, steps of both stages",
    "pt-full+sft": "PT(full)+SFT",
    "pt-freeze+sft": "PT(freeze)+SFT",
    "pt-freeze+sft-freeze": "PT(freeze)+SFT(freeze visual)",
}
CURVE_REGIME = "pt-freeze+sft"


@dataclass(frozen=True)
class Cell:
    """One model of the ablation."""

    merges: int  # of the image BPE; 0 is LLM+VQ
    regime: str  # one of `REGIMES`
    seed: int  # of the model's new rows and of the order of the data

    @property
    def name(self) -> str:
        return f"m{self.merges}-{self.regime}-s{self.seed}"


def ablation_cells(
    merges: int, regimes: Sequence[str], seeds: Sequence[int], curve: Iterable[int] = ()
) -> list[Cell]:
    """All cells, seed by seed, so that a run that is stopped has whole seeds."""
    for regime in regimes:
        if regime not in REGIMES:
            raise ValueError(f"regimes must be of {', '.join(REGIMES)}, got {regime!r}")
    sizes = [0, merges, *curve]
    if merges < 1 or min(sizes) < 0 or len(set(sizes)) != len(sizes):
        raise ValueError(f"merges must be positive and given once each, got {sizes[1:]}")
    for name, values in (("regimes", regimes), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise ValueError(f"{name} must be given, each once, got {list(values)}")
    cells = []
    for seed in seeds:
        cells += [Cell(size, regime, seed) for regime in regimes for size in (0, merges)]
        cells += [Cell(size, CURVE_REGIME, seed) for size in sorted(curve)]
    return cells
