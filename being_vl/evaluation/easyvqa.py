"""easy-VQA: 64×64 drawings of one coloured shape each, with questions of thirteen possible answers.

Source: the PyPI package `easy-vqa` (Victor Zhou, 2019), with its own train/test split. It has no
validation split; one is carved here out of the training images, so that nothing is chosen on test.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .scoring.exact import normalize_answer

SHAPES = ("circle", "rectangle", "triangle")
QUESTION_TYPES = ("yes/no", "shape", "color")
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Question:
    """A question about one image; `image_id` is the number in the package's file name."""

    image_id: int
    text: str
    answer: str

    @property
    def type(self) -> str:
        """One of `QUESTION_TYPES`, read off the answer."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "shape" if self.answer in SHAPES else "color"


@dataclass(frozen=True)
class Split:
    """Images and their questions.

    Args:
        image_paths: image id → path of a PNG of 64×64 pixels.
        questions: all questions, in the package's order.
    """

    image_paths: dict[int, str]
    questions: list[Question]

    def by_image(self) -> dict[int, list[Question]]:
        """The questions of each image, images in ascending order of id."""
        groups: dict[int, list[Question]] = defaultdict(list)
        for question in self.questions:
            groups[question.image_id].append(question)
        return {i: groups[i] for i in sorted(groups)}


def load_easyvqa(split: str, *, seed: int = 0) -> Split:
    """One of the splits `"train"` and `"validation"` (of the official training images) and `"test"`."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    easy_vqa = _package()
    if split == "test":
        return _split(easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions(), None)
    paths = easy_vqa.get_train_image_paths()
    order = np.random.default_rng(seed).permutation(sorted(paths))
    held_out = {int(i) for i in order[: round(VALIDATION_SHARE * len(order))]}
    chosen = held_out if split == "validation" else set(paths) - held_out
    return _split(paths, easy_vqa.get_train_questions(), chosen)


def _package() -> Any:
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "the data set easy-VQA comes in the package easy-vqa, which is not installed: pip install easy-vqa"
        ) from error
    return easy_vqa


def _split(
    paths: dict[int, str], questions: tuple[list[str], list[str], list[int]], ids: set[int] | None
) -> Split:
    keep = sorted(paths if ids is None else ids)
    chosen = set(keep)
    return Split(
        {i: paths[i] for i in keep},
        [Question(i, q, a) for q, a, i in zip(*questions, strict=True) if i in chosen],
    )


def accuracy(questions: Iterable[Question], answers: Iterable[str]) -> dict[str, float]:
    """Share of exact matches, in [0, 1], under `"overall"` and under each of `QUESTION_TYPES`.

    Raises:
        ValueError: the two are not of one length, or empty.
    """
    right: dict[str, list[bool]] = {"overall": [], **{kind: [] for kind in QUESTION_TYPES}}
    for question, answer in zip(questions, answers, strict=True):
        hit = normalize_answer(answer) == question.answer
        right["overall"].append(hit)
        right[question.type].append(hit)
    if not right["overall"]:
        raise ValueError("accuracy needs at least one question, got none")
    return {name: float(np.mean(hits)) for name, hits in right.items() if hits}
