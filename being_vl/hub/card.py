"""folder → its card: metadata, tables, drawing and snippet, from what its files and `card.yaml` say.

Source: huggingface_hub's `ModelCard` and the sections of its template. It differs in that every number is
read from a file of the folder, and that what is not known is left out.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import (
    DatasetCard,
    DatasetCardData,
    EvalResult,
    EvalResultEntry,
    ModelCard,
    ModelCardData,
    eval_result_entries_to_yaml,
)
from transformers import AutoConfig

from .. import __version__
from ..bpe.image_bpe import ImageBPE
from ..codes.shards import CodeShards
from ..files import Result, read_json, reading, write_atomic
from ..files import load_results as load_saved
from ..models.configuration_being_vl import ImageVocabularyConfig
from ..models.families import family_of_checkpoint
from ..processing.tokenization_being_vl import BeingVLTokenizer
from .commit import CARD, CARD_MARK
from .example import DRAWING, EXAMPLE
from .facts import FACTS_FILE, CardFacts, read_facts, read_mapping
from .folder import ENTRIES_FOLDER, Kind, folder_kind, quantizer_config, read_weights
from .part import VQ_FOLDER

_TEMPLATES = Path(__file__).parent / "templates"
_PAPERS = ("2410.02155", "2506.23639")
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


def card_text(folder: Path, facts: CardFacts | None = None) -> str:
    """The card of a folder, whatever it holds."""
    return _text(folder, read_facts(folder) if facts is None else facts, folder_kind(folder))


def _text(folder: Path, facts: CardFacts, kind: Kind) -> str:
    with reading(folder):
        if kind == "checkpoint":
            return _checkpoint_card(folder, facts)
        if kind == "codes":
            return _codes_card(folder, facts)
        return _parts_card(folder, facts, kind)


def write_card(folder: Path, facts: CardFacts | None = None) -> list[str]:
    """Write `README.md`, `.eval_results/` and, where facts are given, `card.yaml`; the names are returned.

    Files of `.eval_results/` whose result is gone are removed.
    """
    files = {}
    if facts is not None and facts != CardFacts():
        files[FACTS_FILE] = facts.to_yaml()
    facts = read_facts(folder) if facts is None else facts
    kind = folder_kind(folder)
    files[CARD] = _text(folder, facts, kind)
    if kind == "checkpoint":
        entries = eval_result_files(_results(folder, facts))
        if not (folder / ENTRIES_FOLDER).resolve().is_relative_to(folder.resolve()):
            raise ValueError(
                f"{folder / ENTRIES_FOLDER} is a link to a place outside of the folder"
            )
        for path in folder.glob(f"{ENTRIES_FOLDER}/*.yaml"):
            if f"{ENTRIES_FOLDER}/{path.name}" not in entries:
                path.unlink()
        files |= entries
    for name, text in files.items():
        write_atomic(folder / name, text)
    return list(files)


def _results(folder: Path, facts: CardFacts) -> list[Result]:
    """The results of a folder, with the data sets' ids on the Hub that the facts add."""
    return [
        result
        if result.dataset.get("id") or result.task not in facts.dataset_ids
        else replace(result, dataset={**result.dataset, "id": facts.dataset_ids[result.task]})
        for result in load_results(folder)
    ]


def _metadata(facts: CardFacts, tags: list[str]) -> dict[str, Any]:
    return {
        "license": facts.license,
        "license_name": facts.license_name,
        "license_link": facts.license_link,
        "language": facts.language or None,
        "tags": [*tags, *facts.tags],
    }


def _title(folder: Path, facts: CardFacts) -> str:
    return facts.title or folder.resolve().name


def _common(folder: Path, facts: CardFacts) -> dict[str, Any]:
    """What the templates of all cards know."""
    return {
        "mark": CARD_MARK,
        **{helper.__name__: helper for helper in (plain, code, cell, fenced, is_repository)},
        "title": _title(folder, facts),
        "facts": facts,
        "version": __version__,
    }


def _checkpoint_card(folder: Path, facts: CardFacts) -> str:
    results = _results(folder, facts)
    has_code = (folder / "modeling_being_vl.py").exists()
    data = ModelCardData(
        **_metadata(
            facts, ["being_vl", "vq", "image-bpe", *(f"arxiv:{paper}" for paper in _PAPERS)]
        ),
        library_name="transformers" if has_code else "being_vl",
        pipeline_tag="image-text-to-text",
        base_model=facts.base_model,
        datasets=facts.datasets or None,
        metrics=list(dict.fromkeys(metric_type(name) for r in results for name in r.metrics))
        or None,
        model_name=slug(_title(folder, facts)),
        eval_results=eval_results(results) or None,
    )
    if not results:
        data.model_name = None  # it only names the model-index
    config = AutoConfig.from_pretrained(folder)
    weights = read_weights(folder)
    context = {
        **_common(folder, facts),
        "has_code": has_code,
        "example": EXAMPLE if (folder / EXAMPLE).exists() else None,
        "drawing": DRAWING if (folder / DRAWING).exists() else None,
        "prompt": _prompt(folder, facts) if (folder / "tokenizer_config.json").exists() else None,
        "tokens": _tokens_per_image(config, facts, results),
        "results": results,
        "config": config,
        "family": family_of_checkpoint(config.model_type, str(folder)).title,
        "layout": config.layout,
        "weights": weights,
        "vq": quantizer_config(folder) if (folder / VQ_FOLDER).exists() else None,
        "recipe": _recipe(folder),
    }
    return _render(ModelCard, data, "model_card.md.jinja", context)


