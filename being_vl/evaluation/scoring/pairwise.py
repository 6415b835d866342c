"""verdicts of a judge → wins, ties and losses.

Source: the table of MLLM-Bench (Ge et al. 2023): a judge compares two models' answers to each question, and
the table counts, for each level of its taxonomy, how often the first model wins, ties and loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

OUTCOMES = ("win", "tie", "lose")


def pairwise_table(verdicts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Count verdicts by level and over all.

    Args:
        verdicts: each has `verdict`, one of "win", "tie" and "lose", of our model over the anchor, and may
            have `level`, which is taken as it is.

    Returns:
        level → {"win", "tie", "lose", "win_rate"}, levels in the order in which they come, then `"all"`. The
        win rate is wins over all questions, ties counted as none, in [0, 1].
    """
    table: dict[str, dict[str, float]] = {}
    total: dict[str, float] = dict.fromkeys(OUTCOMES, 0)
    for number, row in enumerate(verdicts, 1):
        verdict = row.get("verdict") if isinstance(row, Mapping) else None
        if verdict not in OUTCOMES:
            raise ValueError(
                f"verdict {number}: 'verdict' must be one of {', '.join(OUTCOMES)}, got {verdict!r}"
            )
        counts = table.setdefault(str(row.get("level", "all")), dict.fromkeys(OUTCOMES, 0))
        counts[verdict] += 1
        total[verdict] += 1
    if not table:
        raise ValueError("there are no verdicts")
    table.pop("all", None)
    table["all"] = total
    for counts in table.values():
        counts["win_rate"] = counts["win"] / sum(counts[name] for name in OUTCOMES)
    return table
