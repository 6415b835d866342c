"""result files → evaluation tables, model-index and `.eval_results`: what a checkpoint was measured to do.

Source: `evaluation/TASK.json`, which `being-vl eval` writes beside a checkpoint; huggingface_hub's
`EvalResult` (the `model-index` of a card) and `EvalResultEntry` (files of `.eval_results/`). A number
appears in all three as it stands in the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

VERSION = 1
FOLDER = "evaluation"
ENTRIES_FOLDER = ".eval_results"
_TASK_TYPES = {
    "flickr30k": "image-to-text",
    "nocaps": "image-to-text",
    "reconstruction": "image-to-image",
}
_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "dataset": (dict,),
    "metrics": (dict,),
    "num_examples": (int,),
    "decoding": (dict,),
    "harness": (dict,),
    "seconds": (int, float),
    "hardware": (str,),
}


@dataclass(frozen=True)
class TaskResult:
    """A result file: what was measured, on what, how. Percentages are 0 to 100."""

    task: str
    dataset: Mapping[str, str | None]
    metrics: Mapping[str, float]
    num_examples: int
    decoding: Mapping[str, Any]
    harness: Mapping[str, str]
    seconds: float
    hardware: str
    images: Mapping[str, float] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Data set and split in words."""
        split = self.dataset.get("split")
        return f"{self.dataset['name']}, {split}" if split else str(self.dataset["name"])

    @property
    def decoding_text(self) -> str:
        """The decoding settings in words; "–" where nothing was generated."""
        settings = dict(self.decoding)
        if not settings:
            return "–"
        words = ["sampled" if settings.pop("do_sample", False) else "greedy"]
        return ", ".join([*words, *(f"{name}={value}" for name, value in settings.items())])

    @property
    def harness_text(self) -> str:
        return f"{self.harness['name']} {self.harness['version']}"


def load_results(folder: Path) -> list[TaskResult]:
    """The results of a checkpoint, by name of task; those without a number are left out.

    Raises:
        ValueError: a file is not a result of version 1; it, the field and the value are named.
    """
    found = [_load(path) for path in sorted((folder / FOLDER).glob("*.json"))]
    return [result for result in found if result.metrics]


def _load(path: Path) -> TaskResult:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(
            f"{path}: must be a mapping with version: {VERSION}, got {str(content)[:80]!r}"
        )
    for name, types in _FIELDS.items():
        if not isinstance(content.get(name), types) or isinstance(content[name], bool):
            raise ValueError(
                f"{path}: {name} must be {types[-1].__name__}, got {content.get(name)!r}"
            )
    for part, names in (("dataset", ("name",)), ("harness", ("name", "version"))):
        for name in names:
            if not isinstance(content[part].get(name), str):
                raise ValueError(
                    f"{path}: {part}.{name} must be str, got {content[part].get(name)!r}"
                )
    images = content.get("images") or {}
    for part, numbers in (("metrics", content["metrics"]), ("images", images)):
        for name, value in numbers.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{path}: {part}.{name} must be a number, got {value!r}")
    return TaskResult(**{name: content[name] for name in _FIELDS}, images=images)


def eval_results(results: Sequence[TaskResult]) -> list[EvalResult]:
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


def eval_result_files(results: Sequence[TaskResult]) -> dict[str, str]:
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
