"""`being-vl ablate`: the grid, its tables and figures, and a tiny run that is stopped and goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from checkpoint_fixtures import CODEBOOK_SIZE, TEXT_TOKENIZERS, patch_vq, text_model
from data_fixtures import make_codes, write_rows

from being_vl.cli import main as being_vl_command
from being_vl.evaluation.easyvqa import Question
from being_vl.evaluation.easyvqa_files import caption
from being_vl.studies.ablation.cells import REGIMES, Cell, ablation_cells
from being_vl.studies.ablation.reporting import (
    FINDINGS,
    differences,
    markdown,
    summary,
    table_csv,
    verdict,
)
from being_vl.studies.ablation.running import AblationSettings, CellResult, read_result


def test_the_grid_is_the_papers_for_each_seed() -> None:
    cells = ablation_cells(8, ["sft", "pt-freeze+sft"], [0, 5], curve=[4, 2])
    assert [cell.name for cell in cells[:6]] == [
        "m0-sft-s0", "m8-sft-s0", "m0-pt-freeze+sft-s0", "m8-pt-freeze+sft-s0",
        "m2-pt-freeze+sft-s0", "m4-pt-freeze+sft-s0",
    ]  # fmt: skip
    assert len(cells) == len(set(cells)) == 12 and cells[6].seed == 5
    assert set(REGIMES) == {
        "sft",
        "sft-long",
        "pt-full+sft",
        "pt-freeze+sft",
        "pt-freeze+sft-freeze",
    }


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"regimes": ["ft"]}, "regimes must be of sft"),
        ({"regimes": []}, "regimes must be given"),
        ({"seeds": [1, 1]}, "seeds must be given, each once"),
        ({"merges": 0}, "merges must be positive"),
        ({"curve": [8]}, "merges must be positive and given once each"),
    ],
)
def test_a_bad_grid_is_refused(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        ablation_cells(**{"merges": 8, "regimes": ["sft"], "seeds": [0], **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rat": 1}, r"sft.learning_rat: no such option"),
        ({"seed": 1}, "sft.seed is set by"),
    ],
)
def test_options_of_a_stage_are_those_of_train(options, words) -> None:
    with pytest.raises(ValueError, match=words):
        AblationSettings(pretrain={}, sft=options)


def row(merges: int, regime: str, seed: int, accuracy: float) -> CellResult:
    return CellResult(
        merges, regime, seed, {"accuracy": accuracy, "accuracy/color": accuracy}, 10, 4.5, 16 + merges,
        {"sft": 3}, {"sft": 1.0}, 2.0, [0.1] * (16 + merges),
    )  # fmt: skip


def test_tables_of_made_up_rows() -> None:
    rows = [row(0, "sft", s, 50 + s) for s in range(3)]
    rows += [row(8, "sft", s, 60 + 3 * s) for s in range(3)]
    rows += [row(8, "pt-freeze+sft", s, 59 + 2 * s) for s in range(3)]
    first = summary(rows)[0]
    assert (first["merges"], first["training"], first["accuracy"], first["spread"]) == (
        0,
        "SFT",
        51,
        1,
    )
    found = {f.claim: differences(rows, f, 8) for f in FINDINGS}
    assert found["BPE beats VQ, SFT"] == {"BPE − VQ": [10, 12, 14]}
    assert found["two stages beat SFT alone"] == {"LLM+VQ+BPE": [-1, -2, -3]}
    assert found["freezing visual rows in SFT hurts"] == {}
    page = markdown(rows, 8)
    assert "| SFT | VQ | 4.5 | 3 | 51.0 | 1.0 | 3 |" in page
    assert (
        "| BPE beats VQ, SFT | BPE − VQ | +10.0, +12.0, +14.0 | +12.0 | as in the paper |" in page
    )
    lines = list(csv.DictReader(table_csv(rows).splitlines()))
    assert len(lines) == 9 and lines[0]["accuracy/color"] == "50.000"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1, 2, 3], "as in the paper"),
        ([-1, -2, -1.5], "against the paper"),
        ([5, -0.1, 5], "undecided"),
        ([9, 0.1, 0.1], "undecided"),
        ([1, 1], "too few seeds"),
        ([0, 0, 0], "undecided"),
    ],
)
def test_a_verdict_needs_seeds_of_one_sign_that_scatter_little(values, said) -> None:
    assert verdict(values) == said


@pytest.mark.parametrize(
    ("questions", "said"),
    [
        ([("what color is the circle?", "red")], "a red circle"),
        ([("is there a red shape?", "yes"), ("what shape is present?", "circle")], "a red circle"),
        ([("is there not a red shape?", "no"), ("is no circle present?", "no")], "a red circle"),
        ([("is there a red shape?", "no"), ("what shape is present?", "circle")], None),
        ([("what is the blue shape?", "rectangle")], "a blue rectangle"),
    ],
)
def test_captions_say_what_the_answers_say(questions, said) -> None:
    assert caption([Question(0, text, answer) for text, answer in questions]) == said


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    tokenizer = TEXT_TOKENIZERS["llama-3"]()
    text_model(tokenizer, tied=False).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    patch_vq().save_pretrained(folder / "vq")
    images = list(make_codes(folder / "codes"))
    rows = [
        {"image": image, "type": kind, "conversations": [
            {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": kind}]}
        for image in images for kind in ("red", "square")
    ]  # fmt: skip
    write_rows(folder / "rows.json", rows)
    return folder


def ablate(inputs: Path, output: Path, *flags: str) -> int:
    stage = ["max_steps", "2", "per_device_train_batch_size", "2", "logging_steps", "1"]
    stages = [
        text
        for name in ("pretrain", "sft")
        for option, value in zip(stage[::2], stage[1::2], strict=True)
        for text in (f"--{name}.{option}", value)
    ]
    return being_vl_command(
        ["ablate", "--output", str(output), "--base", str(inputs / "base"), "--quantizer", str(inputs / "vq"),
         "--codes", str(inputs / "codes"), "--sft-data", str(inputs / "rows.json"), "--test-data",
         str(inputs / "rows.json"), "--merges", "4", *stages, *flags]
    )  # fmt: skip


def test_a_tiny_grid_runs_goes_on_and_refuses_other_settings(inputs, tmp_path, capsys) -> None:
    output = tmp_path / "out"
    small = ["--regimes", "pt-freeze+sft", "--seeds", "0"]
    assert ablate(inputs, output, *small, "--json") == 0
    printed = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(r["merges"], r["regime"]) for r in printed] == [
        (0, "pt-freeze+sft"),
        (4, "pt-freeze+sft"),
    ]
    assert set(printed[0]["metrics"]) == {"accuracy", "accuracy/red", "accuracy/square"}
    assert printed[1]["tokens_per_image"] < printed[0]["tokens_per_image"]
    assert printed[0]["steps"] == {"pretrain-image": 2, "sft": 2}
    first = read_result(output / "rows" / f"{Cell(4, 'pt-freeze+sft', 0).name}.json")
    assert first.vocabulary == len(first.weights) == CODEBOOK_SIZE + 4
    assert first.questions == 12 and not (output / "work").exists()

    kept = output / "rows/m0-pt-freeze+sft-s0.json"
    before = kept.stat().st_mtime_ns
    lost = output / "rows/m4-pt-freeze+sft-s0.json"
    again = lost.read_text()
    lost.unlink()
    assert ablate(inputs, output, *small, "--curve-merges", "2") == 0
    assert kept.stat().st_mtime_ns == before  # finished rows are not run again
    fields = [
        {k: v for k, v in json.loads(t).items() if k != "seconds"}
        for t in (again, lost.read_text())
    ]
    assert fields[0] == fields[1]  # a seed has one result
    assert "| PT(freeze)+SFT | 2 |" in (output / "table.md").read_text()
    pytest.importorskip("matplotlib")
    assert (output / "figure-3a.png").stat().st_size > 1000
    assert (output / "figure-3b.png").stat().st_size > 1000

    capsys.readouterr()
    assert ablate(inputs, output, *small, "--sft.max_steps", "3") == 2
    assert "ablate.json: settings is" in capsys.readouterr().err


def test_own_data_is_given_whole(tmp_path, capsys) -> None:
    assert being_vl_command(["ablate", "--output", str(tmp_path), "--base", "x"]) == 2
    assert (
        "own data needs --quantizer, --codes, --sft-data, --test-data too"
        in capsys.readouterr().err
    )
