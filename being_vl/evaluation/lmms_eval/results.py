"""what lmms-eval wrote → result files.

Source: the `*_results.json` of lmms-eval 0.7 (`--output_path`). It differs in that shares become percentages.
"""

from __future__ import annotations

import importlib.metadata
import math
from pathlib import Path
from typing import Any

from ...files import Result, is_of, read_json, shown

# Metrics that lmms-eval gives as shares of 1; others (MME's points, CIDEr, …) are kept as they are.
_POPE = ("accuracy", "f1_score", "precision", "recall", "yes_ratio")
_SHARES = ("accuracy", "exact_match", *(f"pope_{name}" for name in _POPE))


def read_lmms_eval(path: Path, *, hardware: str) -> list[Result]:
    """A result for each task of a file."""
    content = read_json(path)
    try:
        return [_result(content, task, hardware) for task in content["configs"]]
    except KeyError as error:
        raise ValueError(f"{path}: not a results file of lmms-eval: no field {error}") from None
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from None


def _result(content: dict[str, Any], task: str, hardware: str) -> Result:
    config, found = content["configs"][task], content["results"][task]
    if not isinstance(config, dict) or not isinstance(found, dict):
        raise ValueError(f"configs and results of {shown(task)} must be objects")
    metrics = {}
    for key, value in found.items():
        name = key.partition(",")[0]
        is_number = is_of(value, float) and math.isfinite(value)
        if is_number and "," in key and not name.endswith(("_stderr", "_clt", "_clustered")):
            shares = name in _SHARES or name.startswith("accuracy_")
            metrics[name] = 100 * value if shares else float(value)
    dataset = config["dataset_path"]
    return Result(
        task=task,
        dataset={
            "name": task,
            "id": dataset if "/" in dataset else None,
            "split": config.get("test_split") or config.get("validation_split"),
        },
        metrics=metrics,
        num_examples=content["n-samples"][task]["effective"],
        decoding=dict(config["generation_kwargs"]),
        harness={"name": "lmms-eval", "version": _version(content["lmms_eval_version"])},
        seconds=float(content["total_evaluation_time_seconds"]),
        hardware=hardware,
    )


def _version(written: Any) -> str:
    """The version that a file names; lmms-eval 0.7.3, installed from a wheel, writes "unknown@unknown"."""
    if not isinstance(written, str):
        raise ValueError(f"lmms_eval_version must be str, got {shown(written)}")
    if not written.startswith("unknown"):
        return written
    try:
        return importlib.metadata.version("lmms-eval")
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"lmms_eval_version is {written!r}, and lmms-eval is not installed here: run this where it is"
        ) from None
