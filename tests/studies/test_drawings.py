"""The benchmark of drawings: made of a stand-in folder, its answers are what the drawings show, and its split holds."""

import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from drawing_fixtures import INKS, draw, draw_all
from PIL import Image

from being_vl.evaluation.tasks import load_task
from being_vl.studies import drawings


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return draw_all(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def benchmark(source: Path, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("benchmark") / "drawings"
    drawings.write_drawings(source, output, side=32)
    return output


def rows_of(benchmark: Path, split: str) -> list[dict]:
    return json.loads((benchmark / split / "questions.json").read_text())


def test_counts(benchmark: Path) -> None:
    facts = json.loads((benchmark / "drawings.json").read_text())
    assert facts["left_out"] == {
        "of no kind, or empty": 6,
        "the same pixels as another": 4,
        "too few or more than enough of the kind": 5,
        "unreadable": 1,
    }
    # 30 each, and of the six near ones the two that are not the same.
    assert {kind: sum(n) for kind, n in facts["kinds"].items()} == {"bird": 30, "fruit": 30, "tool": 32}  # fmt: skip
    for split in ("train", "test"):
        images = list((benchmark / split / "images").iterdir())
        assert len(images) == facts["drawings"][split] > 0
        assert len(rows_of(benchmark, split)) == 4 * len(images)
        assert all(Image.open(path).size == (32, 32) for path in images)


def test_answers_are_what_the_drawing_shows(benchmark: Path) -> None:
    kinds = {"animals": "bird", "food": "fruit", "tools": "tool"}
    said = Counter()
    for row in rows_of(benchmark, "train") + rows_of(benchmark, "test"):
        question, answer = (
            turn["value"].removeprefix("<image>\n") for turn in row["conversations"]
        )
        kind = kinds[row["id"].partition("/")[0]]
        if row["type"] == "kind":
            assert answer == kind
        elif row["type"] == "yes_no":
            asked = re.fullmatch(r"is this of the kind (\w+)\?", question)[1]
            assert (answer == "yes") == (asked == kind)
            said[answer] += 1
        elif row["type"] == "which":
            two = re.fullmatch(r"is the kind (\w+) or (\w+)\?", question).groups()
            assert kind in two and two[0] != two[1] and answer == kind
            said[two.index(kind)] += 1
        else:
            file = (
                benchmark
                / ("train" if row in rows_of(benchmark, "train") else "test")
                / row["image"]
            )
            ink = np.asarray(Image.open(file)).reshape(-1, 3).astype(int)
            ink = ink[ink.sum(1) < 400]
            distance = {name: np.abs(np.array(value) - ink).sum() for name, value in INKS.items()}
            assert answer == min(distance, key=distance.get)
    assert min(said["yes"], said["no"]) > 30 and min(said[0], said[1]) > 30  # of 92


def test_near_duplicates_lie_on_one_side(benchmark: Path) -> None:
    sides = {
        split for split in ("train", "test") for row in rows_of(benchmark, split) if "near" in row["id"]
    }  # fmt: skip
    assert len(sides) == 1


def test_groups_join_through_a_third_picture() -> None:
    page = np.full((32, 32, 3), 255, np.uint8)
    first, last, other = page.copy(), page.copy(), page.copy()
    first[4:20, 4:20] = 0
    middle = first.copy()
    middle[4:20, 20:21] = 0
    last[4:20, 4:22] = 0
    other[22:30, 2:30] = 0
    # 17 and 16 columns differ by 1/17 of the ink, 18 and 16 by 1/9, each less than 0.12.
    assert drawings.near_duplicates([first, other, last, middle]).tolist() == [0, 1, 0, 0]
    assert drawings.near_duplicates([first, other, last, middle], near=0.07).tolist() == [
        0,
        1,
        0,
        0,
    ]
    assert drawings.near_duplicates([first, other, last], near=0.07).tolist() == [0, 1, 2]


def test_it_is_the_same_again(source: Path, benchmark: Path, tmp_path: Path) -> None:
    drawings.write_drawings(source, tmp_path / "again", side=32)
    for path in sorted(benchmark.rglob("*.*")):
        assert (tmp_path / "again" / path.relative_to(benchmark)).read_bytes() == path.read_bytes()


def test_eval_reads_it(benchmark: Path) -> None:
    task = load_task("llava", benchmark / "test" / "questions.json")
    assert {example.group for example in task.examples} == set(drawings.TYPES)
    scores = task.score(task.examples, [example.target for example in task.examples])
    assert scores == {"accuracy": 100, **{f"accuracy/{kind}": 100 for kind in drawings.TYPES}}


def test_titles() -> None:
    assert drawings.title_of("wooden_table_benji_park_01") == "wooden table"
    assert drawings.title_of("arrow-up-red_benji_park_01") == "arrow up red"
    assert drawings.title_of("ganson_01") == "ganson"  # a name is left something
    assert drawings.title_of("002") == ""


@pytest.mark.parametrize(
    "folder, kind",
    [
        ("animals/mammals/dogs", "mammal"), ("food/fruit", "fruit"), ("food/dairy", "dish"),
        ("animals", None), ("unsorted", None),
    ],
)  # fmt: skip
def test_the_longest_folder_decides_the_kind(folder: str, kind: str | None) -> None:
    assert drawings.kind_of(folder) == kind


def test_colors() -> None:
    rgb = np.zeros((10, 10, 3), np.uint8)
    rgb[:] = (255, 255, 255)
    alpha = np.full((10, 10), 255, np.uint8)
    assert drawings.main_color(rgb, alpha) == "white"
    rgb[0] = INKS["blue"]  # a tenth of it
    assert drawings.main_color(rgb, alpha) == "blue"
    alpha[0] = 0
    assert drawings.main_color(rgb, alpha) == "white"


def test_a_folder_of_something_else(tmp_path: Path, monkeypatch, capsys) -> None:
    draw(tmp_path / "source/holiday/a.png", INKS["red"], 1)
    with pytest.raises(ValueError, match=r"--images .*source: both splits need drawings"):
        drawings.write_drawings(tmp_path / "source", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(sys, "argv", ["drawings", "--images", str(tmp_path / "source"), "--output", str(tmp_path / "out")])  # fmt: skip
    assert drawings.main() == 2
    assert "both splits need drawings" in capsys.readouterr().err
