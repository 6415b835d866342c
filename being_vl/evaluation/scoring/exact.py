"""answers → share of exact matches.

Source: the usual comparison of short answers, after lower-casing and without punctuation.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def normalize_answer(text: str) -> str:
    """Lower case, without punctuation and surrounding blanks: how answers are compared."""
    return re.sub(r"[^\w\s]", "", text.lower()).strip()


def exact_match_scores(
    answers: Iterable[str], truths: Iterable[str], groups: Iterable[str] | None = None
) -> dict[str, float]:
    """`accuracy` in percent, and `accuracy/GROUP` for each group of questions."""
    hits = [
        normalize_answer(answer) == normalize_answer(truth)
        for answer, truth in zip(answers, truths, strict=True)
    ]
    return {f"accuracy{name}": 100 * share for name, share in means_by_group(hits, groups).items()}


def means_by_group(
    values: Sequence[float], groups: Iterable[str] | None = None
) -> dict[str, float]:
    """The mean of values, and of those of each group; keys as of [`by_group`]."""
    return {name: sum(own) / len(own) for name, own in by_group(values, groups).items()}


def by_group(values: Sequence[_T], groups: Iterable[str] | None = None) -> dict[str, Sequence[_T]]:
    """All values under `""`, and those of each group under `/GROUP`, groups in order."""
    if not values:
        raise ValueError("scores need at least one question, got none")
    members: dict[str, list[_T]] = defaultdict(list)
    for value, group in zip(values, groups or (), strict=groups is not None):
        members[f"/{group}"].append(value)
    return {"": values, **{name: members[name] for name in sorted(members)}}
