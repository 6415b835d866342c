"""counts → the next merge rule, scored by frequency and spatial consistency.

Source: "Unified Multimodal Understanding via Byte-Pair Visual Encoding" (ICCV 2025), priority-guided
encoding: P(a, b) = F(a, b) + α · S(a, b), with S the mean over the occurrences i of the pair of
exp(-|u_i - ū|² / 2σ²), u_i the relative position of a and b, ū its mean. What is computed here, for a key
(a, b, row_offset, col_offset):

- F is the key's count divided by the highest count of an eligible key at that step, so that both terms lie
  in [0, 1]; the paper leaves the unit of F open.
- S is taken over all keys of (a, b), a being the token whose anchor comes first; u is the offset between
  the anchors. So all keys of one pair share S, and F decides among them.
- α is 0.3 and σ is 1 cell by default. These are our choices; the authors' released code has no spatial
  term at all.

The score needs the counts of all keys of a pair. So keys are listed by pairs: all of a pair's keys, if
together they reach theta. And since F depends on the highest count, rules are chosen one by one.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel
from .choose import BIAS, KeyTable, Shapes, lengthened


@kernel
def exp_minus(x):
    """exp(-x) for x ≥ 0 to 1e-8, by a fixed sequence of IEEE operations, so that all machines agree."""
    if x > 64.0:
        return 0.0
    t = x / 256.0
    y = 1.0 - t * (1.0 - t * (0.5 - t * (1.0 / 6.0 - t * (1.0 / 24.0))))
    for _ in range(8):
        y = y * y
    return y


@kernel
def consistency(offsets, counts, begin, end, sigma):
    """S of the pair whose keys are [begin, end), in the order of their offsets."""
    total, sum_row, sum_col = 0, 0, 0
    for key in range(begin, end):
        row, col = offsets[key] >> 17, (offsets[key] & 0x1FFFF) - BIAS
        total += counts[key]
        sum_row += counts[key] * row
        sum_col += counts[key] * col
    mean_row, mean_col = sum_row / total, sum_col / total
    score = 0.0
    for key in range(begin, end):
        row, col = offsets[key] >> 17, (offsets[key] & 0x1FFFF) - BIAS
        dr, dc = row - mean_row, col - mean_col
        score += counts[key] * exp_minus((dr * dr + dc * dc) / (2.0 * sigma * sigma))
    return score / total


@kernel
def _best(
    tokens, offsets, counts, eligible, groups, size, num_cells, room, theta, min_count, weight, sigma
):  # fmt: skip
    """The key with the highest score; -1 if there is none, or if a key that is not listed might win."""
    top = 0
    for key in range(size):
        if not eligible[key] or counts[key] <= top:
            continue
        if num_cells[tokens[key] >> 32] + num_cells[tokens[key] & 0xFFFFFFFF] > room:
            eligible[key] = False  # for good: the room never grows
            continue
        top = counts[key]
    # S is at most 1 and more than 0, up to rounding: who has less than this cannot reach the top key
    least = max(min_count, np.int64(top * (1.0 - weight) * (1.0 - 1e-9)))
    if top < min_count or least < theta:
        return -1
    best, best_score = -1, 0.0
    for key in range(size):
        if not eligible[key] or counts[key] < least:
            continue
        if num_cells[tokens[key] >> 32] + num_cells[tokens[key] & 0xFFFFFFFF] > room:
            eligible[key] = False
            continue
        score = counts[key] / top + weight * consistency(
            offsets, counts, groups[key, 0], groups[key, 1], sigma
        )
        if best == -1 or score > best_score:
            best, best_score = key, score
        elif score == best_score:
            if tokens[key] != tokens[best]:
                if tokens[key] < tokens[best]:
                    best = key
            elif offsets[key] < offsets[best]:
                best = key
    return best


class SpatialKeyTable(KeyTable):
    """The keys of all pairs with at least `theta` occurrences; keys of one pair are added together."""

    def __init__(
        self,
        shapes: Shapes,
        theta: int,
        *,
        min_count: int,
        weight: float,
        sigma: float,
    ):
        super().__init__(shapes, theta)
        self._min_count = min_count
        self._weight = weight
        self._sigma = sigma
        self._eligible = np.empty(0, bool)
        self._groups = np.empty((0, 2), np.int64)

    def add_pairs(
        self, tokens: np.ndarray, offsets: np.ndarray, counts: np.ndarray, eligible: np.ndarray
    ) -> None:
        """Append all keys of some pairs, sorted; `eligible` says which may be chosen."""
        begin = self.size
        self.add(tokens, offsets, counts)
        if self.size > len(self._eligible):
            self._eligible = lengthened(self._eligible, 2 * self.size)
            self._groups = lengthened(self._groups, 2 * self.size)
        self._eligible[begin : self.size] = eligible
        starts = np.flatnonzero(np.append(True, tokens[1:] != tokens[:-1]))
        lengths = np.diff(np.append(starts, len(tokens)))
        self._groups[begin : self.size, 0] = begin + np.repeat(starts, lengths)
        self._groups[begin : self.size, 1] = begin + np.repeat(starts + lengths, lengths)

    def choose(self, most: int, ahead: int, budget: int, room: int) -> np.ndarray:
        """The number of the key that the law chooses, (1,); none if one that is not listed might be it."""
        best = _best(
            self.tokens, self.offsets, self.counts, self._eligible, self._groups, self.size,
            self._shapes.num_cells, room, self.theta, self._min_count, self._weight, self._sigma,
        )  # fmt: skip
        return np.array([best] if best >= 0 else [], np.int64)
