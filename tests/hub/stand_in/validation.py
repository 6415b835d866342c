"""The rules of the Hub's `validate-yaml` that its documentation states, for the stand-in Hub.

Sources: huggingface.co/docs/hub/model-cards, datasets-cards and repositories-licenses, and the
specifications modelcard.md and eval_results.yaml of the repository huggingface/hub-docs. The Hub checks
more (that repositories exist, that a data set is a benchmark); what needs its database is left out.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

LICENSES = {
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0",
    "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "openrail",
    "llama2", "llama3", "llama3.1", "llama3.2", "gemma", "other", "unknown",
}  # fmt: skip
PIPELINE_TAGS = {
    "any-to-any", "feature-extraction", "image-feature-extraction", "image-text-to-text",
    "image-to-image", "text-generation", "text-to-image", "visual-question-answering",
}  # fmt: skip
SIZE_CATEGORIES = {
    "n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B",
}  # fmt: skip
_REPO_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")


def card_errors(content: str, repo_type: str) -> list[str]:
    """What is wrong with the metadata of a card; no metadata at all is only a warning on the Hub."""
    match = re.match(r"---[\r\n]+(.*?)[\r\n]+---([\r\n]+|\Z)", content, re.DOTALL)
    if not match:
        return []
    try:
        metadata = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    if not isinstance(metadata, dict):
        return ["metadata must be a mapping"]
    errors = []
    for name, allowed in (("license", LICENSES), ("pipeline_tag", PIPELINE_TAGS)):
        if name in metadata and metadata[name] not in allowed:
            errors.append(f"{name}: {metadata[name]!r} is not one of {sorted(allowed)}")
    for name, pattern in (
        ("base_model", _REPO_ID),
        ("datasets", _REPO_ID),
        ("language", _LANGUAGE),
        ("tags", re.compile(r".{1,100}")),
        ("metrics", re.compile(r"[\w.-]+")),
    ):
        errors += _name_errors(name, metadata.get(name, []), pattern)
    if "library_name" in metadata and not isinstance(metadata["library_name"], str):
        errors.append("library_name must be a string")
    if "model-index" in metadata:
        errors += _model_index_errors(metadata["model-index"])
    if repo_type == "dataset":
        sizes = metadata.get("size_categories", [])
        errors += [f"size_categories: {size!r}" for size in sizes if size not in SIZE_CATEGORIES]
        for config in metadata.get("configs", []):
            if not isinstance(config, dict) or "config_name" not in config:
                errors.append("configs: each needs a config_name")
    return errors


def _name_errors(field: str, value: Any, pattern: re.Pattern[str]) -> list[str]:
    names = value if isinstance(value, list) else [value]
    return [
        f"{field}: {name!r} is not valid"
        for name in names
        if not isinstance(name, str) or not pattern.fullmatch(name)
    ]


def _model_index_errors(index: Any) -> list[str]:
    errors = []
    if not isinstance(index, list) or not index:
        return ["model-index must be a list"]
    for model in index:
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append("model-index[].name must be a string")
            continue
        for number, result in enumerate(model.get("results", [])):
            where = f"model-index[].results[{number}]"
            for part, names in (("task", ("type",)), ("dataset", ("type", "name"))):
                for name in names:
                    if not isinstance(result.get(part, {}).get(name), str):
                        errors.append(f"{where}.{part}.{name} must be a string")
            for metric in result.get("metrics") or [{}]:
                if not isinstance(metric.get("type"), str) or "value" not in metric:
                    errors.append(f"{where}.metrics[] needs a type and a value")
    return errors
