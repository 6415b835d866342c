"""The example checkpoint that is part of the package."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from safetensors import safe_open

import being_vl
from being_vl.cli import run_command
from being_vl.demo.conversation import Chat, load_speaker

FOLDER = being_vl.example_checkpoint()


def test_it_is_small_and_float16() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 3_000_000
    with safe_open(FOLDER / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}


def test_it_answers_held_out_questions(tmp_path: Path) -> None:
    """The first 300 of the 9,673 questions that the accuracy of its card is of."""
    run_command(
        "eval",
        [str(FOLDER), "--tasks=easyvqa", "--limit=300", "--device=cpu", f"--output={tmp_path}"],
    )
    (result,) = [json.loads(path.read_text()) for path in tmp_path.glob("evaluation/*.json")]
    assert result["num_examples"] == 300 and result["metrics"]["accuracy"] > 95


def test_it_answers_about_a_drawing() -> None:
    speaker = load_speaker(str(FOLDER), device="cpu", max_new_tokens=8)
    drawing = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(drawing).ellipse((16, 20, 44, 48), fill="red")
    for question, answer in {"what shape is present?": "circle", "what color is the shape?": "red"}.items():  # fmt: skip
        chat = Chat(waiting=[speaker.look(drawing)])
        assert "".join(speaker.ask(chat, question)).strip() == answer
