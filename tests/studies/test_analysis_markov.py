"""The 2D Markov sources: exact entropies against Monte Carlo, enumeration and closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from being_vl.studies.analysis.information_loss import all_grids
from being_vl.studies.analysis.markov import DEPENDENCIES, MarkovSource, binary_entropy

LAWS = [(0.8, 0.8), (0.3, 0.6), (0.05, 0.2)]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("dependence", DEPENDENCIES)
@pytest.mark.parametrize(("p", "q"), LAWS)
def test_grid_entropy_agrees_with_monte_carlo(dependence, p, q, order):
    """−ln Pr(grid) has the entropy as its mean."""
    source = MarkovSource(dependence, p=p, q=q, order=order)
    grids = source.sample(4000, 7, 5, np.random.default_rng(order))
    found = -source.log_probability(grids)
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean() - source.grid_entropy(7, 5)) < 3 * error


@pytest.mark.parametrize("dependence", DEPENDENCIES)
@pytest.mark.parametrize("order", [1, 2])
def test_grid_entropy_agrees_with_the_sum_over_all_grids(dependence, order):
    source = MarkovSource(dependence, p=0.3, q=0.6, order=order)
    logs = source.log_probability(all_grids(3, 4, 2))
    assert np.exp(logs).sum() == pytest.approx(1)
    assert -(np.exp(logs) @ logs) == pytest.approx(source.grid_entropy(3, 4))


@pytest.mark.parametrize("dependence", DEPENDENCIES)
@pytest.mark.parametrize(("p", "q"), LAWS)
def test_entropy_rate_is_what_a_cell_adds_to_a_large_grid(dependence, p, q):
    """The grid with one row and one column more, its own corner counted alone."""
    source = MarkovSource(dependence, p=p, q=q)
    size = 60
    sides = [(size, size), (size - 1, size), (size, size - 1), (size - 1, size - 1)]
    both, rows, cols, neither = (source.grid_entropy(*side) for side in sides)
    assert both - rows - cols + neither == pytest.approx(source.entropy_rate(), abs=1e-6)


def test_every_cell_has_the_stationary_law():
    source = MarkovSource("mixed", p=0.3, q=0.6, order=2)
    weights = np.exp(source.log_probability(all_grids(3, 3, 2)))
    assert np.tensordot(weights, all_grids(3, 3, 2), 1) == pytest.approx(np.full((3, 3), 1 / 3))
    assert source.stationary_entropy() == pytest.approx(float(binary_entropy(1 / 3)))


def test_the_rates_of_the_paper_at_eight_tenths():
    """Remark 1's h(p) is the rate of rows; Definition 1 has [h(p) + s ln 2] / (1 + s), s = 2√(p(1 − p))."""
    h, s = float(binary_entropy(0.8)), 2 * np.sqrt(0.8 * 0.2)
    assert (
        MarkovSource("rows").entropy_rate() == pytest.approx(h) == pytest.approx(0.5004, abs=1e-4)
    )
    mixed = MarkovSource("mixed").entropy_rate()
    assert mixed == pytest.approx((h + s * np.log(2)) / (1 + s)) == pytest.approx(0.5861, abs=1e-4)
    assert MarkovSource("mixed", p=0.4, q=0.6).entropy_rate() == pytest.approx(binary_entropy(0.4))


def test_rows_and_columns_are_each_other_transposed():
    rows, columns = MarkovSource("rows", p=0.3, order=2), MarkovSource("columns", p=0.3, order=2)
    grids = rows.sample(50, 4, 6, np.random.default_rng(0))
    assert columns.log_probability(grids.swapaxes(1, 2)) == pytest.approx(
        rows.log_probability(grids)
    )
    assert rows.grid_entropy(4, 6) == pytest.approx(columns.grid_entropy(6, 4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dependence": "diagonal"}, "dependence must be one of"),
        ({"p": 1.0}, r"p must lie in \(0, 1\), got 1.0"),
        ({"q": 0}, r"q must lie in \(0, 1\), got 0"),
        ({"order": 0}, "order must be at least 1, got 0"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        MarkovSource(**arguments)
