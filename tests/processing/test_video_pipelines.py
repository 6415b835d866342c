"""A checkpoint trained on videos answers about a file, before and after it is saved; a video is drawn and read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from checkpoint_fixtures import llama_3_tokenizer, patch_vq, text_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, pipeline
from video_fixtures import moving_square, video_bpe, write_webp

from being_vl.bpe.drawing import contact_sheet, save_animation
from being_vl.cli import main
from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint
from being_vl.quantizers.video_loading import load_video

ANSWERS = {"right": "Yes", "left": "No"}


def clips(folder):
    """A square that moves to the right, and one that moves to the left, as files."""
    frames = moving_square(4)
    return {
        "right": str(write_webp(folder / "right.webp", frames)),
        "left": str(write_webp(folder / "left.webp", frames[::-1])),
    }


def chat(path: str) -> list[dict]:
    content = [{"type": "video", "video": path}, {"type": "text", "text": "Is it red?"}]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Files, and a folder with a checkpoint that was trained to tell them apart."""
    folder = tmp_path_factory.mktemp("trained")
    files = clips(folder)
    tokenizer = llama_3_tokenizer()
    quantizer = patch_vq()
    values = torch.from_numpy(moving_square(4)).permute(0, 3, 1, 2).float() * 0.0078 - 1
    with torch.no_grad():  # codes that tell the square from its ground
        side = quantizer.config.patch_size
        patches = values.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5)
        distinct = torch.unique(patches.reshape(-1, 3 * side * side), dim=0)
        quantizer.codebook[: len(distinct)] = distinct[: len(quantizer.codebook)]
    model, processor = init_checkpoint(
        text_model(tokenizer), tokenizer, quantizer, video_bpe(),
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    rows = []
    for name, path in files.items():
        turns = [*chat(path), {"role": "assistant", "content": ANSWERS[name]}]
        rows.append(
            processor.apply_chat_template(
                turns, tokenize=True, return_dict=True, return_tensors="pt",
                return_assistant_tokens_mask=True,
            )
        )  # fmt: skip
    assert rows[0]["input_ids"].tolist() != rows[1]["input_ids"].tolist()
    optimizer = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    for _ in range(150):
        loss = sum(
            model(
                input_ids=row["input_ids"],
                labels=row["input_ids"].masked_fill(row["assistant_masks"] == 0, -100),
            ).loss
            for row in rows
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    save_checkpoint(model.eval(), processor, folder / "checkpoint")
    return files, folder / "checkpoint"


def test_answers_by_template_and_generate_and_comes_back(trained, tmp_path) -> None:
    files, folder = trained
    for round_trip in range(2):
        model = AutoModelForImageTextToText.from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
        for name, path in files.items():
            inputs = processor.apply_chat_template(
                chat(path), add_generation_prompt=True, tokenize=True, return_dict=True,
                return_tensors="pt",
            )  # fmt: skip
            out = model.generate(**inputs, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
            assert processor.decode(out, skip_special_tokens=True) == ANSWERS[name], round_trip
        assert model.image_bpe == processor.tokenizer.image_bpe
        folder = tmp_path / "again"
        if not round_trip:
            save_checkpoint(model, processor, folder)


def test_answers_through_a_pipeline(trained) -> None:
    """transformers has no video-text-to-text; any-to-any takes videos."""
    files, folder = trained
    pipe = pipeline("any-to-any", model=str(folder))
    for name, path in files.items():
        (answer,) = pipe(text=chat(path), max_new_tokens=6, return_full_text=False)
        assert answer["generated_text"] == ANSWERS[name]


def test_a_generated_video_is_drawn_and_read_again(trained, tmp_path) -> None:
    _, folder = trained
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    torch.manual_seed(0)
    ids = model.generate(**processor(text="A square", return_tensors="pt"),
                         generation_mode="video", num_frames=3, do_sample=True, temperature=4.0)  # fmt: skip
    (frames,) = processor.post_process_multimodal_output(ids, generation_mode="video", num_frames=3)
    save_animation(frames, tmp_path / "made.webp", seconds=0.5)
    again, metadata = load_video(tmp_path / "made.webp")
    np.testing.assert_array_equal(again, np.stack([np.asarray(frame) for frame in frames]))
    assert metadata.timestamps == [0.0, 0.5, 1.0]
    sheet = contact_sheet(frames * 3)
    assert sheet.height > 2 * frames[0].height and sheet.width > 8 * frames[0].width


def test_inspect_draws_a_video(trained, tmp_path, capsys) -> None:
    files, folder = trained
    png = tmp_path / "sheet.png"
    words = ["inspect", str(folder), "--video", files["right"], "--num-frames", "3", "--output", str(png), "--json"]  # fmt: skip
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], len(found["tokens"])) == (3, 3)
    assert main(["inspect", str(folder), "--output", str(tmp_path / "tokens.png")]) == 0
    assert Image.open(found["webp"]).n_frames == 3 and Image.open(png).size[0] > 3 * 160
