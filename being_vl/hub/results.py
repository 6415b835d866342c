"""result files → evaluation tables, model-index and `.eval_results`: what a checkpoint was measured to do.

Source: `evaluation/TASK.json`, which `being-vl eval` writes beside a checkpoint; huggingface_hub's
`EvalResult` (the `model-index` of a card) and `EvalResultEntry` (files of `.eval_results/`). A number
appears in all three as it stands in the file.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from .. import files as result_files
from ..files import Result

ENTRIES_FOLDER = ".eval_results"
_TASK_TYPES = {
    "flickr30k": "image-to-text",
    "nocaps": "image-to-text",
    "reconstruction": "image-to-image",
}


def load_results(folder: Path) -> list[Result]:
    """The results of a checkpoint, by name of task; those without a number are left out."""
    return [result for result in result_files.load_results(folder) if result.metrics]


def eval_results(results: Sequence[Result]) -> list[EvalResult]:
    """The entries of the card's `model-index`, one for each metric."""
    return [
        EvalResult(
            task_type=_TASK_TYPES.get(result.task, "image-text-to-text"),
            dataset_type=result.dataset.get("id") or slug(str(result.dataset["name"])),
            dataset_name=str(result.dataset["name"]),
            dataset_split=result.dataset.get("split"),
            metric_type=metric_type(name),
            metric_name=name.replace("/", ", ", 1).replace("_", " "),
            metric_value=value,
        )
        for result in results
        for name, value in result.metrics.items()
    ]


def metric_type(name: str) -> str:
    """The metric without the part of the data that it is of: "accuracy/shape" → "accuracy"."""
    return slug(name.split("/")[0])


def slug(text: str) -> str:
    """Lower case, with "-" for what identifiers have not."""
    return re.sub(r"[^\w.-]+", "-", text.lower()).strip("-")


def eval_result_files(results: Sequence[Result]) -> dict[str, str]:
    """Path → YAML of `.eval_results/`: the first metric of each result on a data set of the Hub.

    The format names the data set by its id on the Hub, so results on other data are in the card alone.
    """
    files = {}
    for result in results:
        if not result.dataset.get("id"):
            continue
        name, value = next(iter(result.metrics.items()))
        entry = EvalResultEntry(
            dataset_id=str(result.dataset["id"]),
            task_id=result.task,
            value=value,
            notes="; ".join(
                [name, result.decoding_text, result.harness_text, f"{result.num_examples} examples"]
            ),
        )
        text = yaml.safe_dump(
            eval_result_entries_to_yaml([entry]), sort_keys=False, allow_unicode=True
        )
        files[f"{ENTRIES_FOLDER}/{result.task}.yaml"] = text
    return files
