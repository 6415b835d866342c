"""easy-VQA → files of the pipeline: LLaVA JSON and a folder of images.

Source: LLaVA's form of data. One row a question, so that rows about one image share their beginning;
`being-vl encode --images FOLDER/images` gives the images the ids that the rows name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ..code_shards import write_atomic
from .easyvqa import Question, load_easyvqa

SPLITS = ("train", "validation", "test")


def write_easyvqa(
    folder: str | os.PathLike,
    *,
    splits: Sequence[str] = SPLITS,
    images: int | None = None,
    seed: int = 0,
) -> dict[str, Path]:
    """Write `FOLDER/images/SPLIT/N.png` and `FOLDER/SPLIT.json` for each split.

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
        written[split] = folder / f"{split}.json"
        write_atomic(written[split], json.dumps(rows, indent=0).encode())
    return written


def llava_row(question: Question, image: str, number: int) -> dict[str, object]:
    """A question as a row of LLaVA's form."""
    return {
        "id": f"{image}#{number}",
        "image": image,
        "conversations": [
            {"from": "human", "value": f"<image>\n{question.text}"},
            {"from": "gpt", "value": question.answer},
        ],
    }
