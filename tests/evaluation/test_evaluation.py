"""Benchmarks' files, cached codes, the run of a task, and the commands eval and results."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from checkpoint_fixtures import tiny_checkpoint
from evaluation_fixtures import COLORS, WRITERS, draw, write_json, write_pope
from PIL import Image
from stand_in.server import HubServer

from being_vl.cli import main
from being_vl.evaluation import runner
from being_vl.evaluation.answering import generate_answers, iter_answers, render_prompts
from being_vl.evaluation.code_cache import CodeCache
from being_vl.evaluation.reconstruction import evaluate_reconstruction, tokens_by_merges
from being_vl.evaluation.runner import Evaluator, _share
from being_vl.evaluation.tasks import SHORT_ANSWER, load_task, strip_punctuation
from being_vl.files import Result, load_results
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.quantizers.image_loading import UnreadableImageError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "checkpoint"
    save_checkpoint(*tiny_checkpoint(), folder)
    return folder


@pytest.fixture
def evaluator(checkpoint, tmp_path) -> Evaluator:
    return Evaluator(
        str(checkpoint), output=tmp_path / "out", device="cpu", cache=str(tmp_path / "cache")
    )


# ---- files


@pytest.mark.parametrize(
    "name, count, first",
    [
        ("pope", 16, ("Is there a red thing in the image?" + SHORT_ANSWER, "yes", "popular")),
        ("vqav2", 8, ("What color is it?" + SHORT_ANSWER, ["red"] * 7 + ["white"] * 3, "other")),
        ("mme", 8, ("Is it red?" + SHORT_ANSWER, "Yes", "OCR")),
        ("llava", 8, ("what color?", "red", "")),
        ("mllm_bench", 4, ("What is it?", None, "Perception/Remembering")),
    ],
)
def test_official_files(name, count, first, tmp_path):
    task = load_task(name, WRITERS[name](tmp_path))
    assert len(task.examples) == count == len({row.id for row in task.examples})
    row = task.examples[0]
    assert (row.question, row.target, row.group) == first
    assert all(Path(row.image).is_file() for row in task.examples)
    images = [row.image for row in task.examples]
    assert sum(a != b for a, b in itertools.pairwise(images)) == len(set(images)) - 1


def test_pictures_elsewhere(tmp_path):
    write_pope(tmp_path / "data")
    (tmp_path / "pictures").mkdir()
    for color in COLORS:
        (tmp_path / "data" / f"{color}.png").rename(tmp_path / "pictures" / f"{color}.png")
    task = load_task("pope", tmp_path / "data", tmp_path / "pictures")
    assert Path(task.examples[0].image).parent == tmp_path / "pictures"
    with pytest.raises(FileNotFoundError, match=r"coco_pope_popular.json: line 1: no image .*red"):
        load_task("pope", tmp_path / "data")


@pytest.mark.parametrize(
    "name, file, change, message",
    [
        (
            "pope",
            "coco_pope_random.json",
            lambda t: t.replace('"no"', '"nay"'),
            "'label' must be yes",
        ),
        ("pope", "coco_pope_random.json", lambda t: t + "{", "line 9: not valid JSON"),
        (
            "vqav2",
            "v2_OpenEnded_mscoco_val2014_questions.json",
            lambda t: t.replace('"question_id": 5', '"question_id": 99'),
            r"questions\[0\]: question_id 99 is not in",
        ),
        (
            "vqav2",
            "v2_mscoco_val2014_annotations.json",
            lambda t: t.replace('"answers"', '"replies"'),
            r"annotations\[0\]: the field 'answers' is missing",
        ),
        ("mme", "existence/000.txt", lambda t: t.splitlines()[0], "two questions"),
        (
            "mme",
            "existence/000.txt",
            lambda t: t.replace("\t", " "),
            "line 1 must be a question, a tab",
        ),
        (
            "llava",
            "llava.json",
            lambda t: t.replace('"gpt"', '"bot"'),
            "must be human and gpt in turn",
        ),
        ("llava", "llava.json", lambda t: "[]", "must be a list with entries"),
        (
            "mllm_bench",
            "data/anchor.json",
            lambda t: t.replace("unique_idx", "idx"),
            "'unique_idx' is missing",
        ),
    ],
)
def test_malformed_files_are_named(name, file, change, message, tmp_path):
    data = WRITERS[name](tmp_path)
    path = tmp_path / file
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as error:
        load_task(name, data)
    assert path.name in str(error.value)


def test_tasks_without_their_data(tmp_path):
    with pytest.raises(ValueError, match="no task 'popé'"):
        load_task("popé")
    with pytest.raises(ValueError, match="--data pope=PATH"):
        load_task("pope")
    with pytest.raises(FileNotFoundError, match="coco_pope_random"):
        load_task("pope", tmp_path)


def test_limit_keeps_what_is_scored_together(tmp_path):
    task = load_task("mme", WRITERS["mme"](tmp_path))
    assert len(task.limited(5).examples) == 4
    with pytest.raises(ValueError, match="2 questions together, got 1"):
        task.limited(1)


@pytest.mark.parametrize(
    "answer, bare",
    [("Yes.", "Yes"), (' "no" ', "no"), ("Yes, it is.", "Yes, it is."), ("", ""), ("...", "")],
)
def test_strip_punctuation(answer, bare):
    assert strip_punctuation(answer) == bare


# ---- codes


def test_codes_are_made_once_and_the_same(checkpoint, tmp_path, monkeypatch):
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    paths = [draw(tmp_path / f"{color}.png", color) for color in COLORS]
    made: list[int] = []
    quantize = processor.quantize
    monkeypatch.setattr(
        processor, "quantize", lambda images: made.append(len(images)) or quantize(images)
    )
    cache = CodeCache(processor, tmp_path / "cache")
    first = cache.codes([*paths, paths[0]])  # one of them twice
    again = CodeCache(processor, tmp_path / "cache").codes([Image.open(path) for path in paths])
    assert made == [len(COLORS)]
    expected = quantize([Image.open(path).convert("RGB") for path in paths])
    for grids in (first[:-1], again):
        assert all((a == b).all() for a, b in zip(grids, expected, strict=True))
    assert not list(cache.folder.rglob(".*"))  # nothing left of writing


def test_another_quantizer_has_other_codes(checkpoint, tmp_path):
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    folder = CodeCache(processor, tmp_path).folder
    with torch.no_grad():
        processor.vq_model.codebook[0, 0] += 1
    assert CodeCache(processor, tmp_path).folder != folder


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: np.save(path, np.full((4, 4), 99, np.int32)),
        lambda path: np.save(path, np.array({"a": 1}, dtype=object), allow_pickle=True),
    ],
)
def test_damaged_codes_are_made_again(damage, checkpoint, tmp_path):
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    cache = CodeCache(processor, tmp_path / "cache")
    picture = draw(tmp_path / "red.png", "red")
    (before,) = cache.codes([picture])
    (path,) = cache.folder.rglob("*.npy")
    damage(path)
    with pytest.warns(UserWarning, match="made again"):
        (after,) = cache.codes([picture])
    assert (before == after).all() and (np.load(path) == before).all()


def test_an_unreadable_picture_is_named(evaluator, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableImageError, match=r"broken\.png"):
        CodeCache(evaluator.processor, tmp_path).codes([tmp_path / "broken.png"])


# ---- answers


def test_answers_do_not_depend_on_sharing_or_batches(evaluator):
    """Pictures shared or not, none, or two; against generate on each prompt alone."""
    processor, model = evaluator.processor, evaluator.model
    rng = np.random.default_rng(0)
    grids = [rng.integers(0, 16, (4, 4)).astype(np.int32) for _ in range(3)]
    with_image = render_prompts(processor, ["What is it?", "Is it red?"], image=True)
    prompts = [*with_image, *render_prompts(processor, ["user"], image=False), with_image[0]]
    prompts.append(with_image[0].replace("<image>", "<image> above <image>"))
    codes = {0: grids[0], 1: grids[0], 2: [], 3: grids[1], 4: [grids[0], grids[2]]}
    expected = []
    for number, prompt in enumerate(prompts):
        given = codes[number] if isinstance(codes[number], list) else [codes[number]]
        inputs = processor(text=[prompt], image_codes=[given], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=5, do_sample=False)
        expected.append(
            processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        )
    for options in ({"batch_size": 2}, {"batch_size": 8}, {"batch_size": 8, "num_beams": 1}):
        got = generate_answers(
            model, processor, prompts, range(5), codes, max_new_tokens=5, **options
        )
        assert got == expected


def test_beams_answer_as_generate_does(evaluator):
    processor, model = evaluator.processor, evaluator.model
    prompts = render_prompts(processor, ["What is it?", "Is it?"], image=False)
    got = generate_answers(model, processor, prompts, max_new_tokens=4, num_beams=3)
    for prompt, answer in zip(prompts, got, strict=True):
        inputs = processor(text=[prompt], return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=4, num_beams=3, do_sample=False)
        text = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert answer == text


@pytest.mark.parametrize("name", ["pope", "vqav2", "mme", "llava"])
def test_a_task_is_answered_scored_and_written(name, evaluator, tmp_path):
    task = load_task(name, WRITERS[name](tmp_path / "data"))
    result = evaluator.run(task, max_new_tokens=3)
    assert load_results(tmp_path / "out") == [result]
    assert result.num_examples == len(task.examples) and result.task.partition("-")[0] == name
    assert result.images["codes_per_image"] == 16 >= result.images["tokens_per_image"] > 0
    name = result.task
    lines = (tmp_path / "out" / "evaluation" / f"{name}.answers.jsonl").read_text().splitlines()
    answers = [json.loads(line)["answer"] for line in lines]
    assert task.score(task.examples, answers) == result.metrics
    assert sorted(os.listdir(tmp_path / "out" / "evaluation")) == [
        f"{name}.answers.jsonl",
        f"{name}.json",
    ]


def test_a_right_answer_scores_100(tmp_path):
    for name in ("pope", "vqav2", "mme", "llava"):
        task = load_task(name, WRITERS[name](tmp_path / name))
        truths = [
            row.target if isinstance(row.target, str) else row.target[0] for row in task.examples
        ]
        metrics = task.score(task.examples, [f"{truth}" for truth in truths])
        if name == "mme":
            assert (metrics["perception"], metrics["score/OCR"]) == (400.0, 200.0)
        else:
            assert metrics["accuracy"] == 100.0


def test_generations_for_an_outside_judge(evaluator, tmp_path):
    result = evaluator.run(
        load_task("mllm_bench", WRITERS["mllm_bench"](tmp_path)), max_new_tokens=2
    )
    assert result.metrics == {}
    path = tmp_path / "out" / "evaluation" / "mllm_bench.generations.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["unique_idx"] for row in rows] == [0, 1, 2, 3]
    assert rows[0]["gen_model_id"] == "checkpoint" and rows[0]["level"] == "Perception/Remembering"
    assert isinstance(rows[0]["answer"], str)


def test_a_stopped_run_goes_on(evaluator, tmp_path, monkeypatch):
    task = load_task("pope", WRITERS["pope"](tmp_path / "data"))
    evaluator.batch_size = 4
    whole = evaluator.run(task, max_new_tokens=3)
    shutil.rmtree(tmp_path / "out")
    answered: list[int] = []
    batches = runner.iter_answers

    def stop_after_two(model, processor, prompts, *args, **options):
        for number, batch in enumerate(batches(model, processor, prompts, *args, **options)):
            if number == 2 and len(prompts) == len(task.examples):
                raise KeyboardInterrupt
            answered.append(len(batch))
            yield batch

    monkeypatch.setattr(runner, "iter_answers", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        evaluator.run(task, max_new_tokens=3)
    (journal,) = (tmp_path / "out" / "evaluation" / ".pope.partial").glob("*.jsonl")
    with journal.open("a") as file:
        file.write('{"1": "a line that the kill cut')
    resumed = evaluator.run(task, max_new_tokens=3)
    assert resumed.metrics == whole.metrics
    assert sum(answered) == len(task.examples)
    assert not journal.parent.exists()


def test_answers_of_other_settings_do_not_count(evaluator, tmp_path, monkeypatch):
    task = load_task("pope", WRITERS["pope"](tmp_path / "data"))
    asked: list[int] = []
    batches = runner.iter_answers

    def count(model, processor, prompts, *args, **options):
        asked.append(len(prompts))
        return batches(model, processor, prompts, *args, **options)

    monkeypatch.setattr(runner, "iter_answers", count)
    monkeypatch.setattr(runner.Journal, "remove", lambda self: None)
    evaluator.run(task, max_new_tokens=2)
    evaluator.run(task, max_new_tokens=2)
    evaluator.run(task, max_new_tokens=3)
    assert asked == [16, 0, 16]


def test_shares_are_disjoint_and_part_no_picture(tmp_path):
    rows = load_task("pope", WRITERS["pope"](tmp_path)).examples
    for count in (1, 2, 3, 5, 40):
        parts = [rows[_share(rows, index, count)] for index in range(count)]
        assert [row for part in parts for row in part] == rows
        images = [{row.image for row in part} for part in parts]
        assert sum(map(len, images)) == len(set().union(*images))


class Ranks:
    """Processes of accelerate, as threads: what the runner asks of PartialState and gather_object."""

    def __init__(self, count: int):
        self.count = count
        self.barrier = threading.Barrier(count, timeout=60)
        self.place = threading.local()
        self.given: dict[int, list] = {}

    def state(self, index: int) -> SimpleNamespace:
        self.place.index = index
        return SimpleNamespace(
            num_processes=self.count,
            process_index=index,
            is_main_process=index == 0,
            device=torch.device("cpu"),
            wait_for_everyone=self.barrier.wait,
        )

    def gather(self, values: list) -> list:
        self.barrier.wait()
        self.given[self.place.index] = values
        self.barrier.wait()
        return [value for index in range(self.count) for value in self.given[index]]


def test_more_tokens_than_the_model_takes_may_be_a_task_s_own(evaluator):
    """lmms-eval's tasks ask for as many as the largest models give, which is an upper bound."""
    more = evaluator.model.config.max_position_embeddings + 1
    prompts = ["x"]
    answers = list(iter_answers(evaluator.model, evaluator.processor, prompts, max_new_tokens=more))
    assert [len(batch) for batch in answers] == [1]


