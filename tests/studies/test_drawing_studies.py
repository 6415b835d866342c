"""The studies on drawings run at a tiny size on stand-in drawings, and go on where they were; the pages have their tables."""

import json
import runpy
import sys
from pathlib import Path

import pytest
from drawing_fixtures import draw_all

from being_vl.studies.drawings import TYPES, write_drawings

ROOT = Path(__file__).parents[2]
FIGURES = ROOT / "docs" / "figures"


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("benchmark")
    write_drawings(draw_all(folder / "source"), folder / "drawings")
    return folder / "drawings"


@pytest.fixture
def run(monkeypatch, benchmark: Path, tmp_path: Path):
    """Runs a study and returns its results."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))

    def call(name: str, *options: object) -> dict:
        words = [
            "--drawings",
            benchmark,
            "--output",
            tmp_path,
            "--work",
            tmp_path / "work",
            *options,
        ]
        script = ROOT / "experiments" / f"{name}.py"
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, words), "--quick"])
        runpy.run_path(str(script), run_name="__main__")
        return json.loads(next(tmp_path.glob("*.json")).read_text())

    return call


def test_merges(run, benchmark: Path, capsys) -> None:
    options = ("--merges", "[8]", "--steps", 4, "--batch", 2)
    found = run("drawings_merges", *options)
    printed = capsys.readouterr().out
    assert [(row["merges"], row["equal"]) for row in found["runs"]] == [
        (0, "steps"),
        (8, "steps"),
        (8, "time"),
    ]
    plain, merged, timed = found["runs"]
    assert plain["tokens"] == 256 > merged["tokens"] == timed["tokens"]
    assert plain["questions"] == len(json.loads((benchmark / "test" / "questions.json").read_text()))  # fmt: skip
    assert plain["steps"] == merged["steps"] == 4
    assert timed["steps"] == round(4 * plain["cpu_seconds"] / merged["cpu_seconds"])
    assert all(set(row["accuracy"]) == {"accuracy", *(f"accuracy/{kind}" for kind in TYPES)} for row in found["runs"])  # fmt: skip
    assert "$ being-vl train" in printed
    assert run("drawings_merges", *options) == found
    assert "$ being-vl train" not in capsys.readouterr().out


def test_starts(run, benchmark: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        from drawings_merges import make_base
    finally:
        sys.path.pop(0)
    make_base(benchmark / "train" / "questions.json", tmp_path / "base", 0)
    found = run("drawings_starts", "--base", tmp_path / "base", "--steps", 2, "--batch", 2, "--held_out", 2)  # fmt: skip
    rows = found["runs"]
    from drawings_starts import STARTS

    assert [row["start"] for row in rows] == list(STARTS)
    assert all(row["steps"] == 2 and row["answers_after"] > 0 for row in rows)
    before = {row["start"]: row["text_before"]["text_loss"] for row in rows}
    assert before["mean_text"] < before["normal"]


@pytest.mark.parametrize("name", ["drawings_merges", "drawings_starts"])
def test_the_page_has_the_table_of_the_results(name: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = __import__(name)
    found = json.loads((FIGURES / f"{name.replace('_', '-')}.json").read_text())
    guess = [found["settings"]["without_looking"]] if "merges" in name else []
    page = (ROOT / "docs" / "drawings.md").read_text()
    assert "\n".join(module.table(found["runs"], *guess)) in page
