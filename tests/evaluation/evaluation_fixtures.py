"""Benchmarks of a few drawings, in the files that their authors publish."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

COLORS = ("red", "blue", "teal", "gray")


def draw(path: Path, color: str) -> Path:
    """A small picture of one colour with a white corner."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (24, 20), color)
    image.paste("white", (0, 0, 8, 8))
    image.save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_pope(folder: Path) -> Path:
    for category in ("random", "popular"):
        lines = []
        for number, color in enumerate(COLORS):
            draw(folder / f"{color}.png", color)
            for label in ("yes", "no"):
                lines.append(
                    {
                        "question_id": len(lines) + 1,
                        "image": f"{color}.png",
                        "text": f"Is there a {COLORS[number - (label == 'no')]} thing in the image?",
                        "label": label,
                    }
                )
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"coco_pope_{category}.json").write_text(text)
    return folder


def write_vqav2(folder: Path) -> Path:
    questions, annotations = [], []
    for number, color in enumerate(COLORS):
        draw(folder / "val2014" / f"COCO_val2014_{number:012d}.jpg", color)
        for kind, text, answers in (
            ("other", "What color is it?", [color] * 7 + ["white"] * 3),
            ("yes/no", f"Is it {color}?", ["yes"] * 10),
        ):
            question_id = 10 * number + len(kind)
            questions.append({"image_id": number, "question": text, "question_id": question_id})
            annotations.append(
                {
                    "question_id": question_id,
                    "image_id": number,
                    "question_type": "what" if kind == "other" else "is",
                    "answer_type": kind,
                    "multiple_choice_answer": answers[0],
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": n}
                        for n, a in enumerate(answers, 1)
                    ],
                }
            )
    subtype = {"data_subtype": "val2014"}
    write_json(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**subtype, "questions": questions}
    )
    write_json(
        folder / "v2_mscoco_val2014_annotations.json", {**subtype, "annotations": annotations}
    )
    return folder


def write_mme(folder: Path) -> Path:
    for category, split in (("existence", False), ("OCR", True)):
        for number, color in enumerate(COLORS[:2]):
            images = folder / category / "images" if split else folder / category
            texts = folder / category / "questions_answers_YN" if split else folder / category
            draw(images / f"{number:03d}.png", color)
            texts.mkdir(parents=True, exist_ok=True)
            (texts / f"{number:03d}.txt").write_text(
                f"Is it {color}? Please answer yes or no.\tYes\n"
                "Is it a dog? Please answer yes or no.\tNo\n"
            )
    return folder


def write_llava(folder: Path) -> Path:
    entries = [
        {
            "id": str(number),
            "image": draw(folder / f"{color}.png", color).name,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat color?"},
                {"from": "gpt", "value": color},
                {"from": "human", "value": "is it round?"},
                {"from": "gpt", "value": "no"},
            ],
        }
        for number, color in enumerate(COLORS)
    ]
    return write_json(folder / "llava.json", entries)


def write_captions(folder: Path) -> Path:
    images = [
        {"id": n, "file_name": draw(folder / f"{c}.png", c).name} for n, c in enumerate(COLORS)
    ]
    annotations = [
        {"image_id": n, "caption": text}
        for n, color in enumerate(COLORS)
        for text in (f"A {color} square.", f"a {color} picture with a white corner")
    ]
    return write_json(folder / "captions.json", {"images": images, "annotations": annotations})


def write_mllm_bench(folder: Path) -> Path:
    entries = [
        {
            "unique_idx": number,
            "image": f"./data/images/{draw(folder / 'data' / 'images' / f'{number}.png', color).name}",
            "question": "What is it?",
            "meta": {"level": "Perception/Remembering"},
        }
        for number, color in enumerate(COLORS)
    ]
    return write_json(folder / "data" / "anchor.json", entries)


WRITERS = {
    "pope": write_pope,
    "vqav2": write_vqav2,
    "mme": write_mme,
    "llava": write_llava,
    "caption": write_captions,
    "mllm_bench": write_mllm_bench,
}
