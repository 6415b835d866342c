"""The main job: end to end at a small size, stopped and gone on with, and on bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_validation import card_errors
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerFast

from being_vl.evaluation.answering import generate_answers
from being_vl.evaluation.easyvqa import Split, load_easyvqa
from being_vl.studies.quickstart import pipeline
from being_vl.studies.quickstart.rows import conversation, training_rows
from being_vl.studies.quickstart.settings import Settings, Workspace
from being_vl.studies.quickstart.text_model import CHAT_TEMPLATE, train_text_tokenizer
from being_vl.training.logs import TrainingClock

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
    monkeypatch.setattr(pipeline, "load_easyvqa", small_easyvqa)


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
    run = being_vl("quickstart", "--output", str(output), "--minutes", "0.05", "--seed", "3")
    assert run.returncode == 0, run.stderr[-3000:]
    return output, run


def test_prints_the_table(finished):
    output, run = finished
    for name in ("question only", "LLM+VQ", "LLM+VQ+BPE", "yes/no", "shape", "color", "seconds"):
        assert name in run.stdout
    rows = [json.loads(path.read_text()) for path in output.glob("runs/*/test/result.json")]
    assert len(rows) == 4
    for row in rows:
        assert 0 <= row["accuracy"]["overall"] <= 1 and row["seconds"] > 0
    answers = (output / "runs/vq-bpe/test/answers.jsonl").read_text().splitlines()
    assert len(answers) == 9673


def test_compression_is_that_of_the_saved_vocabulary(finished):
    output, _run = finished
    row = json.loads((output / "runs/vq-bpe/test/result.json").read_text())
    tokenizer = AutoProcessor.from_pretrained(output / "checkpoint").tokenizer
    grids = list(np.load(output / "codes.npz")["test"])
    assert row["tokens_per_image"] == np.mean([len(ids) for ids in tokenizer.encode_codes(grids)])
    assert row["tokens_per_image"] < 40 < 256


def test_leaves_a_card_and_a_picture(finished):
    output, _run = finished
    card = (output / "README.md").read_text()
    row = json.loads((output / "runs/vq-bpe/test/result.json").read_text())
    assert f"{100 * row['accuracy']['overall']:.1f}" in card
    assert "9,673" in card
    picture = Image.open(output / "tokens.png")
    assert picture.width > 2 * picture.height > 200


def test_the_card_passes_as_far_as_the_client_and_the_stand_in_check(finished):
    output, _run = finished
    card = ModelCard.load(output / "checkpoint/README.md")
    assert card_errors(str(card), "model") == []
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.metrics == ["accuracy"]
    result = json.loads((output / "checkpoint/evaluation/easyvqa.json").read_text())
    row = json.loads((output / "runs/vq-bpe/test/result.json").read_text())
    assert result["metrics"]["accuracy"] == 100 * row["accuracy"]["overall"]
    assert result["images"] == {
        "codes_per_image": 256.0,
        "tokens_per_image": row["tokens_per_image"],
    }
    shown = {entry.metric_name: entry.metric_value for entry in card.data.eval_results}
    assert shown["accuracy"] == result["metrics"]["accuracy"] and "accuracy, yes/no" in shown
    for heading in ("Tokens an image", "Evaluation", "Training", "Limits", "Citation"):
        assert f"## {heading}" in card.content, heading


def test_checkpoint_loads_in_a_new_process_and_answers(finished):
    """The snippet of the card, as it stands there."""
    output, _run = finished
    snippet = (output / "README.md").read_text().split("```python\n")[1].split("```")[0]
    run = subprocess.run(
        [sys.executable, "-c", snippet], cwd=output, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip()


def test_again_does_nothing_twice(finished):
    output, first = finished
    stamps = {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")}
    again = being_vl("quickstart", "--output", str(output), "--minutes", "0.05", "--seed", "3")
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*.safetensors")} == stamps
    table = [line for line in first.stdout.splitlines() if "LLM+VQ" in line]
    assert table and all(line in again.stdout for line in table)


def test_other_settings_are_refused(finished):
    output, _run = finished
    run = being_vl("quickstart", "--output", str(output), "--minutes", "0.05", "--seed", "4")
    assert run.returncode == 2
    assert "seed=3" in run.stderr and len(run.stderr.strip().splitlines()) == 1


def answers_of(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): p.read_text() for p in folder.glob("runs/*/test/answers.jsonl")
    }


def test_a_seed_repeats_and_a_stopped_run_goes_on(small_data, tmp_path, monkeypatch):
    settings = [Settings(output=str(tmp_path / name), minutes=0.06) for name in ("one", "two")]
    pipeline.run(settings[0])
    expected = answers_of(tmp_path / "one")

    step_end = TrainingClock.on_step_end
    for stop_at in (2, 9, 31):  # in the text model, in a stage's first part, in a late one

        def interrupt(self, args, state, control, stop_at=stop_at, **kwargs):
            step_end(self, args, state, control, **kwargs)
            if state.global_step == stop_at and (stop_at < 9 or "VQ+BPE" in self.description):
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(TrainingClock, "on_step_end", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pipeline.run(settings[1])
    pipeline.run(settings[1])
    assert answers_of(tmp_path / "two") == expected
    leftovers = [p for p in (tmp_path / "two").rglob(".*") if p.name != ".lock"]
    assert not leftovers


def test_rows_are_the_chat_template_id_by_id(finished):
    output, _run = finished
    processor = AutoProcessor.from_pretrained(output / "checkpoint")
    split = small_easyvqa("train")
    codes = dict(
        zip(
            load_easyvqa("train", seed=3).image_paths,
            np.load(output / "codes.npz")["train"],
            strict=True,
        )
    )
    split = Split({i: p for i, p in split.image_paths.items() if i in codes}, split.questions)
    groups = {i: g for i, g in list(split.by_image().items())[:10] if i in codes}
    rows = training_rows(processor, groups, codes)
    for row, (image_id, group) in zip(rows, groups.items(), strict=True):
        prefix = row["input_ids"][row["segment_ids"] == 0].tolist()
        for number, question in enumerate(group, start=1):
            text = processor.apply_chat_template(
                conversation(question.text, question.answer, image=True), tokenize=False
            )
            ids = processor(text=text, image_codes=[codes[image_id]])["input_ids"][0]
            own = row["segment_ids"] == number
            assert prefix + row["input_ids"][own].tolist() == ids
            answer = processor.tokenizer(question.answer)["input_ids"] + [
                processor.tokenizer.eos_token_id
            ]
            labels = row["labels"][own].tolist()
            assert labels == [-100] * (len(labels) - len(answer)) + answer


def test_shared_cache_answers_as_generate_does(finished):
    output, _run = finished
    processor = AutoProcessor.from_pretrained(output / "checkpoint")
    model = AutoModelForImageTextToText.from_pretrained(output / "checkpoint").eval()
    split = small_easyvqa("test")
    codes = dict(
        zip(load_easyvqa("test").image_paths, np.load(output / "codes.npz")["test"], strict=True)
    )
    questions = split.questions[:60]
    prompts = [
        processor.apply_chat_template(conversation(q.text, image=True), tokenize=False)
        for q in questions
    ]
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
    text = tokenizer.apply_chat_template(conversation("what?", "yes", image=True), tokenize=False)
    assert text == "<s><image>what?<sep>yes</s>"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"minutes": 0.0}, "minutes must be above 0"),
        ({"quantizer": "vqvae"}, "quantizer must be one of patch, vqgan, got 'vqvae'"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**options)


def test_output_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    run = being_vl("quickstart", "--output", str(tmp_path / "file"))
    assert run.returncode == 2
    assert run.stderr.strip().endswith("is not a folder")
    assert (tmp_path / "file").read_text() == "x"


def test_output_that_holds_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="not made by the quickstart"):
        Workspace(Settings(output=str(tmp_path)))
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
        return Split({**split.image_paths, 10**6: str(broken)}, split.questions)

    monkeypatch.setattr(pipeline, "load_easyvqa", with_broken)
    with pytest.raises(ValueError, match=r"broken\.png"):
        pipeline.run(Settings(output=str(tmp_path / "out"), minutes=0.05))
    assert not (tmp_path / "out" / "vq_model").exists()


def test_vqgan_quantizer(small_data, tmp_path):
    results = pipeline.run(Settings(output=str(tmp_path / "out"), minutes=0.02, quantizer="vqgan"))
    assert [result.tokens_per_image for result in results[:2]] == [0.0, 256.0]
    processor = AutoProcessor.from_pretrained(tmp_path / "out" / "checkpoint")
    assert processor.vq_model.config.model_type == "being_vl_vq"