def _render(kind: Any, data: Any, template: str, context: dict[str, Any]) -> str:
    card = kind.from_template(data, template_path=str(_TEMPLATES / template), **context)
    return str(card).rstrip("\n") + "\n"


def _prompt(folder: Path, facts: CardFacts) -> str:
    """What the chat template makes of a question about an image; the image is still one placeholder."""
    tokenizer = BeingVLTokenizer.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": facts.question}]
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _tokens_per_image(
    config: ImageVocabularyConfig, facts: CardFacts, results: list[Result]
) -> list[tuple[str, float, float]]:
    """Rows (images, codes, tokens) of what was measured."""
    size = config.image_grid_size
    rows = []
    if facts.tokens_per_image is not None and size is not None:
        rows.append(
            (facts.tokens_measured_on or "", float(size[0] * size[1]), facts.tokens_per_image)
        )
    for result in results:
        if {"codes_per_image", "tokens_per_image"} <= result.images.keys():
            images = result.images
            rows.append((result.data, images["codes_per_image"], images["tokens_per_image"]))
    return list(dict.fromkeys(rows))


def _recipe(folder: Path) -> dict[str, Any]:
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


def _parts_card(folder: Path, facts: CardFacts, kind: str) -> str:
    data = ModelCardData(
        **_metadata(facts, ["being_vl", "vq", "image-bpe"]), library_name="being_vl"
    )
    config = read_json(folder / "config.json", optional=True)
    bpe = ImageBPE.from_pretrained(folder) if (folder / "image_bpe.json").exists() else None
    context = {
        **_common(folder, facts),
        "kind": kind,
        "vq": AutoConfig.from_pretrained(folder) if config is not None else None,
        "weights": read_weights(folder) if config is not None else None,
        "bpe": bpe,
        "names": sorted(path.name for path in folder.iterdir() if path.suffix != ".md"),
    }
    return _render(ModelCard, data, "parts_card.md.jinja", context)


def _codes_card(folder: Path, facts: CardFacts) -> str:
    shards = CodeShards(folder)
    data = DatasetCardData(
        **{k: v for k, v in _metadata(facts, ["being_vl", "vq", "codes"]).items() if v},
        pretty_name=facts.title,
        size_categories=[_size_category(len(shards))],
        configs=[{"config_name": "default", "data_files": f"codes-*{shards.files[0].suffix}"}],
    )
    manifest = read_json(folder / "manifest.json", optional=True) or {}
    context = {
        **_common(folder, facts),
        "shards": shards,
        "dtype": str(shards.dtype),
        "num_images": len(shards),
        "num_files": len(shards.files),
        "skipped": manifest.get("skipped"),
        "sizes": sorted(
            {(int(h), int(w)) for h, w in zip(shards.heights, shards.widths, strict=True)}
        ),
    }
    return _render(DatasetCard, data, "codes_card.md.jinja", context)


def _size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    if count < 1000:
        return "n<1K"
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = min(len(str(count)) - 4, len(names) - 2)
    return f"{names[power]}<n<{names[power + 1]}"


def load_results(folder: Path) -> list[Result]:
    """The results of a checkpoint, by name of task; those without a number are left out."""
    return [result for result in load_saved(folder) if result.metrics]


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


# Text of a file as Markdown that says it and nothing more: no structure, no HTML.


def plain(value: Any) -> str:
    """One line of text: characters that Markdown or HTML would read as structure are escaped."""
    text = re.sub(r"([\\`*\[\]|~#])", r"\\\1", html.escape(_line(value), quote=False))
    return re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)  # inside a word it is one


def code(value: Any) -> str:
    """A code span; it has no escapes, so what would end it is left out."""
    return f"`{re.sub(r'[`|]', ' ', _line(value)).strip() or ' '}`"


def cell(value: Any) -> str:
    """Markdown of one line, for a cell of a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", _line(value))


def fenced(value: Any) -> str:
    """Lines for a block between fences, with no fence among them."""
    return re.sub(r"^(\s*)(?:`{3,}|~{3,})", r"\1'''", str(value), flags=re.MULTILINE)


def is_repository(value: Any) -> bool:
    """Whether a text is an id of the Hub, as links are made of."""
    return re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)) is not None


def _line(value: Any) -> str:
    return " ".join(str(value).split())
