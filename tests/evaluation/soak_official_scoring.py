"""Our scoring beside the official scripts, on random answers; also writes the fixture of the unit tests.

The scripts are not part of this repository. Get them from their authors and name them:

    python tests/evaluation/soak_official_scoring.py --vqa vqaEval.py --pope evaluate.py --mme calculation.py [--write]

vqaEval.py is of github.com/GT-Vision-Lab/VQA (PythonEvaluationTools/vqaEvaluation), evaluate.py of
github.com/RUCAIBox/POPE, calculation.py of MME's eval_tool.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import re
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from being_vl.evaluation.scoring import (
    mme_scores,
    normalize_vqa_answer,
    pope_scores,
    vqa_accuracy,
)
from being_vl.evaluation.scoring.yes_no import MME_COGNITION, MME_PERCEPTION

FIXTURE = Path(__file__).parent / "scoring_fixture.json"
WORDS = (
    "yes no Yes. No, a an the two Two none ten 3 1,000 2.5 it's its dont don't wouldnt've o'clock red/blue "
    "(left) left-hand T-shirt? cat. dog; \"stop\" U.S. e.g. 50% $5 it`s @home theyre somebody'd y'allll "
    "not other yesterday nothing maybe , . ?"
).split()


def text(rng: random.Random) -> str:
    """Words, oddly spaced."""
    words = [rng.choice(WORDS) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    return rng.choice((" ", " ", "  ", "\n", "\t")).join(words)


def vqa_cases(rng: random.Random, count: int) -> list[dict[str, Any]]:
    cases = []
    for _ in range(count):
        pool = [text(rng) for _ in range(rng.choice((1, 2, 3)))]
        truths = [rng.choice(pool) for _ in range(10)]
        answer = rng.choice([*pool, text(rng), pool[0].lower(), pool[0].capitalize()])
        cases.append({"answer": answer, "truths": truths})
    return cases


def vqa_script(script: Path) -> dict[str, Any]:
    """The script's names; it is written for Python 2."""
    source = re.sub(r'print "(.*)"', r'print("\1")', script.read_text("utf-8"))
    space: dict[str, Any] = {}
    exec(compile(source, str(script), "exec"), space)
    return space


def check_contractions(space: dict[str, Any]) -> int:
    """Every word of the script's table, normalized by both; their number is returned."""
    none = SimpleNamespace(getQuesIds=list)
    scorer = space["VQAEval"](none, none)
    words = {*scorer.contractions, *scorer.contractions.values(), *scorer.manualMap}
    for word in words:
        theirs = scorer.processDigitArticle(scorer.processPunctuation(word))
        assert normalize_vqa_answer(word) == theirs, (word, theirs, normalize_vqa_answer(word))
    return len(words)


def official_vqa(space: dict[str, Any], cases: list[dict[str, Any]]) -> list[float]:
    """The script's accuracy of every case, in [0, 1]."""
    questions = {
        n: {
            "question_type": "",
            "answer_type": "",
            "answers": [{"answer": t, "answer_id": k} for k, t in enumerate(case["truths"])],
        }
        for n, case in enumerate(cases)
    }
    answers = {n: {"answer": case["answer"]} for n, case in enumerate(cases)}
    ours = SimpleNamespace(qa=questions, getQuesIds=lambda: list(questions))
    theirs = SimpleNamespace(qa=answers, getQuesIds=lambda: list(answers))
    scorer = space["VQAEval"](ours, theirs, n=10)
    with contextlib.redirect_stdout(io.StringIO()):
        scorer.evaluate()
    return [scorer.evalQA[n] / 100 for n in questions]


def pope_cases(rng: random.Random, count: int) -> dict[str, list[str]]:
    answers = [rng.choice(("yes", "no", "Yes.", "No, it is not.", text(rng))) for _ in range(count)]
    return {"answers": answers, "truths": [rng.choice(("yes", "no")) for _ in range(count)]}


