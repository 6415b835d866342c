"""scores → result files, and back: `evaluation/TASK.json` in a checkpoint's folder.

Source: our own, a versioned JSON that the model card and the tables read. What was measured, on what data,
with which decoding, harness and hardware; nothing that was not measured.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..image_bpe_files import write_atomically

VERSION = 1
FOLDER = "evaluation"


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Args:
        task: name of the task, and of the file.
        dataset: `name`, Hub `id` (or None), `split`.
        metrics: name → number; percentages are 0 to 100.
        num_examples: questions or pictures.
        decoding: options of `generate`; empty where nothing is generated.
        harness: `name` ("being_vl" or "lmms-eval") and `version`.
        seconds: wall clock.
        hardware: in words.
        images: `codes_per_image` and `tokens_per_image`, means over the pictures.
    """

    task: str
    dataset: dict[str, str | None]
    metrics: dict[str, float]
    num_examples: int
    decoding: dict[str, Any]
    harness: dict[str, str]
    seconds: float
    hardware: str
    images: dict[str, float] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `evaluation/TASK.json` below a folder; its path is returned."""
        path = Path(folder) / FOLDER / f"{self.task}.json"
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomically(path, text + "\n")
        return path


def load_results(folder: str | os.PathLike) -> list[Result]:
    """The results below a folder, by name of task.

    Raises:
        ValueError: a file is not JSON, of another version, or lacks a field; it is named.
    """
    return [_load(path) for path in sorted((Path(folder) / FOLDER).glob("*.json"))]


def _load(path: Path) -> Result:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict) or content.pop("version", None) != VERSION:
        raise ValueError(f"{path}: must be a result of version {VERSION}")
    try:
        return Result(**content)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def hardware(device: torch.device, num_processes: int = 1) -> str:
    """The devices of a run, in words."""
    if device.type == "cuda":
        return f"{num_processes} × {torch.cuda.get_device_name(device)}"
    threads = num_processes * torch.get_num_threads()
    name = device.type.upper() if device.type != "cpu" else f"CPU, {threads} threads"
    return f"{name} ({platform.system()} {platform.machine()})"


def comparison_rows(folders: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Tokens per image beside the first metric of every result, for each checkpoint.

    Returns:
        a row for each result that knows its tokens per image: `checkpoint`, `task`, `codes_per_image`,
        `tokens_per_image`, `metric`, `value`, `num_examples`; by task, then by tokens per image.
    """
    rows = []
    for folder in folders:
        for result in load_results(folder):
            if not result.images or not result.metrics:
                continue
            metric, value = _headline(result.metrics)
            rows.append(
                {
                    "checkpoint": str(folder),
                    "task": result.task,
                    **result.images,
                    "metric": metric,
                    "value": value,
                    "num_examples": result.num_examples,
                }
            )
    return sorted(rows, key=lambda row: (row["task"], row["tokens_per_image"]))


def _headline(metrics: Mapping[str, float]) -> tuple[str, float]:
    """The first metric that is not of a part of the questions."""
    return next(((k, v) for k, v in metrics.items() if "/" not in k), next(iter(metrics.items())))
