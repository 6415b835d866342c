"""The commands of docs/findings.md run as they stand, but for a tiny size and another folder; its numbers are
those of the committed results."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "findings.md"
FIGURES = ROOT / "docs" / "figures"
COMMANDS = re.findall(r"^python (experiments/\S+\.py.*)$", PAGE.read_text(), re.MULTILINE)


def test_the_page_names_every_experiment() -> None:
    scripts = {path.name for path in (ROOT / "experiments").glob("*.py")} - {"experiment_tools.py"}
    assert {Path(shlex.split(command)[0]).name for command in COMMANDS} == scripts


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, *shlex.split(command), "--quick", "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = [path for path in tmp_path.glob("*.json") if json.loads(path.read_text())]
    assert results, "no results were written"
    for path in results:
        committed = json.loads((FIGURES / path.name).read_text())
        assert committed[0].keys() == json.loads(path.read_text())[0].keys(), path.name


def test_figure2_goes_on_where_it_was(tmp_path: Path) -> None:
    """A second command does nothing that the first has done, and takes up what it has not."""
    options = "--quick --sizes [small] --sources [rows-1] --tokens [bpe] --positions"
    texts = []
    for positions in ("[plain]", "[plain,cell]"):
        run = subprocess.run(
            [sys.executable, "experiments/figure2.py", *shlex.split(options), positions,
             "--output", str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        texts.append(run.stdout)
    assert "bpe_plain" in texts[0] and "bpe_plain" not in texts[1] and "bpe_cell" in texts[1]
    assert len(json.loads((tmp_path / "figure2.json").read_text())) == 2


def test_positions_are_those_of_the_model(monkeypatch) -> None:
    """The experiment's anchors are the library's grid positions."""
    import numpy as np
    import torch

    from being_vl import ImageBPE
    from being_vl.image_grid_positions import image_token_positions
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
