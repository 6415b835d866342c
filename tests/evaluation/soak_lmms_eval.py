"""lmms-eval's stock tasks beside our own scorer, offline, with a quickstart checkpoint.

    pip install -c constraints.txt ".[eval]" && pip uninstall -y torchvision timm
    being-vl quickstart
    PYTHONPATH=tests/hub python tests/evaluation/soak_lmms_eval.py being-vl-quickstart/checkpoint [--easyvqa 500]

Small data sets are made of easy-VQA's test split and served under the names that the stock tasks `pope`,
`vqav2_val` and `mme` ask for by the tests' stand-in for the Hub; the same questions lie on disk in the benchmarks' own
files for `being-vl eval`. lmms-eval runs as a user runs it. Every number must be the same on both sides, and so
must every answer of easy-VQA (`--easyvqa 0` asks the whole test split).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, List, Value
from stand_in.server import HubServer

from being_vl.evaluation.easyvqa import Question, load_easyvqa
from being_vl.evaluation.lmms_eval import TASKS_FOLDER
from being_vl.evaluation.tasks import load_task
from being_vl.files import Result, load_results

CATEGORIES = ("random", "popular", "adversarial")


def make_pope(folder: Path, questions: Sequence[Question], paths: dict[int, str]) -> None:
    """The yes/no questions: `hub/` for lmms-eval, `local/` for being-vl eval."""
    rows = []
    for number, question in enumerate(q for q in questions if q.type == "yes/no"):
        rows.append(
            {
                "id": str(number),
                "question_id": str(number),
                "question": question.text,
                "answer": question.answer,
                "image_source": Path(paths[question.image_id]).stem,
                "image": paths[question.image_id],
                "category": CATEGORIES[number % 3],
            }
        )
    names = ("id", "question_id", "question", "answer", "image_source", "category")
    features = Features({**{name: Value("string") for name in names}, "image": Image()})
    write_dataset(rows, features, folder / "hub", "test")
    (folder / "local").mkdir()
    for category in CATEGORIES:
        lines = [
            {
                "question_id": row["question_id"],
                "image": row["image"],
                "text": row["question"],
                "label": row["answer"],
            }
            for row in rows
            if row["category"] == category
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "local" / f"coco_pope_{category}.json").write_text(text)


def make_vqav2(folder: Path, questions: Sequence[Question], paths: dict[int, str]) -> None:
    """All questions, each with ten answers of which up to four are another's."""
    rng = random.Random(0)
    everything = sorted({question.answer for question in questions})
    rows = []
    for number, question in enumerate(questions):
        wrong = rng.choice((0, 0, 1, 3, 8, 9))
        said = [question.answer] * (10 - wrong) + [rng.choice(everything) for _ in range(wrong)]
        rows.append(
            {
                "question_id": number,
                "image_id": question.image_id,
                "question": question.text,
                "question_type": "is" if question.type == "yes/no" else "what",
                "answer_type": "yes/no" if question.type == "yes/no" else "other",
                "multiple_choice_answer": question.answer,
                "answers": [
                    {"answer": answer, "answer_confidence": "yes", "answer_id": n}
                    for n, answer in enumerate(said, 1)
                ],
                "image": paths[question.image_id],
            }
        )
    text = ("question", "question_type", "answer_type", "multiple_choice_answer")
    answer = {
        "answer": Value("string"),
        "answer_confidence": Value("string"),
        "answer_id": Value("int64"),
    }
    features = Features(
        {
            "question_id": Value("int64"),
            "image_id": Value("int64"),
            **{name: Value("string") for name in text},
            "answers": List(answer),
            "image": Image(),
        }
    )
    write_dataset(rows, features, folder / "hub", "validation")
    images = folder / "local" / "val2014"
    images.mkdir(parents=True)
    for image_id in {question.image_id for question in questions}:
        # The files are PNGs; Pillow looks at what is in them, not at their names.
        (images / f"COCO_val2014_{image_id:012d}.jpg").symlink_to(paths[image_id])
    for kind in ("questions", "annotations"):
        content = [{k: v for k, v in row.items() if k != "image"} for row in rows]
        text = json.dumps({"data_subtype": "val2014", kind: content})
        (folder / "local" / f"v2_mscoco_val2014_{kind}.json").write_text(text)


def make_mme(folder: Path, questions: Sequence[Question], paths: dict[int, str]) -> None:
    """Two yes/no questions about each picture, in a category of perception and one of cognition."""
    pairs: dict[int, list[Question]] = defaultdict(list)
    for question in questions:
        if question.type == "yes/no" and len(pairs[question.image_id]) < 2:
            pairs[question.image_id].append(question)
    rows = []
    for number, (image_id, pair) in enumerate(pairs.items()):
        if len(pair) < 2:
            continue
        category = ("existence", "code_reasoning")[number % 2]
        place = folder / "local" / category
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{image_id}.png").symlink_to(paths[image_id])
        texts = [f"{question.text} Please answer yes or no." for question in pair]
        answers = [question.answer.capitalize() for question in pair]
        lines = [f"{text}\t{answer}\n" for text, answer in zip(texts, answers, strict=True)]
        (place / f"{image_id}.txt").write_text("".join(lines))
        rows += [
            {
                "question_id": f"{category}/{image_id}.png",
                "image": paths[image_id],
                "question": text,
                "answer": answer,
                "category": category,
            }
            for text, answer in zip(texts, answers, strict=True)
        ]
    names = ("question_id", "question", "answer", "category")
    features = Features({**{name: Value("string") for name in names}, "image": Image()})
    write_dataset(rows, features, folder / "hub", "test")


