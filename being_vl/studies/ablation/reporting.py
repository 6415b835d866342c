"""results of the cells → the paper's table, its four findings with their spread, and Figures 3a and 3b.

Source: Being-VL-0, Tables 5.1 and C.1, Figure 3. The paper's scores are on other benchmarks (VQAv2,
MMBench, MME, POPE, VizWiz), with Llama 3.1 8B and one run a cell; what compares is the order of the cells,
so the page prints what the paper says of the order, beside our differences, seed by seed.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from .cells import CURVE_REGIME, REGIMES, TITLES
from .running import CellResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BINS = 32


@dataclass(frozen=True)
class Finding:
    """A claim of the paper as a difference between two ways of training.

    Of one regime with itself, it is that between having merges and having none.
    """

    claim: str
    better: str
    worse: str


FINDINGS = (
    Finding("two stages beat SFT alone", "pt-freeze+sft", "sft"),
    Finding("two stages beat SFT of as many steps", "pt-freeze+sft", "sft-long"),
    Finding("PT(freeze) beats PT(full)", "pt-freeze+sft", "pt-full+sft"),
    *(Finding(f"BPE beats VQ, {title}", regime, regime) for regime, title in TITLES.items()),
    Finding("freezing visual rows in SFT hurts", "pt-freeze+sft", "pt-freeze+sft-freeze"),
)


def summary(rows: Sequence[CellResult]) -> list[dict[str, object]]:
    """A line for each vocabulary and way of training: mean and spread over seeds."""
    groups: dict[tuple[int, int], list[CellResult]] = defaultdict(list)
    regimes = list(REGIMES)
    for row in rows:
        groups[regimes.index(row.regime), row.merges].append(row)
    lines = []
    for (regime, merges), group in sorted(groups.items()):
        scores = [row.metrics["accuracy"] for row in group]
        lines.append(
            {
                "merges": merges,
                "training": TITLES[regimes[regime]],
                "accuracy": mean(scores),
                "spread": stdev(scores) if len(scores) > 1 else float("nan"),
                "seeds": len(scores),
                "tokens_per_image": group[0].tokens_per_image,
                "steps": sum(group[0].steps.values()),
                "seconds": mean(row.seconds for row in group),
            }
        )
    return lines


def differences(
    rows: Sequence[CellResult], finding: Finding, merges: int
) -> dict[str, list[float]]:
    """`LLM+VQ`, `LLM+VQ+BPE` or `BPE − VQ` → the difference in points for each seed that has both."""
    score = {(row.merges, row.regime, row.seed): row.metrics["accuracy"] for row in rows}
    seeds = sorted({row.seed for row in rows})
    cases = {"LLM+VQ": (0, 0), "LLM+VQ+BPE": (merges, merges)}
    if finding.better == finding.worse:
        cases = {"BPE − VQ": (merges, 0)}
    found = {}
    for name, (better, worse) in cases.items():
        pairs = [((better, finding.better, s), (worse, finding.worse, s)) for s in seeds]
        values = [score[a] - score[b] for a, b in pairs if a in score and b in score]
        if values:
            found[name] = values
    return found


def verdict(values: Sequence[float]) -> str:
    """What seeds say of a difference: all of one sign, and further from zero than they scatter, or not."""
    if len(values) < 3:
        return "too few seeds"
    error = stdev(values) / len(values) ** 0.5
    if abs(mean(values)) <= 2 * error or len({value > 0 for value in values}) > 1:
        return "undecided"
    return "as in the paper" if mean(values) > 0 else "against the paper"


def markdown(rows: Sequence[CellResult], merges: int) -> str:
    """The table and the findings as a page."""
    lines = [
        "| | merges | tokens an image | steps | accuracy, % | spread | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in summary(rows):
        spread = f"{line['spread']:.1f}" if line["seeds"] != 1 else "–"
        lines.append(
            f"| {line['training']} | {line['merges'] or 'VQ'} | {line['tokens_per_image']:.1f} | "
            f"{line['steps']} | {line['accuracy']:.1f} | {spread} | {line['seeds']} |"
        )
    lines += [
        "",
        "| the paper says | | difference in points, seed by seed | mean | verdict |",
        "|---|---|---|---|---|",
    ]
    for finding in FINDINGS:
        for case, values in differences(rows, finding, merges).items():
            shown = ", ".join(f"{value:+.1f}" for value in values)
            lines.append(
                f"| {finding.claim} | {case} | {shown} | {mean(values):+.1f} | {verdict(values)} |"
            )
    return "\n".join(lines) + "\n"


def table_csv(rows: Sequence[CellResult]) -> str:
    """One line a cell."""
    file = io.StringIO()
    groups = sorted({name for row in rows for name in row.metrics})
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(
        ["merges", "regime", "seed", *groups, "questions", "tokens_per_image", "steps", "seconds"]
    )
    for row in rows:
        scores = [f"{row.metrics[g]:.3f}" if g in row.metrics else "" for g in groups]
        writer.writerow(
            [row.merges, row.regime, row.seed, *scores, row.questions,
             f"{row.tokens_per_image:.3f}", sum(row.steps.values()), row.seconds]
        )  # fmt: skip
    return file.getvalue()


def draw_figures(rows: Sequence[CellResult], folder: Path) -> list[Path]:
    """Figure 3a (score against merges) and 3b (embedding weights over visual ids), as PNG."""
    curve = [row for row in rows if row.regime == CURVE_REGIME]
    drawn = []
    for name, draw in (("figure-3a.png", _figure_3a), ("figure-3b.png", _figure_3b)):
        if curve:
            draw(curve).savefig(folder / name, dpi=120)
            drawn.append(folder / name)
    return drawn


def _new_figure(title: str, x: str, y: str) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "the figures need matplotlib, which is not installed: pip install being-vl[figures]"
        ) from error
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _figure_3a(rows: Sequence[CellResult]) -> Figure:
    figure, axes = _new_figure(
        f"score against vocabulary ({TITLES[CURVE_REGIME]})", "merges (0: VQ alone)", "accuracy, %"
    )
    sizes = sorted({row.merges for row in rows})
    scores = [[row.metrics["accuracy"] for row in rows if row.merges == size] for size in sizes]
    places = range(len(sizes))
    axes.errorbar(
        places, list(map(mean, scores)), [stdev(s) if len(s) > 1 else 0 for s in scores],
        marker="o", capsize=3,
    )  # fmt: skip
    for place, values in zip(places, scores, strict=True):
        axes.plot([place] * len(values), values, ".", color="grey", zorder=0)
    axes.set_xticks(list(places), list(map(str, sizes)))
    return figure


def _figure_3b(rows: Sequence[CellResult]) -> Figure:
    figure, axes = _new_figure(
        "embedding weights over visual ids", "visual id (dotted: the first merge)", "mean |weight|"
    )
    for size in sorted({row.merges for row in rows}):
        weights = np.mean([row.weights for row in rows if row.merges == size], axis=0)
        parts = np.array_split(np.arange(len(weights)), min(_BINS, len(weights)))
        axes.plot(
            [part.mean() for part in parts], [weights[part].mean() for part in parts],
            label=f"{size} merges",
        )  # fmt: skip
        axes.axvline(len(weights) - size, color="grey", linestyle=":", linewidth=0.8)
    axes.legend()
    return figure
