"""easy-VQA → files of the pipeline: LLaVA JSON and a folder of images.

Source: LLaVA's form of data, with captions to pretrain on besides questions. One sample a question, so that
samples about one image share their beginning; `being-vl encode --images FOLDER/images` gives the images the
ids that the samples name. easy-VQA has no captions: they are composed from its answers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..files import write_atomic
from .easyvqa import SHAPES, Question, load_easyvqa

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
CAPTION_PROMPT = "what is in the image?"
SPLITS = ("train", "validation", "test")


def write_easyvqa(
    folder: str | os.PathLike,
    *,
    splits: Sequence[str] = SPLITS,
    images: int | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `FOLDER/images/SPLIT/N.png`, `FOLDER/SPLIT.json` and `FOLDER/SPLIT-captions.json`.

    A question's row has a field `type`: yes/no, shape or color.

    Args:
        folder: made if need be; files of the same names are replaced.
        splits: of `"train"`, `"validation"` (a tenth of the official training images), `"test"`.
        images: only the first so many images of each split; all by default.
        seed: decides which training images are for validation.

    Returns:
        split → its JSON file.

    Raises:
        ImportError: the package easy-vqa is not installed.
        ValueError: there is no such split.
    """
    folder = Path(folder)
    written = {}
    for split in splits:
        data = load_easyvqa(split, seed=seed)
        groups = dict(list(data.by_image().items())[:images])
        target = folder / "images" / split
        target.mkdir(parents=True, exist_ok=True)
        for image_id in groups:
            shutil.copyfile(data.image_paths[image_id], target / f"{image_id}.png")
        rows = [
            llava_row(question, f"{split}/{image_id}.png", number)
            for image_id, questions in groups.items()
            for number, question in enumerate(questions)
        ]
        captions = [
            _row(f"{split}/{image_id}.png", CAPTION_PROMPT, said, "#caption")
            for image_id, questions in groups.items()
            if (said := caption(questions)) is not None
        ]
        written[split] = folder / f"{split}.json"
        write_atomic(folder / f"{split}-captions.json", json.dumps(captions, indent=0).encode())
        write_atomic(written[split], json.dumps(rows, indent=0).encode())
    return written


def llava_row(question: Question, image: str, number: int) -> dict[str, object]:
    """A question as a row of LLaVA's form."""
    return {**_row(image, question.text, question.answer, f"#{number}"), "type": question.type}


def caption(questions: Sequence[Question]) -> str | None:
    """What the questions about one image say of it, "a red circle"; None where they do not say both."""
    said = [q.answer for q in questions]
    said += [word for q in questions if q.answer == _affirmed(q.text) for word in _words(q.text)]
    said += [word for q in questions if q.answer not in ("yes", "no") for word in _words(q.text)]
    shape = next((word for word in said if word in SHAPES), None)
    color = next((word for word in said if word in COLORS), None)
    return None if shape is None or color is None else f"a {color} {shape}"


def _affirmed(text: str) -> str:
    """The answer that says that what a yes/no question names is there."""
    words = _words(text)
    return "no" if "not" in words or "no" in words else "yes"


def _words(text: str) -> list[str]:
    return text.rstrip("?").split()


def _row(image: str, question: str, answer: str, suffix: str) -> dict[str, object]:
    return {
        "id": f"{image}{suffix}",
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question}"},
            {"from": "gpt", "value": answer},
        ],
    }