def write_dataset(rows: list[dict[str, Any]], features: Features, folder: Path, split: str) -> None:
    (folder / "data").mkdir(parents=True)
    dataset = Dataset.from_list(rows, features=features)
    dataset.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")


STOCK = {"POPE": make_pope, "VQAv2": make_vqav2, "MME": make_mme}  # names of the repositories


def lmms_eval(
    checkpoint: str, tasks: str, output: Path, limit: int, environment: dict[str, str]
) -> dict[str, dict[str, Any]]:
    """Run lmms-eval as a user does; task → its metrics."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "being_vl", "--tasks", tasks]
    command += [
        "--model_args",
        f"pretrained={checkpoint}",
        "--batch_size",
        "128",
        "--device",
        "cpu",
    ]
    command += ["--include_path", str(TASKS_FOLDER), "--output_path", str(output), "--log_samples"]
    command += ["--limit", str(limit)] if limit else []
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = list(output.rglob("*_results.json"))
    if run.returncode or len(found) != 1:  # lmms-eval exits with 0 after errors too
        sys.exit(f"{' '.join(command)}\n{run.stdout[-3000:]}\n{run.stderr[-6000:]}")
    return json.loads(found[0].read_text())["results"]


def being_vl_eval(
    checkpoint: str, output: Path, environment: dict[str, str], *options: str
) -> dict[str, Result]:
    """Run being-vl eval; task → result."""
    command = [
        sys.executable,
        "-m",
        "being_vl",
        "eval",
        checkpoint,
        "--device",
        "cpu",
        "--batch-size",
        "128",
    ]
    subprocess.run([*command, "--output", str(output), *options], env=environment, check=True)
    return {result.task: result for result in load_results(output)}


def easyvqa_answers(output: Path, own: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Question → answer, of lmms-eval's samples and of being-vl eval's answers."""
    (path,) = output.rglob("*_samples_easyvqa.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    rows = load_task("easyvqa").examples  # a doc_id is a place in these
    theirs = {rows[sample["doc_id"]].id: sample["filtered_resps"] for sample in samples}
    lines = (own / "evaluation" / "easyvqa.answers.jsonl").read_text().splitlines()
    return theirs, {row["id"]: row["answer"].strip() for row in map(json.loads, lines)}


def compare(theirs: dict[str, dict[str, Any]], ours: dict[str, Result]) -> None:
    """Print every number of both sides; stop at one that differs."""
    pairs = [("easyvqa", "accuracy", "easyvqa", "accuracy")]
    pairs += [
        ("easyvqa", f"accuracy_{kind}", "easyvqa", f"accuracy/{kind}")
        for kind in ("yes_no", "shape", "color")
    ]
    pairs += [
        ("pope", f"pope_{name}", "pope", f"{own}/lmms_eval")
        for name, own in (
            ("accuracy", "accuracy"),
            ("precision", "precision"),
            ("recall", "recall"),
            ("f1_score", "f1"),
        )
    ]
    pairs += [("vqav2_val", "exact_match", "vqav2", "accuracy/lmms_eval")]
    pairs += [("mme", f"mme_{kind}_score", "mme", kind) for kind in ("perception", "cognition")]
    for task, metric, own_task, own_metric in pairs:
        value = theirs[task].get(f"{metric},none")
        own = ours[own_task].metrics.get(own_metric)
        if value is None and own is None:
            continue  # a type of question that the limit left out
        value *= 1 if task == "mme" else 100
        print(f"{task} {metric}: lmms-eval {value:.4f}, being-vl eval {own:.4f}")
        assert abs(value - own) < 1e-9, (task, metric, value, own)
    for task in ("pope", "vqav2"):
        official = {k: round(v, 2) for k, v in ours[task].metrics.items() if "/" not in k}
        print(f"{task}, official script's rule: {official}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("--questions", type=int, default=300, help="of each stock task")
    parser.add_argument(
        "--easyvqa", type=int, default=300, help="questions; 0: the whole test split"
    )
    args = parser.parse_args()
    checkpoint = str(Path(args.checkpoint).resolve())
    split = load_easyvqa("test")
    questions = split.questions[: args.questions]
    with tempfile.TemporaryDirectory() as folder, HubServer() as hub:
        work = Path(folder)
        for name, make in STOCK.items():
            make(work / name.lower(), questions, split.image_paths)
            hub.add_repository(f"lmms-lab-encoder/{name}", work / name.lower() / "hub", "dataset")
        environment = {**os.environ, **hub.environment(work / "home")}
        environment |= {
            "BEING_VL_CACHE": str(work / "cache"),
            "HF_HUB_OFFLINE": "0",  # the stand-in is asked, and nothing else
            "HF_DATASETS_OFFLINE": "0",
        }
        theirs = lmms_eval(checkpoint, "pope,vqav2_val,mme", work / "stock", 0, environment)
        theirs |= lmms_eval(checkpoint, "easyvqa", work / "own-task", args.easyvqa, environment)
        data = [f"{name}={work / name / 'local'}" for name in map(str.lower, STOCK)]
        limit = ["--limit", str(args.easyvqa)] if args.easyvqa else []
        own = work / "ours"
        being_vl_eval(checkpoint, own, environment, "--tasks", "easyvqa", *limit)
        ours = being_vl_eval(
            checkpoint, own, environment, "--tasks", "pope,vqav2,mme", "--data", *data
        )
        answers, own_answers = easyvqa_answers(work / "own-task", own)
        assert answers == own_answers
        print(f"easyvqa: {len(answers)} questions, the same answer to each")
        compare(theirs, ours)
        asked = sorted({path for _, path in hub.requests if "/resolve/" in path})
        print("served: " + ", ".join(asked))


if __name__ == "__main__":
    main()
