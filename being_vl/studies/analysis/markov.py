"""nothing → grids of codes: the 2D Markov sources of "From Pixels to Tokens", and their exact entropies.

Source: Definition 1, its Scenarios 1 and 2, and equation (3), which lacks its minus sign. The entropies are
derived here, not taken from the paper: it gives the rate of independent rows also for Definition 1, whose
rate is another (`MarkovSource.entropy_rate`).

A cell's parents are the cells `order` rows above it and `order` columns left of it. Definition 1 ("mixed")
draws one of the two by a fair coin; Scenario 1 ("columns") always takes the one above, Scenario 2 ("rows")
the one on the left. The papers say nothing of the border: here a cell with one parent takes that one, and a
cell without parents is drawn from the stationary law, so every cell has that law.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DEPENDENCIES = ("mixed", "columns", "rows")


@dataclass(frozen=True)
class MarkovSource:
    """A source of binary grids. All entropies are in nats."""

    dependence: str = "mixed"  # Definition 1; "columns" is Scenario 1, "rows" Scenario 2
    p: float = 0.8  # Pr(1 | the parent is 0), in (0, 1)
    q: float = 0.8  # Pr(0 | the parent is 1), in (0, 1)
    order: int = 1  # k, the distance to the parents, in cells

    def __post_init__(self) -> None:
        if self.dependence not in DEPENDENCIES:
            raise ValueError(f"dependence must be one of {DEPENDENCIES}, got {self.dependence!r}")
        for name, value in (("p", self.p), ("q", self.q)):
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie in (0, 1), got {value}")
        if self.order < 1:
            raise ValueError(f"order must be at least 1, got {self.order}")

    @property
    def one(self) -> float:
        """π(1), the share of ones."""
        return self.p / (self.p + self.q)

    @property
    def least_probability(self) -> float:
        """δ of Proposition 2: the least probability of a cell given its parents."""
        return min(self.p, 1 - self.p, self.q, 1 - self.q)

    def sample(self, count: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
        """Independent grids, uint8 (count, height, width) of zeros and ones."""
        grids = np.empty((count, height, width), dtype=np.uint8)
        draws = rng.random((height, width, count))
        for row, col in np.ndindex(height, width):
            grids[:, row, col] = draws[row, col] < self._chance_of_one(grids, row, col)
        return grids

    def log_probability(self, grids: np.ndarray) -> np.ndarray:
        """Grids (n, height, width) → the natural logarithm of each one's probability, float64 (n,)."""
        total = np.zeros(len(grids))
        for row, col in np.ndindex(*grids.shape[1:]):
            one = self._chance_of_one(grids, row, col)
            total += np.log(np.where(grids[:, row, col] == 1, one, 1 - one))
        return total

    def stationary_entropy(self) -> float:
        """H(π): the loss of the best unigram model of raw cells, a cell."""
        return float(binary_entropy(self.one))

    def entropy_rate(self) -> float:
        """H∞: the loss of the best model, a cell, on large grids.

        Rows and columns: π(0)·h(p) + π(1)·h(q), whatever the order.

        Mixed: the parents of a cell lie side by side on one diagonal. Centred values are averages over the
        parents' parents, so their covariances along a diagonal at distance d are π(0)π(1)·z^d, where
        λ²(1 + z)² = 4z and λ = 1 − p − q. The parents hence differ with probability 2π(0)π(1)(1 − z), and
        then the next cell is one with probability (p + 1 − q)/2. With p = q and s = 2√(p(1 − p)) that is
        [h(p) + s·ln 2] / (1 + s).
        """
        if self.dependence != "mixed":
            return self._chain_rate()
        square = (1 - self.p - self.q) ** 2
        if square == 0:
            return float(self._entropy_given_parents(0.0))
        half = 2 / square - 1
        z = half - np.sqrt(half**2 - 1)
        return float(self._entropy_given_parents(self.one * (1 - self.one) * z))

    def grid_entropy(self, height: int, width: int) -> float:
        """H(X) of a whole grid: what the best model's loss adds up to on grids of that size."""
        if self.dependence == "columns":
            height, width = width, height
        if self.dependence != "mixed":
            first = min(self.order, width)
            line = first * self.stationary_entropy() + (width - first) * self._chain_rate()
            return height * line
        # A mixed source of order k is k·k interleaved sources of order 1 that know nothing of each other.
        heights = [len(range(start, height, self.order)) for start in range(self.order)]
        widths = [len(range(start, width, self.order)) for start in range(self.order)]
        return sum(self._mixed_entropy(h, w) for h in heights for w in widths if h and w)

    def _chance_of_one(self, grids: np.ndarray, row: int, col: int) -> np.ndarray | float:
        parents = []
        if row >= self.order and self.dependence != "rows":
            parents.append(grids[:, row - self.order, col])
        if col >= self.order and self.dependence != "columns":
            parents.append(grids[:, row, col - self.order])
        if not parents:
            return self.one
        mean = np.mean(parents, axis=0, dtype=np.float64)
        return self.p + (1 - self.p - self.q) * mean

    def _chain_rate(self) -> float:
        return float((1 - self.one) * binary_entropy(self.p) + self.one * binary_entropy(self.q))

    def _entropy_given_parents(self, covariance: np.ndarray | float) -> np.ndarray | float:
        """H(cell | its two parents), whose values have that covariance."""
        one, zero = self.one, 1 - self.one
        differ = one * zero - covariance
        return (
            (zero**2 + covariance) * binary_entropy(self.p)
            + (one**2 + covariance) * binary_entropy(self.q)
            + 2 * differ * binary_entropy((self.p + 1 - self.q) / 2)
        )

    def _mixed_entropy(self, height: int, width: int) -> float:
        """The entropy of a mixed grid of order 1, diagonal by diagonal."""
        total = self.stationary_entropy()
        variance = self.one * (1 - self.one)
        covariance = np.array([[variance]])  # of the cells of a diagonal, by row
        first = 0  # the row of the diagonal's first cell
        for diagonal in range(1, height + width - 1):
            above_first = first
            first = max(0, diagonal - width + 1)
            last = min(height - 1, diagonal)
            weights = np.zeros((last - first + 1, len(covariance)))
            for row in range(first, last + 1):
                # rows, and whether in the grid
                above, left = ((row - 1, row > 0), (row, row < diagonal))
                parents = [parent for parent, in_grid in (above, left) if in_grid]
                for parent in parents:
                    weights[row - first, parent - above_first] = 1 / len(parents)
                if len(parents) == 1:
                    total += self._chain_rate()
                else:
                    one, other = (parent - above_first for parent in parents)
                    total += float(self._entropy_given_parents(covariance[one, other]))
            covariance = (1 - self.p - self.q) ** 2 * weights @ covariance @ weights.T
            np.fill_diagonal(covariance, variance)
        return total


def binary_entropy(p: np.ndarray | float) -> np.ndarray | float:
    """h(p) = −p ln p − (1 − p) ln(1 − p), in nats; 0 at 0 and 1."""
    p = np.asarray(p, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(x > 0, x * np.log(x), 0.0) for x in (p, 1 - p)]
    return -(terms[0] + terms[1])
