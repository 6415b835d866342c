"""results and settings that a folder holds → what its card says of them: model-index, `.eval_results/`, recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml

from ..files import Result
from ..files import load_results as load_saved
from ..models.configuration_being_vl import ImageVocabularyConfig
from .facts import CardFacts, read_mapping
from .folder import ENTRIES_FOLDER

# Fields of a training's settings that a reader compares; paths and bookkeeping stay out.
_RECIPE = (
    "stage", "learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler_type", "warmup_steps", "warmup_ratio", "weight_decay",
    "optim", "adam_beta1", "adam_beta2", "max_grad_norm", "max_length", "packing", "bf16", "seed",
    "use_peft", "lora_r", "lora_alpha", "pretrain", "sft", "seconds",
    "steps", "train_runtime", "train_loss", "eval_loss",
)  # fmt: skip

_TASK_TYPES = {
    "flickr30k": "image-to-text",
    "nocaps": "image-to-text",
    "reconstruction": "image-to-image",
}

_LABELS = {
    "pretrain": "steps of pretrain",
    "sft": "steps of sft",
    "seconds": "seconds of training",
    "train_runtime": "seconds of training",
}


def load_results(folder: Path, facts: CardFacts | None = None) -> list[Result]:
    """The results of a checkpoint that hold a number, with the Hub's ids of their data that the facts add."""
    ids = {} if facts is None else facts.dataset_ids
    return [
        replace(
            result,
            dataset={**result.dataset, "id": result.dataset.get("id") or ids.get(result.task)},
        )
        for result in load_saved(folder)
        if result.metrics
    ]


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
        how = f"{result.decoding_text}; {result.harness_text}; {result.num_examples} examples"
        entry = EvalResultEntry(
            dataset_id=str(result.dataset["id"]),
            task_id=result.task,
            value=value,
            notes=f"{name}; {how}",
        )
        entries = eval_result_entries_to_yaml([entry])
        text = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True)
        files[f"{ENTRIES_FOLDER}/{result.task}.yaml"] = text
    return files


def tokens_per_image(
    config: ImageVocabularyConfig, facts: CardFacts, results: list[Result]
) -> list[tuple[str, float, float]]:
    """Rows (images, codes, tokens) of what was measured."""
    size, images = config.image_grid_size, facts.tokens_measured_on or ""
    rows = []
    if facts.tokens_per_image is not None and size is not None:
        rows.append((images, float(size[0] * size[1]), facts.tokens_per_image))
    for result in results:
        if means := result.images:
            rows.append((result.data, means["codes_per_image"], means["tokens_per_image"]))
    return list(dict.fromkeys(rows))


def recipe(folder: Path) -> dict[str, Any]:
    """Label → value of the settings of the training, from the files that it leaves in a checkpoint."""
    found: dict[str, Any] = {}
    for name in ("training.json", "train.yaml", "metrics.json"):
        if (folder / name).exists():
            content = read_mapping(folder / name)
            sections = [content, *(part for part in content.values() if isinstance(part, dict))]
            for section in sections:
                found |= {key: section[key] for key in _RECIPE if section.get(key) is not None}
    return {
        _LABELS.get(key, key): f"{found[key]:.4g}" if isinstance(found[key], float) else found[key]
        for key in _RECIPE
        if key in found and not isinstance(found[key], dict)
    }
