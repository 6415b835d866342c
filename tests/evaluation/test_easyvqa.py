"""The data of the quickstart: splits, types of question, scoring."""

from __future__ import annotations

import sys
from collections import Counter

import pytest

from being_vl.evaluation.easyvqa import Question, load_easyvqa
from being_vl.evaluation.scoring import exact_match_scores


def test_splits_are_disjoint_and_official():
    train, validation, test = (load_easyvqa(name) for name in ("train", "validation", "test"))
    assert (len(train.image_paths), len(validation.image_paths), len(test.image_paths)) == (
        3600,
        400,
        1000,
    )
    assert not set(train.image_paths) & set(validation.image_paths)
    assert len(train.questions) + len(validation.questions) == 38575
    assert len(test.questions) == 9673
    assert all("test" in path.split("/")[-3:] for path in test.image_paths.values())
    assert all("train" in path.split("/")[-3:] for path in train.image_paths.values())
    for split in (train, validation, test):
        assert {q.image_id for q in split.questions} <= set(split.image_paths)


def test_question_types():
    kinds = Counter(question.type for question in load_easyvqa("test").questions)
    assert kinds["yes/no"] == 7136  # the package's README says so
    assert set(kinds) == {"yes/no", "shape", "color"}


def test_validation_follows_the_seed():
    first, again, other = (set(load_easyvqa("validation", seed=s).image_paths) for s in (0, 0, 1))
    assert first == again != other


def accuracy(questions, answers):
    truths, groups = [q.answer for q in questions], [q.group for q in questions]
    return exact_match_scores(answers, truths, groups)


def test_accuracy_by_hand():
    questions = [Question(0, "?", a) for a in ("yes", "no", "circle", "teal")]
    scores = accuracy(questions, ["Yes.", "yes", " circle ", "blue"])
    parts = {"accuracy/yes_no": 50.0, "accuracy/shape": 100.0, "accuracy/color": 0.0}
    assert scores == {"accuracy": 50.0, **parts}


def test_accuracy_needs_one_answer_a_question():
    with pytest.raises(ValueError):
        accuracy([Question(0, "?", "yes")], [])
    with pytest.raises(ValueError, match="at least one question"):
        accuracy([], [])


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ImportError, match="pip install easy-vqa"):
        load_easyvqa("train")


def test_unknown_split():
    with pytest.raises(ValueError, match="got 'val'"):
        load_easyvqa("val")
