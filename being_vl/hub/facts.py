"""`card.yaml` → what is known of a checkpoint beyond its files.

Source: the metadata of huggingface_hub's `ModelCardData`, and the sections of its model card template.
It differs in that what is not given is left out of the card, never filled in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from ..files import is_of, read_yaml

FACTS_FILE = "card.yaml"


@dataclass(frozen=True)
class CardFacts:
    """All optional; texts are Markdown.

    Args:
        title: heading of the card; the folder's name by default.
        summary: what the model is, in a few sentences.
        license: an identifier of the Hub, such as `apache-2.0`.
        license_name, license_link: where `license` is `other`.
        base_model: id on the Hub of the text model that was extended.
        datasets: ids on the Hub of the training data.
        language: codes such as `en`.
        tags: beside `being_vl`.
        vq_source: where the VQ model's weights come from, with their licence.
        training: the recipe.
        hardware: what it was trained on, and for how long.
        limits: what the model cannot do, and must not be used for.
        citation: BibTeX of this checkpoint, beside the papers'.
        question: asked of the example image in the card's snippet.
        max_new_tokens: of the snippet.
        tokens_per_image: mean tokens of the image BPE; from the results by default.
        tokens_measured_on: the images of that mean, in words.
        dataset_ids: task → id on the Hub of its data, for results that do not say it.
        sections: heading → text of further sections, after the evaluation.
    """

    title: str | None = None
    summary: str | None = None
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    base_model: str | None = None
    datasets: list[str] = field(default_factory=list)
    language: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    vq_source: str | None = None
    training: str | None = None
    hardware: str | None = None
    limits: str | None = None
    citation: str | None = None
    question: str = "What is in the image?"
    max_new_tokens: int = 64
    tokens_per_image: float | None = None
    tokens_measured_on: str | None = None
    dataset_ids: dict[str, str] = field(default_factory=dict)
    sections: dict[str, str] = field(default_factory=dict)

    def updated(self, values: Mapping[str, Any]) -> CardFacts:
        """These facts with others in their place, where those are given (not None and not empty)."""
        given = {name: value for name, value in values.items() if value not in (None, [], {})}
        return dataclasses.replace(self, **given)

    def to_yaml(self) -> str:
        """What differs from the defaults, as `read_facts` reads it."""
        usual = dataclasses.asdict(CardFacts())
        values = {k: v for k, v in dataclasses.asdict(self).items() if v not in (usual[k], None)}
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def read_facts(folder: Path) -> CardFacts:
    """The facts in `card.yaml` of a folder; none of them where there is no such file."""
    path = folder / FACTS_FILE
    if not path.exists():
        return CardFacts()
    values = read_mapping(path)
    hints = get_type_hints(CardFacts)
    for name, value in values.items():
        if name not in hints:
            raise ValueError(f"{path}: unknown field {name!r}; there are {', '.join(hints)}")
        if value is None or not is_of(value, hints[name]):
            kind = CardFacts.__annotations__[name]
            raise ValueError(f"{path}: {name} must be {kind}, got {str(value)[:80]!r}")
    return CardFacts(**values)


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path}: must be a mapping, got {str(values)[:80]!r}")
    return values
