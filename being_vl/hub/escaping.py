"""What a file says → Markdown that says it, and nothing more: no structure, no HTML."""

from __future__ import annotations

import html
import re
from typing import Any


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
