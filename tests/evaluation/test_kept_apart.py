"""Nothing of an evaluation is merged or overwritten because two names are equal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import tiny_checkpoint
from evaluation_fixtures import WRITERS
from PIL import Image

from being_vl.evaluation import code_cache, runner
from being_vl.evaluation.answering import generate_answers
from being_vl.evaluation.benchmark_files import Example, numbered
from being_vl.evaluation.code_cache import CodeCache
from being_vl.evaluation.tasks import load_task
from being_vl.files import Result, load_results
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.models.loading import load_language_model
from being_vl.processing.processing_being_vl import BeingVLProcessor


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kept-apart") / "checkpoint"
    save_checkpoint(*tiny_checkpoint(), folder)
    return folder


@pytest.fixture
def evaluator(checkpoint, tmp_path):
    return runner.Evaluator(
        str(checkpoint), output=tmp_path / "out", device="cpu", cache=str(tmp_path / "cache")
    )


def a_result(**changes) -> Result:
    fields = {
        "task": "pope", "dataset": {"name": "POPE", "id": None, "split": "test"},
        "metrics": {"accuracy": 75.0}, "num_examples": 4, "decoding": {},
        "harness": {"name": "being_vl", "version": "0"}, "seconds": 1.5, "hardware": "CPU",
    }  # fmt: skip
    return Result(**{**fields, **changes})


def llava_file(folder: Path, answers: list[str]) -> Path:
    """Questions that all have the id 7."""
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    turns = [
        [{"from": "human", "value": f"<image>\nq{n}"}, {"from": "gpt", "value": answer}]
        for n, answer in enumerate(answers)
    ]
    path = folder / "questions.json"
    path.write_text(json.dumps([{"id": 7, "image": "red.png", "conversations": t} for t in turns]))
    return path


def test_equal_ids_have_their_own_answers(evaluator, tmp_path, monkeypatch):
    task = load_task("llava", llava_file(tmp_path, ["a", "b", "c"]))
    assert [row.id for row in task.examples] == ["7/0", "7/0#2", "7/0#3"]
    monkeypatch.setattr(runner, "iter_answers", lambda *_args, **_options: iter([["a", "b", "c"]]))
    assert evaluator.run(task).metrics == {"accuracy": 100.0}
    lines = (tmp_path / "out/evaluation/llava-questions.answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["answer"] for line in lines] == ["a", "b", "c"]


def test_numbers_of_ids_do_not_collide():
    examples = [Example(name, "", "", "") for name in ("a", "a", "a#2", "a")]
    assert [example.id for example in numbered(examples)] == ["a", "a#3", "a#2", "a#4"]


def test_an_annotation_that_stands_twice_is_refused(tmp_path):
    folder = WRITERS["vqav2"](tmp_path)
    (path,) = folder.glob("*annotations.json")
    content = json.loads(path.read_text())
    content["annotations"].append(content["annotations"][0])
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"question_id \d+ stands at annotations\[0\] already"):
        load_task("vqav2", folder)


def test_two_files_of_a_task_have_two_results(evaluator, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = llava_file(tmp_path / name, [name])
        task = load_task("llava", path.rename(path.with_name(f"{name}.json")))
        evaluator.run(task, max_new_tokens=1)
    assert [r.task for r in load_results(tmp_path / "out")] == ["llava-a", "llava-b"]


def test_other_data_of_the_same_name_is_refused_before_it_is_answered(
    evaluator, tmp_path, monkeypatch
):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        task = load_task("llava", llava_file(tmp_path / name, [name]))
        if name == "b":
            monkeypatch.setattr(runner, "iter_answers", None)
            with pytest.raises(
                ValueError, match=r"llava-questions\.json: holds a result with digest"
            ):
                evaluator.run(task)
        else:
            evaluator.run(task, max_new_tokens=1)
            evaluator.run(task, max_new_tokens=1)  # the same once more


def test_data_that_were_moved_are_the_same(evaluator, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        task = load_task("llava", llava_file(tmp_path / name, ["one"]))
        evaluator.run(task, max_new_tokens=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": {"name": "POPE", "id": None, "split": "validation"}},
        {"dataset": {"name": "other", "id": None, "split": "test"}},
        {"harness": {"name": "lmms-eval", "version": "0.7"}},
    ],
)
def test_a_result_does_not_replace_another(changes, tmp_path):
    first = a_result()
    first.save(tmp_path)
    with pytest.raises(ValueError, match=r"pope\.json: holds a result with .*choose another"):
        a_result(**changes).save(tmp_path)
    assert load_results(tmp_path) == [first]


@pytest.mark.parametrize("task", ["../x", "a/b", "", ".hidden", "a\nb", "x" * 300])
def test_a_task_that_is_no_name_for_a_file_is_refused(task, tmp_path):
    with pytest.raises(ValueError, match="task must begin with a letter or digit"):
        a_result(task=task).save(tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def test_a_result_file_must_be_named_by_its_task(tmp_path):
    path = a_result().save(tmp_path)
    path.write_text(path.read_text().replace('"pope"', '"../../mme"'))
    with pytest.raises(ValueError, match=r"pope\.json: task must be pope, .*got '\.\./\.\./mme'"):
        load_results(tmp_path)


@pytest.mark.parametrize("images", [0, "", False, []])
def test_images_of_a_result_are_a_mapping_or_none(images, tmp_path):
    path = a_result().save(tmp_path)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": images}))
    with pytest.raises(ValueError, match=r"pope\.json: images must be dict"):
        load_results(tmp_path)
    path.write_text(json.dumps({**content, "images": None}))
    assert load_results(tmp_path) == [a_result()]


def test_large_pictures_come_one_by_one(checkpoint, tmp_path, monkeypatch):
    """Batches are bounded by pixels, and the codes are those of one large batch."""
    rng = np.random.default_rng(0)
    sizes = [8, 40, 8, 8, 60, 30]
    paths = []
    for number, side in enumerate(sizes):
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        paths.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(pixels).save(paths[-1])
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    together = CodeCache(processor, tmp_path / "a").codes(paths)
    monkeypatch.setattr(code_cache, "BATCH_PIXELS", 2000)
    batches = [[sizes[int(Path(p).stem)] for p in batch] for batch in code_cache._batches(paths)]
    assert batches == [[8, 40, 8, 8], [60], [30]]
    apart = CodeCache(processor, tmp_path / "b").codes(paths)
    assert all((a == b).all() for a, b in zip(together, apart, strict=True))


def test_the_name_of_cached_codes_is_the_digest_of_all_pixels(checkpoint, tmp_path):
    """Taken strip by strip, it is that of the whole picture: caches that exist stay valid."""
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    pixels = np.random.default_rng(0).integers(0, 256, (150, 37, 3), np.uint8)
    whole = hashlib.sha256(b"37x150 " + pixels.tobytes()).hexdigest()
    assert CodeCache(processor, tmp_path)._path(Image.fromarray(pixels)).stem == whole


def test_a_result_of_some_rows_and_one_of_all_do_not_replace_each_other(evaluator, tmp_path):
    task = load_task("llava", llava_file(tmp_path, ["a", "b", "c"]))
    whole = evaluator.run(task, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"result with split None, but this one's is all\[:2\]"):
        evaluator.run(task.limited(2), max_new_tokens=1)
    assert load_results(tmp_path / "out") == [whole]
    assert task.limited(None).dataset == task.dataset


def test_answers_are_decoded_as_is_said(evaluator, tmp_path):
    """Greedily, whatever the generation_config.json of the base brings along."""
    task = load_task("llava", llava_file(tmp_path, ["a", "b"]))
    prompts = runner.render_prompts(evaluator.processor, ["q", "longer q"], image=False)

    def answers():
        return generate_answers(evaluator.model, evaluator.processor, prompts, max_new_tokens=12)

    plain = answers()
    config = evaluator.model.generation_config
    config.repetition_penalty, config.no_repeat_ngram_size = 3.0, 1
    config.num_beams, config.min_length = 3, 40
    assert answers() == plain
    assert evaluator.run(task, max_new_tokens=2).decoding == {
        "do_sample": False,
        "max_new_tokens": 2,
    }


def test_a_prompt_beyond_the_models_positions_is_named(checkpoint):
    processor = BeingVLProcessor.from_pretrained(checkpoint)
    model = load_language_model(str(checkpoint))
    limit = model.config.max_position_embeddings
    message = rf"prompt 1 has \d+ tokens, the model takes {limit}"
    with pytest.raises(ValueError, match=message):
        generate_answers(model, processor, ["a", "b " * (2 * limit)], max_new_tokens=1)
