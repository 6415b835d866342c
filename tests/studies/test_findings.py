"""The commands of docs/findings.md run as they stand, but for a tiny size and another folder; its losses are those
of the committed results."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "findings.md"
FIGURES = ROOT / "docs" / "figures"
# All but dropout.py, which needs whole quickstarts: its command goes on in a second line.
COMMANDS = re.findall(r"^python (experiments/\S+\.py.*)(?<!\\)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_names_every_experiment() -> None:
    # The GPU command has its own page, drawings have theirs, and the README its picture's.
    others = {"example_checkpoint.py", "experiment_tools.py", "gpu.py", "readme_picture.py"}
    others |= {
        f"drawings_{name}.py"
        for name in ("images", "judge", "merges", "parts", "quantizers", "smollm2", "starts")
    }
    others |= {"dropout.py", "lpips_alex.py"}
    scripts = {path.name for path in (ROOT / "experiments").glob("*.py")} - others
    assert {Path(shlex.split(command)[0]).name for command in COMMANDS} == scripts


def test_the_losses_are_those_of_the_results() -> None:
    """Every mean and spread of Figure 2, and the last of the propositions, stand on the page."""
    found: dict[tuple, list[float]] = {}
    for row in json.loads((FIGURES / "figure2.json").read_text()):
        names = ("source", "size", "batch_size", "learning_rate", "tokens", "positions")
        found.setdefault(tuple(row[name] for name in names), []).append(
            row["optimum"] + row["excess"]
        )
    for row in json.loads((FIGURES / "propositions.json").read_text()):
        found.setdefault((row["source"],), []).append(row["losses"][-1])
    page = PAGE.read_text()
    for name, losses in found.items():
        spread = f" ± {statistics.stdev(losses):.4f}" if len(losses) > 1 else ""
        text = f"{statistics.mean(losses):.4f}{spread}"
        assert text in page, (name, text)


def test_the_table_of_dropout_is_that_of_the_results(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from dropout import table

    rows = json.loads((FIGURES / "dropout.json").read_text())
    assert "\n".join(table(rows)) in PAGE.read_text()


def run(command: str, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of the page in this process, at a tiny size."""
    words = [*shlex.split(command), "--quick", "--output", str(output)]
    script = ROOT / words[0]
    monkeypatch.setattr(sys, "argv", [str(script), *words[1:]])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, tmp_path: Path, monkeypatch) -> None:
    run(command, tmp_path, monkeypatch)
    results = list(tmp_path.glob("*.json"))
    assert results, "no results were written"
    for path in results:
        committed = json.loads((FIGURES / path.name).read_text())
        assert committed[0].keys() == json.loads(path.read_text())[0].keys(), path.name


def test_figure2_goes_on_where_it_was(tmp_path: Path, monkeypatch, capsys) -> None:
    """A second command does nothing that the first has done, and takes up what it has not."""
    options = "--sizes [small] --sources [rows-1] --tokens [bpe] --positions"
    printed = []
    for positions in ("[plain]", "[plain,cell]"):
        run(f"experiments/figure2.py {options} {positions}", tmp_path, monkeypatch)
        printed.append(capsys.readouterr().out)
    assert "bpe_plain" in printed[0] and "bpe_plain" not in printed[1]
    assert "bpe_cell" in printed[1]
    assert len(json.loads((tmp_path / "figure2.json").read_text())) == 2


def test_figure2_takes_the_grid_of_the_paper(tmp_path: Path, monkeypatch) -> None:
    """Table B.1's decoders, as far as their heads divide their width, and its batches; a head has even dimensions."""
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from figure2 import Setting, all_settings, figure_parser, make_model

    words = ["--sizes", "[grid]", "--batches", "[8,16,32]", "--sources", "[rows-1]", "--tokens", "[raw]",
             "--positions", "[plain]", "--seeds", "1"]  # fmt: skip
    settings = all_settings(figure_parser().parse_args(words))
    assert len(settings) == (2 + 3 + 2 + 4) * 4 * 3
    assert len({setting.name for setting in settings}) == len(settings)
    assert {setting.batch_size for setting in settings} == {8, 16, 32}
    config = make_model(Setting("rows-1", "raw", "plain", "30x6x2", 2e-3, 0), 0).config
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads)
    assert (*sizes, config.head_dim) == (30, 6, 2, 16)

    options = "--sizes [20x2x4] --sources [rows-1] --tokens [bpe] --positions [plain]"
    run(f"experiments/figure2.py {options}", tmp_path, monkeypatch)
    (row,) = json.loads((tmp_path / "figure2.json").read_text())
    assert row["size"] == "20x2x4"
    for wrong in ("10x2", "10x0x1", "tiny"):
        with pytest.raises(ValueError, match="DIMENSIONSxLAYERSxHEADS"):
            all_settings(figure_parser().parse_args(["--sizes", f"[{wrong}]"]))


def test_positions_are_those_of_the_model(monkeypatch) -> None:
    """The experiment's anchors are the library's grid positions."""
    import numpy as np
    import torch

    from being_vl import ImageBPE
    from being_vl.models.image_grid_positions import image_token_positions
    from being_vl.vocabulary import VocabularyLayout

    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    from experiment_tools import SOURCES
    from figure2 import Reader, Setting

    setting = Setting("mixed-1", "bpe", "cell", "small", 1e-2, 0, side=7)
    rng = np.random.default_rng(0)
    grids = SOURCES["mixed-1"].sample(300, 7, 7, rng)
    bpe = ImageBPE.train(grids, 8, 2)
    batch = Reader(bpe, setting)(grids[:1])
    expected = image_token_positions(
        batch["input_ids"],
        VocabularyLayout(1, 0, 2, 8),
        bpe,
        (7, 7),
        boi_token_id=0,
        eoi_token_id=-1,
    )
    assert torch.equal(batch["image_token_positions"], expected)
    assert batch["labels"][0, 0] == -100 and (batch["labels"][0, 1:] > 0).all()