def test_more_tokens_than_the_model_takes_are_refused_at_once(evaluator, tmp_path):
    task = load_task("pope", WRITERS["pope"](tmp_path / "data"))
    longest = evaluator.model.config.max_position_embeddings
    with pytest.raises(
        ValueError, match=f"^max_new_tokens must be at most {longest}, .*, got 10+$"
    ):
        evaluator.run(task, max_new_tokens=10**30)
    assert not (tmp_path / "out" / "evaluation").exists()


@pytest.mark.parametrize("count", [2, 6])  # there are four pictures
def test_several_processes_answer_as_one(count, evaluator, tmp_path, monkeypatch):
    task = load_task("pope", WRITERS["pope"](tmp_path / "data"))
    alone = evaluator.run(task, max_new_tokens=3)
    answers = tmp_path / "out" / "evaluation" / "pope.answers.jsonl"
    expected = answers.read_text()
    answers.unlink()
    ranks = Ranks(count)
    monkeypatch.setattr(runner, "gather_object", ranks.gather)

    def run(index: int) -> Result | None:
        one = copy(evaluator)
        one.state = ranks.state(index)
        return one.run(task, max_new_tokens=3)

    with ThreadPoolExecutor(count) as threads:
        first, *others = threads.map(run, range(count))
    assert others == [None] * (count - 1)
    assert (first.metrics, first.images) == (alone.metrics, alone.images)
    assert answers.read_text() == expected


