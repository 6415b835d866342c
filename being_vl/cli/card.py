"""`being-vl card`: a folder → its model or data set card, from what its files say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from .options import add, answer, describe_fields
from .parsing import Parser

_COMMON = (
    "title", "summary", "license", "base_model", "datasets", "language", "training", "hardware", "limits",
    "citation",
)  # fmt: skip


def make_parser() -> Parser:
    from ..hub.facts import CardFacts

    parser = Parser(
        "Write README.md and .eval_results/ of a checkpoint, a quantizer, a vocabulary or code shards. Numbers "
        "come from files of the folder, the rest from these options, which are stored in card.yaml.",
        json="print the names of the files as JSON",
    )
    parser.add_argument("folder", type=str, help="what to describe")
    add(parser, "image", help="draw it with its reconstruction and tokens")
    common = parser.add_argument_group("facts", "texts are Markdown")
    rare = parser.rare("more facts")
    for fact in describe_fields(CardFacts):
        group = common if fact.name in _COMMON else rare
        fact.add(group, fact.name.replace("_", "-"))
    return parser


def main(args: Namespace) -> int:
    import being_vl  # noqa: F401  (the Auto classes know our models)

    from ..hub.card import write_card
    from ..hub.example import draw_example
    from ..hub.facts import CardFacts, read_facts

    folder = Path(args.folder)
    defaults = CardFacts()
    given: dict[str, Any] = {
        field.name: getattr(args, field.name)
        for field in fields(CardFacts)
        if getattr(args, field.name) != getattr(defaults, field.name)
    }
    facts = read_facts(folder).updated(given)
    names = draw_example(folder, args.image) if args.image is not None else []
    names += write_card(folder, facts)
    written = ", ".join(str(folder / name) for name in names)
    answer(args, {"folder": str(folder), "files": names}, f"wrote {written}")
    return 0
