"""result files → the paper's tables with our rows below: what `being-vl results --paper` prints.

Source: Being-VL-0, Tables 5.1 and C.1 to C.4 and Figure 3, as printed; the figure's curves have no numbers. A cell of ours is empty where nothing was run. The
paper does not say which of POPE's figures it prints; ours is the accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.scoring.yes_no import MME_COGNITION, MME_PERCEPTION
from ..files import Result

_SCORES = ("VQAv2", "MMBench", "MME-P", "MME-C", "POPE", "VizWiz")
_TABLE_5_1 = """
Llama 3.1 | VQ | SFT | 51.1 | 35.9 | 972.3 | 231.8 | 73.8 | 43.1
Llama 3.1 | VQ | PT(full)+SFT | 53.7 | 37.0 | 1037.2 | 261.4 | 75.3 | 44.2
Llama 3.1 | VQ | PT(freeze)+SFT | 55.4 | 37.6 | 1054.5 | 277.0 | 76.0 | 45.3
Llama 2 | VQ | PT(freeze)+SFT | 54.0 | 35.7 | 991.9 | 254.2 | 75.1 | 44.4
Llama 3.1 | VQ+BPE | SFT | 52.2 | 35.4 | 1029.7 | 269.6 | 76.3 | 45.3
Llama 3.1 | VQ+BPE | PT(full)+SFT(freeze visual) | 31.7 | 17.8 | 624.1 | 171.9 | 46.4 | 29.5
Llama 3.1 | VQ+BPE | PT(full)+SFT | 56.5 | 38.6 | 1144.6 | 284.3 | 77.3 | 45.8
Llama 3.1 | VQ+BPE | PT(freeze)+SFT(freeze visual) | 22.5 | 13.3 | 488.7 | 143.6 | 35.2 | 21.5
Llama 3.1 | VQ+BPE | PT(freeze)+SFT | 57.1 | 40.9 | 1223.5 | 307.1 | 79.0 | 46.0
Llama 2 | VQ+BPE | PT(freeze)+SFT | 56.5 | 38.1 | 1112.2 | 277.8 | 77.9 | 44.9
+ RefCOCO 50.6K (PT) | VQ+BPE | | 58.6 | 42.3 | 1257.4 | 314.3 | 79.8 | 47.1
+ AOKVQA 66.2K (PT) | VQ+BPE | | 59.6 | 43.1 | 1288.1 | 321.4 | 80.4 | 47.5
+ ShareGPT4o 57.3K (SFT) | VQ+BPE | | 60.2 | 43.7 | 1304.5 | 327.7 | 80.9 | 47.8
+ ALLaVA Inst 70K (SFT) | VQ+BPE | | 60.6 | 44.0 | 1316.2 | 331.0 | 81.3 | 48.2
"""
# MME's category, as its folder is named → the paper's (VQ+BPE, VQ).
_TABLE_C_2 = {
    "existence": ("145.00", "113.33"), "count": ("120.00", "110.00"),
    "position": ("106.67", "103.33"), "color": ("148.33", "120.00"),
    "posters": ("136.24", "121.08"), "celebrity": ("111.76", "89.51"),
    "scene": ("125.00", "101.75"), "landmark": ("130.25", "110.00"),
    "artwork": ("112.75", "90.50"), "OCR": ("87.50", "95.00"),
    "commonsense_reasoning": ("107.14", "89.57"), "numerical_calculation": ("62.50", "50.00"),
    "text_translation": ("95.00", "102.50"), "code_reasoning": ("42.50", "35.00"),
}  # fmt: skip
_TABLE_C_3 = """
Perception | 26 | 34 | 10
Understanding | 52 | 33 | 25
Applying | 27 | 14 | 19
Analyzing | 49 | 40 | 31
Evaluation | 12 | 19 | 9
Creation | 7 | 9 | 4
total | 173 | 149 | 98
"""
_CAPTIONS = ("CIDEr", "SPICE", "METEOR", "ROUGE-L")
_TABLE_C_4 = """
VQ | Nocaps validation | 76.4 | 17.2 | 24.4 | 51.3
VQ | Flickr30k 1K | 76.4 | 16.2 | 24.4 | 51.3
VQ+BPE | Nocaps validation | 75.7 | 16.9 | 24.1 | 50.8
VQ+BPE | Flickr30k 1K | 75.7 | 15.9 | 24.1 | 50.8
VQ+BPE (+SFT) | Nocaps validation | 80.7 | 18.2 | 25.0 | 52.6
VQ+BPE (+SFT) | Flickr30k 1K | 80.7 | 17.2 | 25.0 | 52.6
"""
# The points of Figure 3a that Table 5.1 prints: its curve is of Llama 3.1, PT(freeze)+SFT.
_FIGURE_3 = """
paper: VQ | 0 | 55.4 | 37.6 | 1054.5 | 277.0 | 76.0 | 45.3 | |
paper: VQ+BPE | 8192 | 57.1 | 40.9 | 1223.5 | 307.1 | 79.0 | 46.0 | |
"""
_FIGURE_3_TEXT = """The paper draws 1,024 to 16,384 merges, without numbers. (a): scores rise up to 8,192 merges, and fall at 16,384 on all
but POPE. (b), mean absolute embedding weight: with 4,096 merges that of merges is larger, with 16,384 that of codes, with 8,192 they are even.
"""


def paper_tables(
    results: Mapping[str, Sequence[Result]],
    row_weights: Mapping[str, tuple[np.ndarray, int]] | None = None,
) -> str:
    """Markdown of Tables 5.1 with C.1, C.2, C.3, C.4 and Figure 3: the paper's rows, then one for each checkpoint.

    Args:
        results: by name of a checkpoint.
        row_weights: for Figure 3, likewise: mean absolute embedding weight of each visual id, float (K + M,), and M.
    """
    metrics = {
        name: {(r.task, metric): value for r in found for metric, value in r.metrics.items()}
        for name, found in results.items()
    }
    scores = [[name, "", "", *_scores(of)] for name, of in metrics.items()]
    categories = [
        [category, *paper, *(_cell(of.get(("mme", f"score/{category}")), 2) for of in metrics.values())]
        for category, paper in _TABLE_C_2.items()
    ]  # fmt: skip
    captions = [
        [f"ours: {name}", result.data, *(_cell(result.metrics.get(m)) for m in _CAPTIONS)]
        for name, found in results.items()
        for result in found
        if "CIDEr" in result.metrics
    ]
    row_weights = row_weights or {}
    vocabularies = [
        [name, *_vocabulary(*row_weights[name], _scores(of))] if name in row_weights else [name, "", *_scores(of), "", ""]
        for name, of in metrics.items()
    ]  # fmt: skip
    return "\n".join(
        [
            _table("Tables 5.1 and C.1", ("LLM", "tokens", "training", *_SCORES), _rows(_TABLE_5_1), scores),
            _table("Table C.2, MME by category", ("", "VQ+BPE", "VQ", *(f"ours: {n}" for n in metrics)), categories, []),
            _table("Table C.3, MLLM-Bench: VQ+BPE against VQ", ("", "VQ+BPE better", "VQ better", "tie"), _rows(_TABLE_C_3), []),
            "Ours need a judge's verdicts: `being-vl results --verdicts FILE`.\n",
            _table("Table C.4, captions", ("", "data", *_CAPTIONS), _rows(_TABLE_C_4), captions),
            _table("Figure 3, sizes of the vocabulary", ("", "merges", *_SCORES, "weight of codes", "weight of merges"), _rows(_FIGURE_3), vocabularies),
            _FIGURE_3_TEXT,
        ]
    )  # fmt: skip


def _vocabulary(weights: np.ndarray, merges: int, scores: Sequence[str]) -> list[str]:
    """Cells of Figure 3: merges, scores, and the weights of codes and of merges."""
    codes = len(weights) - merges
    means = [f"{part.mean():.4f}" if len(part) else "" for part in (weights[:codes], weights[codes:])]  # fmt: skip
    return [str(merges), *scores, *means]


def _scores(metrics: Mapping[tuple[str, str], float]) -> list[str]:
    """A checkpoint's cells of Table 5.1, by our own tasks or lmms-eval's."""

    def first(*names: tuple[str, str]) -> str:
        return _cell(next((metrics[name] for name in names if name in metrics), None))

    def total(name: str, parts: Sequence[str]) -> str:
        """MME's sums compare only where all their categories were run."""
        whole = all(("mme", f"score/{part}") in metrics for part in parts)
        return _cell(metrics[("mme", name)]) if whole else ""

    return [
        first(("vqav2-val2014", "accuracy"), ("vqav2_val", "exact_match")),
        first(("mmbench_en_dev", "gpt_eval_score"), ("mmbench_en_dev_static", "accuracy")),
        total("perception", MME_PERCEPTION) or first(("mme", "mme_perception_score")),
        total("cognition", MME_COGNITION) or first(("mme", "mme_cognition_score")),
        first(("pope", "accuracy"), ("pope", "pope_accuracy")),
        first(("vizwiz_vqa_val", "exact_match")),
    ]


def _cell(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _rows(printed: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")] for line in printed.strip().splitlines()]


def _table(
    title: str, columns: Sequence[str], paper: Sequence[Sequence[str]], ours: Sequence[Sequence[str]]
) -> str:  # fmt: skip
    lines = [columns, ["---"] * len(columns), *paper]
    lines += [[f"**{row[0]}**", *row[1:]] for row in ours]
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
