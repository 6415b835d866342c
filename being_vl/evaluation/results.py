"""result files → tables: tokens per image beside scores."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..files import Result


def hardware(device: torch.device, num_processes: int = 1) -> str:
    """The devices of a run, in words."""
    if device.type == "cuda":
        return f"{num_processes} × {torch.cuda.get_device_name(device)}"
    threads = num_processes * torch.get_num_threads()
    name = device.type.upper() if device.type != "cpu" else f"CPU, {threads} threads"
    return f"{name} ({platform.system()} {platform.machine()})"


def comparison_rows(results: Mapping[str | os.PathLike, Sequence[Result]]) -> list[dict[str, Any]]:
    """Tokens per image beside the first metric of every result, for each checkpoint.

    Returns:
        a row for each result that knows its tokens per image: `checkpoint`, `task`, `codes_per_image`,
        `tokens_per_image`, `metric`, `value`, `num_examples`; by task, then by tokens per image.
    """
    rows = []
    for folder, measured in results.items():
        for result in measured:
            if not result.images or not result.metrics:
                continue
            # The first metric of all questions, where there is one.
            metric = min(result.metrics, key=lambda name: "/" in name)
            rows.append(
                {
                    "checkpoint": str(folder), "task": result.task, **result.images,
                    "metric": metric, "value": result.metrics[metric],
                    "num_examples": result.num_examples,
                }
            )  # fmt: skip
    return sorted(rows, key=lambda row: (row["task"], row["tokens_per_image"]))
