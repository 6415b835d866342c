"""What the quickstart is asked to do. Light to import: `being-vl quickstart --help` reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

ROWS = ("bpe", "vq", "question-only")


@dataclass(frozen=True)
class Settings:
    """The quickstart's options.

    Args:
        output: folder of everything it makes.
        seed: of the quantizer, the validation split, the initial weights and the order of the data.
        minutes: about how long the whole run takes on two CPU cores. It scales the steps of training, which
            do not depend on the machine, so that a seed has one result.
        device: of the models, as torch names it.
        quantizer: `patch` (k-means of patches) or `vqgan`.
        rows: of the table: `bpe` (LLM+VQ+BPE), `vq` (LLM+VQ) and `question-only`; the first is always made.
    """

    output: str = "being-vl-quickstart"
    seed: int = 0
    minutes: float = 4.0
    device: str = "cpu"
    quantizer: Literal["patch", "vqgan"] = "patch"
    rows: list[str] = field(default_factory=lambda: list(ROWS))

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 1440:
            raise ValueError(f"minutes must be above 0 and at most 1440, got {self.minutes}")
        if self.quantizer not in ("patch", "vqgan"):
            raise ValueError(f"quantizer must be one of patch, vqgan, got {self.quantizer!r}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")
        for row in self.rows:
            if row not in ROWS:
                raise ValueError(f"rows must be of {', '.join(ROWS)}, got {row!r}")
