"""The main job: end to end at a small size, stopped and gone on with, and on bad input."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from stand_in.validation import card_errors
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from being_vl.cli import run_command
from being_vl.data import load_tokenized
from being_vl.evaluation import easyvqa, easyvqa_files
from being_vl.evaluation.answering import generate_answers, render_prompts
from being_vl.evaluation.easyvqa import Question, Split, load_easyvqa
from being_vl.studies.quickstart import pipeline
from being_vl.studies.quickstart.settings import Settings
from being_vl.studies.quickstart.text_model import CHAT_TEMPLATE, train_text_tokenizer
from being_vl.training.trainer import BeingVLTrainer

SMALL = {"train": 120, "validation": 20, "test": 30}


def small_easyvqa(name: str, *, seed: int = 0) -> Split:
    split = load_easyvqa(name, seed=seed)
    ids = sorted(split.image_paths)[: SMALL[name]]
    return Split(
        {i: split.image_paths[i] for i in ids},
        [q for q in split.questions if q.image_id in set(ids)],
    )


@pytest.fixture
def small_data(monkeypatch):
    for module in (pipeline, easyvqa, easyvqa_files):
        monkeypatch.setattr(module, "load_easyvqa", small_easyvqa)


def being_vl(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "being_vl", *args],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole run by the command, with all test questions."""
    output = tmp_path_factory.mktemp("quickstart") / "out"
    run = being_vl("quickstart", "--output", str(output), "--minutes", "0.15", "--seed", "3")
    assert run.returncode == 0, run.stderr[-3000:]
    return output, run


def test_prints_the_table(finished):
    output, run = finished
    for name in ("question only", "LLM+VQ", "LLM+VQ+BPE", "yes/no", "shape", "color", "seconds"):
        assert name in run.stdout
    for folder in ("bpe/sft", "checkpoint", "vq/sft"):
        result = json.loads((output / folder / "evaluation/easyvqa.json").read_text())
        assert 0 <= result["metrics"]["accuracy"] <= 100 and result["num_examples"] == 9673
        answers = (output / folder / "evaluation/easyvqa.answers.jsonl").read_text().splitlines()
        assert len(answers) == 9673


