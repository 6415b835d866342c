"""The benchmarks' rules: by hand, and beside what the official scripts gave (scoring_fixture.json)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from being_vl.evaluation.scoring import (
    exact_match_scores,
    mme_answer,
    mme_scores,
    normalize_vqa_answer,
    pairwise_table,
    pope_answer,
    pope_scores,
    vqa_accuracy,
    vqa_scores,
)
from being_vl.evaluation.scoring.yes_no import exact_yes_no

FIXTURE = json.loads((Path(__file__).parent / "scoring_fixture.json").read_text())


def test_vqa_accuracy_is_the_official_scripts():
    for case in FIXTURE["vqa"]:
        assert vqa_accuracy(case["answer"], case["truths"]) == pytest.approx(case["accuracy"]), case


def test_vqa_accuracy_by_hand():
    """Three of ten said cat: left out are one of the three (2/3) three times, another (1) seven times."""
    truths = ["cat"] * 3 + ["dog"] * 7
    assert vqa_accuracy("The cat.", truths) == pytest.approx((3 * 2 / 3 + 7 * 1) / 10)
    assert vqa_accuracy("dog", truths) == 1.0
    assert vqa_accuracy("cow", truths) == 0.0


def test_vqa_answers_of_one_mind_are_compared_as_they_are():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("Yes", ["yes"] * 10, normalize_unanimous=True) == 1.0


@pytest.mark.parametrize(
    "text, normalized",
    [
        ("Two dogs", "2 dogs"),
        ("An apple, a pear", "apple pear"),
        ("1,000", "1000"),
        ("red/blue", "red blue"),
        ("dont know", "don't know"),
        ("wouldnt've", "wouldn't've"),
        ("2.5 m.", "2.5 m"),
        ("none", "0"),
    ],
)
def test_vqa_normalization(text, normalized):
    assert normalize_vqa_answer(text) == normalized


def test_vqa_scores_by_type():
    scores = vqa_scores(["yes", "2"], [["yes"] * 10, ["3"] * 10], ["yes/no", "number"])
    assert scores == {"accuracy": 50.0, "accuracy/number": 0.0, "accuracy/yes/no": 100.0}


def test_vqa_needs_human_answers():
    with pytest.raises(ValueError, match="truths"):
        vqa_accuracy("yes", [])


def test_pope_is_the_official_script():
    case = FIXTURE["pope"]
    assert pope_scores(case["answers"], case["truths"]) == pytest.approx(case["scores"])


def test_pope_by_hand():
    """Said yes, yes, no, yes where yes, no, no, yes is right, in two categories."""
    answers = ["Yes.", "It is.", "no, it is not", "yes"]
    scores = pope_scores(
        answers, ["yes", "no", "no", "yes"], ["random", "random", "popular", "popular"]
    )
    assert scores["accuracy"] == 75.0
    assert scores["precision"] == pytest.approx(200 / 3)
    assert scores["recall"] == 100.0
    assert scores["f1"] == pytest.approx(80.0)
    assert scores["yes_ratio"] == 75.0
    assert (scores["accuracy/random"], scores["accuracy/popular"]) == (50.0, 100.0)


def test_pope_with_lmms_evals_rule_knows_answers_that_are_neither():
    scores = pope_scores(["Yes.", " YES ", "no"], ["yes", "yes", "no"], read=exact_yes_no)
    assert scores["accuracy"] == pytest.approx(200 / 3)
    assert scores["recall"] == 100.0  # "Yes." is neither a hit nor a miss


@given(st.text())
def test_pope_reads_any_text(text):
    assert pope_answer(text) in ("yes", "no")


def test_no_positive_answer_scores_zero():
    scores = pope_scores(["no", "no"], ["yes", "no"])
    assert (scores["precision"], scores["recall"], scores["f1"]) == (0.0, 0.0, 0.0)


def test_mme_is_the_official_script():
    rows, expected = FIXTURE["mme"]["rows"], FIXTURE["mme"]["scores"]
    columns = [[row[name] for row in rows] for name in ("answer", "truth", "category", "image")]
    scores = mme_scores(*columns)
    assert {name: scores[f"score/{name}"] for name in expected} == pytest.approx(expected)
    assert scores["perception"] + scores["cognition"] == pytest.approx(sum(expected.values()))


def test_mme_by_hand():
    """Three of four right, one of two pictures wholly: 75 + 50."""
    scores = mme_scores(
        ["Yes", "no", "Yes, it is", "yes"], ["Yes", "No", "Yes", "No"], ["OCR"] * 4, [1, 1, 2, 2]
    )
    assert scores == {
        "accuracy/OCR": 75.0,
        "accuracy_plus/OCR": 50.0,
        "score/OCR": 125.0,
        "perception": 125.0,
    }


def test_mme_reads_the_first_four_characters():
    assert [mme_answer(text) for text in ("Yes", "I know", "Not", "It is a yes")] == [
        "yes",
        "other",
        "no",
        "other",
    ]


def test_mme_refuses_half_a_picture():
    with pytest.raises(ValueError, match=r"OCR: image 1 has 1 questions, must be 2"):
        mme_scores(["yes"], ["Yes"], ["OCR"], [1])


def test_exact_match_by_group():
    scores = exact_match_scores(["Yes.", "red"], ["yes", "blue"], ["yes_no", "color"])
    assert scores == {"accuracy": 50.0, "accuracy/color": 0.0, "accuracy/yes_no": 100.0}


def test_labels_other_than_yes_and_no_are_refused():
    with pytest.raises(ValueError, match="got 'maybe'"):
        pope_scores(["yes"], ["maybe"])


@pytest.mark.parametrize("score", [exact_match_scores, pope_scores, vqa_scores])
def test_no_question_is_an_error(score):
    with pytest.raises(ValueError, match="at least one question"):
        score([], [])


def test_answers_and_truths_go_together():
    for score, truths in (
        (exact_match_scores, ["a"]),
        (pope_scores, ["no"]),
        (vqa_scores, [["a"]]),
    ):
        with pytest.raises(ValueError):
            score(["yes", "no"], truths)


def test_pairwise_table():
    verdicts = [
        {"verdict": "win", "level": "Perception"},
        {"verdict": "lose", "level": "Perception"},
        {"verdict": "tie", "level": "Creation"},
        {"verdict": "win", "level": "Creation"},
    ]
    table = pairwise_table(verdicts)
    assert list(table) == ["Perception", "Creation", "all"]
    assert table["Perception"] == {"win": 1, "tie": 0, "lose": 1, "win_rate": 0.5}
    assert table["all"] == {"win": 2, "tie": 1, "lose": 1, "win_rate": 0.5}


def test_pairwise_verdicts_are_checked():
    with pytest.raises(ValueError, match="verdict 2: 'verdict' must be one of win, tie, lose"):
        pairwise_table([{"verdict": "win"}, {"verdict": "draw"}])
    with pytest.raises(ValueError, match="verdict 1: 'verdict' must be one of win, tie, lose"):
        pairwise_table(["win"])
    with pytest.raises(ValueError, match="no verdicts"):
        pairwise_table([])