# ---- reconstruction


def test_reconstruction(checkpoint, tmp_path):
    processor = runner.load_checkpoint(str(checkpoint), device="cpu")[1]
    pictures = [str(draw(tmp_path / f"{color}.png", color)) for color in COLORS]
    result = evaluate_reconstruction(
        processor, pictures, dataset={"name": "x", "id": None, "split": None}, batch_size=3
    )
    grids = processor.quantize([Image.open(path) for path in pictures])
    bpe = processor.tokenizer.image_bpe
    tokens = [len(ids) for ids in bpe.encode_batch(grids)]
    assert result.metrics["tokens_per_image/12"] == np.mean(tokens)
    assert result.metrics["tokens_per_image/0"] == 16
    reconstructions = np.stack([np.asarray(processor.reconstruct(g), float) for g in grids])
    pixels = processor.image_processor([Image.open(p) for p in pictures])["pixel_values"]
    originals = np.stack(
        [np.asarray(processor.image_processor.postprocess(p)[0], float) for p in pixels]
    )
    error = np.mean((originals - reconstructions) ** 2)
    assert result.metrics["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert 0 <= result.metrics["ssim"] <= 1


def test_reconstruction_of_a_folder_bears_its_name(checkpoint, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for color in COLORS:
            draw(tmp_path / name / f"{color}.png", color)
    for name, limit in (("a", []), ("b", ["--limit", "1"])):
        options = ["--data", str(tmp_path / name), "--output", str(tmp_path / "out"), *limit]
        words = ["eval", str(checkpoint), "--tasks", "reconstruction", "--device", "cpu", *options]
        assert main(words) == 0
    counts = {result.task: result.num_examples for result in load_results(tmp_path / "out")}
    assert counts == {"reconstruction-a": len(COLORS), "reconstruction-b": 1}


def test_more_merges_never_make_more_tokens():
    _, processor = tiny_checkpoint()
    grids = [np.zeros((4, 4), np.int32), np.ones((2, 6), np.int32)]
    curve = tokens_by_merges(processor.tokenizer.image_bpe, grids)
    assert list(curve) == [0, 1, 2, 4, 8, 12]
    assert list(curve.values()) == sorted(curve.values(), reverse=True)
    assert curve[0] == 14 and curve[12] < curve[0]


# ---- result files and commands


def a_result(**changes) -> Result:
    fields = {
        "task": "easyvqa",
        "dataset": {"name": "easy-VQA", "id": None, "split": "test"},
        "metrics": {"accuracy/shape": 50.0, "accuracy": 75.0},
        "num_examples": 4,
        "decoding": {"do_sample": False},
        "harness": {"name": "being_vl", "version": "0"},
        "seconds": 1.5,
        "hardware": "CPU",
        "images": {"codes_per_image": 256.0, "tokens_per_image": 28.0},
    }
    return Result(**{**fields, **changes})


def test_result_files(tmp_path):
    result = a_result()
    path = result.save(tmp_path)
    assert json.loads(path.read_text())["version"] == 1
    assert load_results(tmp_path) == [result]
    for text, message in (
        ("{", "not valid JSON"),
        ('{"version": 2}', "version 1"),
        ('{"version": 1}', "must have the fields task, "),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"easyvqa\.json: .*{message}"):
            load_results(tmp_path)


def test_eval_command(checkpoint, tmp_path, capsys):
    data = WRITERS["pope"](tmp_path / "pope")
    options = [
        "--device",
        "cpu",
        "--cache",
        str(tmp_path / "cache"),
        "--output",
        str(tmp_path / "out"),
    ]
    tasks = ["--tasks", "easyvqa,pope,reconstruction", "--data", f"pope={data}", "--limit", "6"]
    assert main(["eval", str(checkpoint), *tasks, *options, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["task"] for row in printed] == ["easyvqa", "pope", "reconstruction"]
    assert [row["num_examples"] for row in printed] == [6, 6, 6]
    folder = tmp_path / "out" / "evaluation"
    assert {path.name for path in folder.glob("*.yaml")} == {
        "easyvqa.yaml",
        "pope.yaml",
        "reconstruction.yaml",
    }
    again = ["eval", "--config", str(folder / "pope.yaml"), "--tasks", "easyvqa", "--data"]
    assert main([*again, "--json"]) == 0
    (printed,) = json.loads(capsys.readouterr().out)
    assert (printed["task"], printed["num_examples"]) == ("easyvqa", 6)
    fewer = ["eval", str(checkpoint), "--tasks", "easyvqa", "--limit", "2", *options]
    assert main(fewer) == 2  # it would stand in the place of the result of six
    assert "holds a result with split test[:6], but this one's is test[:2]" in (
        capsys.readouterr().err
    )
    assert main([*fewer, "--output", str(tmp_path / "fewer")]) == 0
    assert capsys.readouterr().out.startswith("easyvqa: 2 examples")


@pytest.mark.parametrize(
    "options, message",
    [
        (["--tasks", "easyvqa,popé"], "no task 'popé'"),
        (["--tasks", ","], "names no task"),
        (["--tasks", "pope"], "--data pope=PATH"),
        (["--tasks", "pope", "--data", "/no/such"], "no such file or folder"),
        (["--tasks", "pope", "--data", "mme=/"], "must be TASK=PATH"),
    ],
)
def test_eval_command_refuses(options, message, checkpoint, tmp_path, capsys):
    output = ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["eval", str(checkpoint), *options, *output]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error and len(error.splitlines()) == 1


def test_eval_of_a_repository_needs_an_output(capsys):
    assert main(["eval", "someone/something", "--tasks", "easyvqa"]) == 2
    assert "--output" in capsys.readouterr().err


def test_eval_of_a_repository(checkpoint, tmp_path):
    """Through the stand-in for the Hub, in a process of its own, which asks it instead of the Hub."""
    command = "eval someone/checkpoint --tasks easyvqa --limit 3 --device cpu --output out --json"
    with HubServer() as hub:
        hub.add_repository("someone/checkpoint", checkpoint)
        run = subprocess.run(
            [sys.executable, "-m", "being_vl", *command.split()],
            env={
                **os.environ,
                **hub.environment(tmp_path / "home"),
                "BEING_VL_CACHE": str(tmp_path / "cache"),
                "PYTHONPATH": str(Path(__file__).parents[2]),
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    (printed,) = json.loads(run.stdout)
    assert printed["num_examples"] == 3
    assert load_results(tmp_path / "out")[0].metrics == printed["metrics"]


def test_results_command(tmp_path, capsys):
    for name, tokens, accuracy in (("a", 256.0, 80.0), ("b", 28.0, 99.0)):
        images = {"codes_per_image": 256.0, "tokens_per_image": tokens}
        a_result(images=images, metrics={"accuracy": accuracy}).save(tmp_path / name)
    folders = [str(tmp_path / name) for name in ("a", "b")]
    assert main(["results", *folders, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["tokens_per_image"], row["value"]) for row in rows] == [
        (28.0, 99.0),
        (256.0, 80.0),
    ]
    assert main(["results", *folders]) == 0
    assert "99.00" in capsys.readouterr().out
    assert main(["results", str(tmp_path)]) == 2
    assert "no results" in capsys.readouterr().err
    assert main(["results"]) == 2


def test_results_command_tabulates_verdicts(tmp_path, capsys):
    path = tmp_path / "verdicts.jsonl"
    path.write_text('{"verdict": "win", "level": "Creation"}\n{"verdict": "lose"}\n')
    assert main(["results", "--verdicts", str(path), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1] == {"level": "all", "win": 1, "tie": 0, "lose": 1, "win_rate": 0.5}
    write_json(path, {"verdict": "draw"})
    assert main(["results", "--verdicts", str(path)]) == 2
    assert "verdicts.jsonl: verdict 1" in capsys.readouterr().err