def test_shows_the_command_of_each_step(finished):
    """The lines that it prints are commands: each parses, and leaves what the quickstart left."""
    output, run = finished
    lines = [line[2:] for line in run.stdout.splitlines() if line.startswith("$ being-vl ")]
    assert {shlex.split(line)[1] for line in lines} == {
        "encode", "train-bpe", "init", "tokenize", "train", "eval", "card",
    }  # fmt: skip
    line = next(line for line in lines if " init " in line)
    copied = shlex.split(line.replace("bpe/start", "bpe/again"))
    assert run_command(copied[1], copied[2:]) == 0
    weights = [output / "bpe" / name / "model.safetensors" for name in ("start", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_question_alone_is_answered_by_counting():
    """The commonest training answer of each question; what a model that sees no image can reach at best."""
    row = pipeline.commonest_answers(seed=0)
    train = load_easyvqa("train", seed=0).questions
    test = load_easyvqa("test").questions
    right = 0
    for text in {question.text for question in test}:
        said = [question.answer for question in train if question.text == text]
        commonest = max(dict.fromkeys(said), key=said.count)
        right += sum(q.answer == commonest for q in test if q.text == text)
    assert row.metrics["accuracy"] == pytest.approx(100 * right / len(test))
    assert row.tokens_per_image == row.steps == 0


def test_compression_is_that_of_the_saved_vocabulary(finished):
    output, _run = finished
    images = json.loads((output / "checkpoint/evaluation/easyvqa.json").read_text())["images"]
    processor = AutoProcessor.from_pretrained(output / "checkpoint")
    paths = load_easyvqa("test").image_paths.values()
    grids = processor.quantize([Image.open(path).convert("RGB") for path in paths])
    lengths = [len(ids) for ids in processor.tokenizer.encode_codes(grids)]
    assert images == {"codes_per_image": 256, "tokens_per_image": pytest.approx(np.mean(lengths))}
    assert images["tokens_per_image"] < 40


def test_leaves_a_card_and_a_picture(finished):
    output, _run = finished
    card = (output / "checkpoint/README.md").read_text()
    result = json.loads((output / "checkpoint/evaluation/easyvqa.json").read_text())
    assert f"{result['metrics']['accuracy']:.1f}" in card
    assert "9,673" in card and "question only" in card
    picture = Image.open(output / "checkpoint/tokens.png")
    assert picture.width > 2 * picture.height > 200


def test_the_card_passes_as_far_as_the_client_and_the_stand_in_check(finished):
    output, _run = finished
    card = ModelCard.load(output / "checkpoint/README.md")
    assert card_errors(str(card), "model") == []
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.metrics == ["accuracy"]
    result = json.loads((output / "checkpoint/evaluation/easyvqa.json").read_text())
    shown = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert shown["accuracy"] == result["metrics"]["accuracy"] and "accuracy, yes no" in shown
    for heading in ("Tokens an image", "Evaluation", "Training", "Limits", "Citation"):
        assert f"## {heading}" in card.content, heading


def test_checkpoint_loads_in_a_new_process_and_answers(finished):
    """The snippet of the card, as it stands there."""
    output, _run = finished
    checkpoint = output / "checkpoint"
    snippet = (checkpoint / "README.md").read_text().split("```python\n")[1].split("```")[0]
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=checkpoint, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip()


def test_again_does_nothing_twice(finished):
    output, first = finished
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = being_vl("quickstart", "--output", str(output), "--minutes", "0.15", "--seed", "3")
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == stamps
    table = [line for line in first.stdout.splitlines() if "LLM+VQ" in line]
    assert table and all(line in again.stdout for line in table)


def test_other_settings_are_refused(finished):
    output, _run = finished
    run = being_vl("quickstart", "--output", str(output), "--minutes", "0.15", "--seed", "4")
    assert run.returncode == 2
    assert "seed is 3" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def answers_of(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("easyvqa.answers.jsonl")
    }


def test_a_seed_repeats_and_a_stopped_run_goes_on(small_data, tmp_path, monkeypatch):
    settings = [
        Settings(output=str(tmp_path / name), minutes=0.06, rows=["bpe"]) for name in ("one", "two")
    ]
    pipeline.run(settings[0], run_command)
    expected = answers_of(tmp_path / "one")
    assert len(expected) == 2
    # the rows that are not asked for are left out
    assert not (tmp_path / "one/vq").exists() and (tmp_path / "one/checkpoint/README.md").exists()

    training_step, number = BeingVLTrainer.training_step, 0
    for stop_at in (2, 9, 31):  # in the first stage, and early and late in others

        def interrupt(self, *args, stop_at=stop_at, **kwargs):
            nonlocal number
            number += 1
            if number == stop_at:
                raise KeyboardInterrupt
            return training_step(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(BeingVLTrainer, "training_step", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(settings[1], run_command)
    pipeline.run(settings[1], run_command)
    assert answers_of(tmp_path / "two") == expected


def test_rows_are_the_chat_template_id_by_id(finished):
    """What was trained is what a person asks: the processor's own ids of the image and the question."""
    output, _run = finished
    processor = AutoProcessor.from_pretrained(output / "checkpoint")
    rows = load_tokenized(output / "bpe/tokenized", processor.tokenizer).select(range(20))
    said = {r["id"]: r for r in json.loads((output / "easy-vqa/train.json").read_text())}
    for row in rows:
        question, answer = (turn["value"] for turn in said[row["id"]]["conversations"])
        text = question.removeprefix("<image>\n")
        prompt = [{"type": "image"}, {"type": "text", "text": text}]
        image = Image.open(output / "easy-vqa/images" / said[row["id"]]["image"])
        asked = processor.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = processor(text=asked, images=[image])["input_ids"][0]
        learned = processor.tokenizer(answer)["input_ids"] + [processor.tokenizer.eos_token_id]
        assert row["input_ids"] == ids + learned
        assert row["assistant_masks"] == [0] * len(ids) + [1] * len(learned)


def test_shared_cache_answers_as_generate_does(finished):
    output, _run = finished
    processor = AutoProcessor.from_pretrained(output / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(output / "checkpoint").eval()
    split = load_easyvqa("test")
    questions = split.questions[:60]
    paths = {q.image_id: split.image_paths[q.image_id] for q in questions}
    grids = processor.quantize([Image.open(path) for path in paths.values()])
    codes = dict(zip(paths, grids, strict=True))
    prompts = render_prompts(processor, [q.text for q in questions], image=True)
    shared = generate_answers(
        model,
        processor,
        prompts,
        [q.image_id for q in questions],
        codes,
        batch_size=25,
        max_new_tokens=6,
    )
    plain = []
    for prompt, question in zip(prompts, questions, strict=True):
        inputs = processor(text=prompt, image_codes=[codes[question.image_id]], return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        plain += processor.batch_decode(
            ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
    assert shared == plain


def test_text_tokenizer_has_a_template():
    tokenizer = train_text_tokenizer(["what is this?", "yes"])
    assert (
        isinstance(tokenizer, PreTrainedTokenizerFast) and tokenizer.chat_template == CHAT_TEMPLATE
    )
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "yes"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<s><image>what?<sep>yes</s>"


def test_a_system_turn_is_not_the_assistants():
    tokenizer = train_text_tokenizer(["be brief", "what is this?", "yes"])
    turns = (("system", "be brief"), ("user", "what?"), ("assistant", "yes"))
    encoded = tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    learned = np.array(encoded["input_ids"])[np.array(encoded["assistant_masks"]) == 1]
    assert tokenizer.decode(learned).strip() == "yes</s>"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"quantizer": "vqvae"}, "quantizer must be one of patch, vqgan, got 'vqvae'"),
        ({"seed": -1}, "seed must not be negative"),
        ({"rows": ["bpe", "llm"]}, "rows must be of bpe, vq, question-only, got 'llm'"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    run = being_vl("quickstart", "--output", str(tmp_path / "file"))
    assert run.returncode == 2
    assert run.stderr.strip().endswith("is a file, and a folder is needed")
    assert (tmp_path / "file").read_text() == "x"


def test_output_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not made by the quickstart"):
        pipeline.run(Settings(output=str(tmp_path)), run_command)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_output_that_cannot_be_written():
    run = being_vl("quickstart", "--output", "/proc/being-vl")
    assert run.returncode == 2
    assert "/proc/being-vl" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_missing_data_set(tmp_path):
    code = "import sys; sys.modules['easy_vqa'] = None\nfrom being_vl.cli import main; sys.exit(main())"
    run = subprocess.run(
        [sys.executable, "-c", code, "quickstart", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "pip install easy-vqa" in run.stderr and len(run.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_unreadable_image(small_data, tmp_path, monkeypatch):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nnothing more")

    def with_broken(name: str, *, seed: int = 0) -> Split:
        split = small_easyvqa(name, seed=seed)
        asked = Question(10**6, "what shape is in the image?", "circle")
        return Split({**split.image_paths, 10**6: str(broken)}, [*split.questions, asked])

    monkeypatch.setattr(easyvqa_files, "load_easyvqa", with_broken)
    with pytest.raises(ValueError, match=r"train/1000000\.png"):
        pipeline.run(Settings(output=str(tmp_path / "out"), minutes=0.05), run_command)
    assert not (tmp_path / "out" / "vq_model").exists()


def test_vqgan_quantizer(small_data, tmp_path):
    pytest.importorskip("torchmetrics")  # an extra: SSIM
    settings = Settings(output=str(tmp_path / "out"), minutes=0.02, quantizer="vqgan")
    pipeline.run(settings, run_command)
    result = json.loads((tmp_path / "out/vq/sft/evaluation/easyvqa.json").read_text())
    assert result["images"]["tokens_per_image"] == 256
    processor = AutoProcessor.from_pretrained(tmp_path / "out" / "checkpoint")
    assert processor.vq_model.config.model_type == "being_vl_vq"
