"""folder → its card: metadata, tables, drawing and snippet, from what its files and `card.yaml` say.

Source: huggingface_hub's `ModelCard` and the sections of its template. It differs in that every number is
read from a file of the folder, and that what is not known is left out.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from transformers import AutoConfig

from .. import __version__
from ..bpe.image_bpe import ImageBPE
from ..codes.shards import CodeShards
from ..files import read_json, reading, write_atomic
from ..models.families import family_of_checkpoint
from ..processing.tokenization_being_vl import BeingVLTokenizer
from .commit import CARD, CARD_MARK
from .example import DRAWING, EXAMPLE
from .facts import FACTS_FILE, CardFacts, read_facts
from .folder import ENTRIES_FOLDER, folder_kind, quantizer_config, read_weights
from .measured import (
    eval_result_files,
    eval_results,
    load_results,
    metric_type,
    recipe,
    slug,
    tokens_per_image,
)
from .part import VQ_FOLDER

_TEMPLATES = Path(__file__).parent / "templates"
_PAPERS = ("2410.02155", "2506.23639")


def card_text(folder: Path, facts: CardFacts | None = None) -> str:
    """The card of a folder, whatever it holds."""
    facts = read_facts(folder) if facts is None else facts
    kind = folder_kind(folder)
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
    files[CARD] = card_text(folder, facts)
    if folder_kind(folder) == "checkpoint":
        entries, place = eval_result_files(load_results(folder, facts)), folder / ENTRIES_FOLDER
        if not place.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"{place} is a link to a place outside of the folder")
        for path in place.glob("*.yaml"):
            if f"{ENTRIES_FOLDER}/{path.name}" not in entries:
                path.unlink()
        files |= entries
    for name, text in files.items():
        write_atomic(folder / name, text)
    return list(files)


def _metadata(facts: CardFacts, tags: list[str]) -> dict[str, Any]:
    return {
        "license": facts.license, "license_name": facts.license_name, "license_link": facts.license_link,
        "language": facts.language or None, "tags": [*tags, *facts.tags],
    }  # fmt: skip


def _title(folder: Path, facts: CardFacts) -> str:
    return facts.title or folder.resolve().name


def _checkpoint_card(folder: Path, facts: CardFacts) -> str:
    results = load_results(folder, facts)
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
    return _render(
        folder,
        facts,
        data,
        "model",
        has_code=has_code,
        example=EXAMPLE if (folder / EXAMPLE).exists() else None,
        drawing=DRAWING if (folder / DRAWING).exists() else None,
        prompt=_prompt(folder, facts) if (folder / "tokenizer_config.json").exists() else None,
        tokens=tokens_per_image(config, facts, results),
        results=results,
        config=config,
        family=family_of_checkpoint(config.model_type, str(folder)).title,
        layout=config.layout,
        weights=read_weights(folder),
        vq=quantizer_config(folder) if (folder / VQ_FOLDER).exists() else None,
        recipe=recipe(folder),
    )


def _render(folder: Path, facts: CardFacts, data: Any, template: str, **context: Any) -> str:
    """A template with what those of all cards know, and more."""
    helpers = (plain, code, cell, fenced, is_repository)
    context |= {helper.__name__: helper for helper in helpers}
    context |= {"mark": CARD_MARK, "title": _title(folder, facts), "facts": facts, "version": __version__}  # fmt: skip
    kind = DatasetCard if isinstance(data, DatasetCardData) else ModelCard
    path = str(_TEMPLATES / f"{template}_card.md.jinja")
    card = kind.from_template(data, template_path=path, **context)
    return str(card).rstrip("\n") + "\n"


def _prompt(folder: Path, facts: CardFacts) -> str:
    """What the chat template makes of a question about an image; the image is still one placeholder."""
    tokenizer = BeingVLTokenizer.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": facts.question}]
    messages = [{"role": "user", "content": content}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _parts_card(folder: Path, facts: CardFacts, kind: str) -> str:
    data = ModelCardData(
        **_metadata(facts, ["being_vl", "vq", "image-bpe"]), library_name="being_vl"
    )
    is_model = (folder / "config.json").exists()
    return _render(
        folder,
        facts,
        data,
        "parts",
        kind=kind,
        vq=AutoConfig.from_pretrained(folder) if is_model else None,
        weights=read_weights(folder) if is_model else None,
        bpe=ImageBPE.from_pretrained(folder) if (folder / "image_bpe.json").exists() else None,
        names=sorted(path.name for path in folder.iterdir() if path.suffix != ".md"),
    )


def _codes_card(folder: Path, facts: CardFacts) -> str:
    shards = CodeShards(folder)
    data = DatasetCardData(
        **{k: v for k, v in _metadata(facts, ["being_vl", "vq", "codes"]).items() if v},
        pretty_name=facts.title,
        size_categories=[_size_category(len(shards))],
        configs=[{"config_name": "default", "data_files": f"codes-*{shards.files[0].suffix}"}],
    )
    manifest = read_json(folder / "manifest.json", optional=True) or {}
    sizes = zip(shards.heights.tolist(), shards.widths.tolist(), strict=True)
    return _render(
        folder,
        facts,
        data,
        "codes",
        shards=shards,
        dtype=str(shards.dtype),
        num_images=len(shards),
        num_files=len(shards.files),
        skipped=manifest.get("skipped"),
        sizes=sorted(set(sizes)),
    )


def _size_category(count: int) -> str:
    """The Hub's name for a number of rows."""
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    power = min(len(str(count)) - 4, len(names) - 2)
    return f"{names[power]}<n<{names[power + 1]}" if power >= 0 else "n<1K"


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
