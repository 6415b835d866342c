"""answers to yes/no questions → the scores of POPE and MME.

Source: the scripts `evaluate.py` of POPE (Li et al. 2023) and `calculation.py` of MME (Fu et al. 2023). They
differ in what they take for yes and no, and so do these functions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence

from .exact import by_group

MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
MME_COGNITION = (
    "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
)  # fmt: skip


def pope_answer(text: str) -> str:
    """`"no"` if the first sentence has one of the words No, no and not, else `"yes"`: POPE's own rule."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"}.intersection(words) else "yes"


def exact_yes_no(text: str) -> str:
    """lmms-eval's rule for POPE: a text that is not "yes" or "no" itself is neither."""
    return text.lower().strip()


def pope_scores(
    answers: Sequence[str],
    truths: Sequence[str],
    categories: Sequence[str] | None = None,
    *,
    read: Callable[[str], str] = pope_answer,
) -> dict[str, float]:
    """`accuracy`, `precision`, `recall`, `f1` and `yes_ratio` in percent, over all and for each category.

    Args:
        answers: what the model said.
        truths: `"yes"` or `"no"`.
        categories: of each question (random, popular, adversarial); the names end in `/CATEGORY`.
        read: text → `"yes"`, `"no"`, or anything else for neither, which counts as wrong.

    Raises:
        ValueError: the arguments are not of one length, or empty, or a truth is neither yes nor no.
    """
    rows = [(read(answer), _truth(truth)) for answer, truth in zip(answers, truths, strict=True)]
    return {
        f"{key}{name}": value
        for name, members in by_group(rows, categories).items()
        for key, value in _confusion(members).items()
    }


def _confusion(rows: Sequence[tuple[str, str]]) -> dict[str, float]:
    true_positive = rows.count(("yes", "yes"))
    said_yes = sum(answer == "yes" for answer, _ in rows)
    # As lmms-eval has it; POPE's own rule knows no answer that is neither.
    positive = true_positive + rows.count(("no", "yes"))
    right = sum(answer == truth for answer, truth in rows)
    precision = true_positive / said_yes if said_yes else 0.0
    recall = true_positive / positive if positive else 0.0
    both = precision + recall
    return {
        "accuracy": 100 * right / len(rows),
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 100 * 2 * precision * recall / both if both else 0.0,
        "yes_ratio": 100 * said_yes / len(rows),
    }


def _truth(text: str) -> str:
    truth = text.strip().lower()
    if truth not in ("yes", "no"):
        raise ValueError(f"a label must be 'yes' or 'no', got {text!r}")
    return truth


def mme_answer(text: str) -> str:
    """`"yes"` or `"no"` if it stands in the first four characters, else `"other"`: MME's own rule."""
    start = text.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


def mme_scores(
    answers: Iterable[str],
    truths: Iterable[str],
    categories: Iterable[str],
    images: Iterable[Hashable],
) -> dict[str, float]:
    """MME's scores: `score/CATEGORY` out of 200, their sums `perception` (2,000) and `cognition` (800).

    A category's score is `accuracy/CATEGORY` plus `accuracy_plus/CATEGORY`, the share of images whose two
    questions are both right, each in percent.

    Args:
        answers: what the model said.
        truths: `"yes"` or `"no"`.
        categories: MME's fourteen names; others are scored, and enter no sum.
        images: what tells the images of a category apart.

    Raises:
        ValueError: the arguments are not of one length, or empty, a truth is neither yes nor no, or an
            image has not two questions.
    """
    groups: dict[str, dict[Hashable, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for answer, truth, category, image in zip(answers, truths, categories, images, strict=True):
        groups[category][image].append(mme_answer(answer) == _truth(truth))
    if not groups:
        raise ValueError("scores need at least one question, got none")
    scores: dict[str, float] = {}
    for category, by_image in sorted(groups.items()):
        for image, hits in by_image.items():
            if len(hits) != 2:
                raise ValueError(
                    f"{category}: image {image!r} has {len(hits)} questions, must be 2"
                )
        pairs = list(by_image.values())
        accuracy = 100 * sum(map(sum, pairs)) / (2 * len(pairs))
        plus = 100 * sum(map(all, pairs)) / len(pairs)
        scores[f"accuracy/{category}"] = accuracy
        scores[f"accuracy_plus/{category}"] = plus
        scores[f"score/{category}"] = accuracy + plus
    for name, parts in (("perception", MME_PERCEPTION), ("cognition", MME_COGNITION)):
        there = [scores[f"score/{part}"] for part in parts if f"score/{part}" in scores]
        if there:
            scores[name] = sum(there)
    return scores
