"""easy-VQA: 64×64 drawings of one coloured shape each, with questions of thirteen possible answers.

Source: the PyPI package `easy-vqa` (Victor Zhou, 2019), with its own train/test split. It has no
validation split; one is carved here out of the training images, so that nothing is chosen on test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "rectangle", "triangle")
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Question:
    """A question about one image; `image_id` is the number in the package's file name."""

    image_id: int
    text: str
    answer: str

    @property
    def type(self) -> str:
        """`"yes/no"`, `"shape"` or `"color"`, read off the answer."""
        if self.answer in ("yes", "no"):
            return "yes/no"
        return "shape" if self.answer in SHAPES else "color"

    @property
    def group(self) -> str:
        """The type as metrics name it."""
        return self.type.replace("/", "_")


@dataclass(frozen=True)
class Split:
    """Images and their questions, in the package's order."""

    image_paths: dict[int, str]  # image id → path of a PNG of 64×64 pixels
    questions: list[Question]


def load_easyvqa(split: str, *, seed: int = 0) -> Split:
    """One of the splits `"train"` and `"validation"` (of the official training images) and `"test"`."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be 'train', 'validation' or 'test', got {split!r}")
    try:
        import easy_vqa
    except ImportError as error:
        raise ImportError(
            "the data set easy-VQA comes in the package easy-vqa, which is not installed: pip install easy-vqa"
        ) from error
    if split == "test":
        paths, questions = easy_vqa.get_test_image_paths(), easy_vqa.get_test_questions()
        chosen = set(paths)
    else:
        paths, questions = easy_vqa.get_train_image_paths(), easy_vqa.get_train_questions()
        order = np.random.default_rng(seed).permutation(sorted(paths))
        held_out = {int(i) for i in order[: round(VALIDATION_SHARE * len(order))]}
        chosen = held_out if split == "validation" else set(paths) - held_out
    return Split(
        {i: paths[i] for i in sorted(chosen)},
        [Question(i, q, a) for q, a, i in zip(*questions, strict=True) if i in chosen],
    )
