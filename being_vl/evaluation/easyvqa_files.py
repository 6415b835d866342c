"""easy-VQA → files of the pipeline: LLaVA JSON and a folder of images.

Source: LLaVA's form of data, with captions to pretrain on besides questions. One sample a question, so that
samples about one image share their beginning; `being-vl encode --images FOLDER/images` gives the images the
ids that the samples name. easy-VQA has no captions: they are composed from its answers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

    A question's row has a field `type`: yes/no, shape or color. Files of the same names are replaced.

    Args:
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
        groups: dict[int, list[Question]] = defaultdict(list)
        for question in data.questions:
            groups[question.image_id].append(question)
        target = folder / "images" / split
        target.mkdir(parents=True, exist_ok=True)
        rows, captions = [], []
        for image_id in sorted(groups)[:images]:
            shutil.copyfile(data.image_paths[image_id], target / f"{image_id}.png")
            name, questions = f"{split}/{image_id}.png", groups[image_id]
            for n, q in enumerate(questions):
                rows.append(llava_row(name, f"#{n}", q.text, q.answer, type=q.type))
            if (said := caption(questions)) is not None:
                captions.append(llava_row(name, "#caption", CAPTION_PROMPT, said))
        written[split] = folder / f"{split}.json"
        write_atomic(folder / f"{split}-captions.json", json.dumps(captions, indent=0).encode())
        write_atomic(written[split], json.dumps(rows, indent=0).encode())
    return written


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
    return "no" if {"not", "no"} & set(_words(text)) else "yes"


def _words(text: str) -> list[str]:
    return text.rstrip("?").split()


def llava_row(image: str, suffix: str, question: str, answer: str, **more: Any) -> dict[str, Any]:
    """A row of LLaVA's form about an image, whose id is the image's name and a suffix."""
    turns = [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]
    return {"id": f"{image}{suffix}", "image": image, "conversations": turns, **more}
