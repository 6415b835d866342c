"""grids → losses of the best unigram models: Propositions 1 and 2 of "From Pixels to Tokens" as numbers.

Source: section 3, which takes the shape of its bound, with its constant 0.99, from Rajaraman et al., "Toward
a Theory of Tokenization in LLMs" (2024), where it is proved for sequences. Losses here are measured, in nats
a cell, with the frequencies of one sample on another, so that they are losses that a model can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...bpe.image_bpe import ImageBPE


def unigram_loss(bpe: ImageBPE, training: Any, held_out: Any) -> float:
    """The loss of independent tokens with the frequencies of `training`, on `held_out`, in nats a cell.

    Each count is raised by one half, so that a token that `training` lacks has a chance.

    Args:
        training, held_out: int codes (N, H, W), or sequences of (h, w) arrays.
    """
    counts, _ = _token_counts(bpe, training)
    surprise = -np.log((counts + 0.5) / (counts + 0.5).sum())
    held_out_counts, cells = _token_counts(bpe, held_out)
    return float(held_out_counts @ surprise) / cells


def unigram_losses(
    bpe: ImageBPE, dictionary_sizes: Sequence[int], training: Any, held_out: Any
) -> list[float]:
    """`unigram_loss` of the first so many tokens of a vocabulary; codes count as tokens."""
    found = []
    for size in dictionary_sizes:
        if not bpe.codebook_size <= size <= bpe.vocab_size:
            raise ValueError(
                f"dictionary_sizes must lie in [{bpe.codebook_size}, {bpe.vocab_size}], got {size}"
            )
        found.append(unigram_loss(bpe.first(size - bpe.codebook_size), training, held_out))
    return found


def epsilon(least_probability: float, dictionary_size: int) -> float:
    """ε = ln(1/δ) / (0.99 ln D) of Proposition 2; from 1 on, the proposition bounds nothing."""
    if not 0 < least_probability < 1:
        raise ValueError(f"least_probability must lie in (0, 1), got {least_probability}")
    if dictionary_size < 2:
        raise ValueError(f"dictionary_size must be at least 2, got {dictionary_size}")
    return float(-np.log(least_probability) / (0.99 * np.log(dictionary_size)))


def loss_bound(entropy_rate: float, least_probability: float, dictionary_size: int) -> float:
    """H∞ / (1 − ε) of Proposition 2, infinite where ε ≥ 1; in the unit of `entropy_rate`."""
    share = epsilon(least_probability, dictionary_size)
    return entropy_rate / (1 - share) if share < 1 else float("inf")


def _token_counts(bpe: ImageBPE, grids: Any) -> tuple[np.ndarray, int]:
    counts = np.bincount(np.concatenate(bpe.encode_batch(grids)), minlength=bpe.vocab_size)
    return counts, sum(np.size(grid) for grid in grids)