def official_pope(script: Path, cases: dict[str, list[str]]) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        answers, labels = Path(folder, "answers.json"), Path(folder, "labels.json")
        answers.write_text("".join(json.dumps({"answer": a}) + "\n" for a in cases["answers"]))
        labels.write_text("".join(json.dumps({"label": t}) + "\n" for t in cases["truths"]))
        source = script.read_text("utf-8")
        source = source.replace("ans_file = ''", f"ans_file = {str(answers)!r}")
        source = source.replace("label_file = ''", f"label_file = {str(labels)!r}")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, str(script), "exec"), {})
    names = {
        "Accuracy": "accuracy",
        "Precision": "precision",
        "Recall": "recall",
        "F1 score": "f1",
        "Yes ratio": "yes_ratio",
    }
    found = dict(re.findall(r"^([\w ]+): ([\d.e-]+)$", printed.getvalue(), re.MULTILINE))
    return {ours: 100 * float(found[theirs]) for theirs, ours in names.items()}


def mme_cases(rng: random.Random, pairs: int) -> list[dict[str, str]]:
    return [
        {
            "category": category,
            "image": f"{number}.jpg",
            "truth": truth,
            "answer": rng.choice(("Yes", "no", "Yes, it is", "The no", "Noo", "other", "I know")),
        }
        for category in (*MME_PERCEPTION, *MME_COGNITION)
        for number in range(pairs)
        for truth in ("Yes", "No")
    ]


def official_mme(script: Path, cases: list[dict[str, str]]) -> dict[str, float]:
    """The script's score of every category."""
    source = re.sub(r"^(parser\b.*|args = .*)$", "", script.read_text("utf-8"), flags=re.MULTILINE)
    space: dict[str, Any] = {"__name__": "mme"}
    exec(compile(source, str(script), "exec"), space)
    scores = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        for category in (*MME_PERCEPTION, *MME_COGNITION):
            lines = [
                "\t".join((c["image"], "question", c["truth"], c["answer"])) + "\n"
                for c in cases
                if c["category"] == category
            ]
            Path(folder, f"{category}.txt").write_text("".join(lines))
        for kind, names in space["eval_type_dict"].items():
            # Each call returns the scores of its last kind only.
            space["eval_type_dict"] = {kind: names}
            scores |= space["calculate_metrics"]().process_result(folder)
    return scores


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("vqa", "pope", "mme"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--write", action="store_true", help="also write the unit tests' fixture")
    args = parser.parse_args()
    rng = random.Random(0)

    vqa = vqa_cases(rng, args.cases)
    script = vqa_script(args.vqa)
    print(f"VQA: {check_contractions(script)} words of its table, all equal")
    expected = official_vqa(script, json.loads(json.dumps(vqa)))
    for case, value in zip(vqa, expected, strict=True):
        ours = vqa_accuracy(case["answer"], case["truths"])
        assert abs(ours - value) < 1e-9, (case, value, ours)
    print(f"VQA: {len(vqa)} answers, mean {sum(expected) / len(expected):.4f}, all equal")

    pope = pope_cases(rng, args.cases)
    official = official_pope(args.pope, pope)
    assert_close(pope_scores(pope["answers"], pope["truths"]), official)
    print(f"POPE: {args.cases} answers, {official}")

    mme = mme_cases(rng, args.cases // 28)
    categories = official_mme(args.mme, mme)
    columns = [[case[name] for case in mme] for name in ("answer", "truth", "category", "image")]
    ours = mme_scores(*columns)
    assert_close({name: ours[f"score/{name}"] for name in categories}, categories)
    print(f"MME: {len(mme)} answers, perception {ours['perception']:.2f}, equal in every category")

    if args.write:
        pope, mme = pope_cases(rng, 100), mme_cases(rng, 4)
        fixture = {
            "source": __doc__.splitlines()[0]
            + " Written by tests/evaluation/soak_official_scoring.py.",
            "vqa": [c | {"accuracy": v} for c, v in zip(vqa[:150], expected, strict=False)],
            "pope": {**pope, "scores": official_pope(args.pope, pope)},
            "mme": {"rows": mme, "scores": official_mme(args.mme, mme)},
        }
        FIXTURE.write_text(json.dumps(fixture) + "\n")
        print(f"wrote {FIXTURE}")


def assert_close(ours: dict[str, float], theirs: dict[str, float]) -> None:
    for name, value in theirs.items():
        assert abs(ours[name] - value) < 1e-9, (name, ours[name], value)


if __name__ == "__main__":
    main()
