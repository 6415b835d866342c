"""experiments/gpu.py runs from end to end on a CPU, so that whoever has a GPU for minutes needs one command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "gpu.py"
PARTS = ("tests", "vq", "training", "generation", "study")


def run(*options: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_all_parts_on_a_cpu(tmp_path: Path) -> None:
    done = run("--device", "cpu", "--tiny", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for name in PARTS:
        content = json.loads((tmp_path / f"{name}.json").read_text())
        assert content["machine"]["device"].startswith("CPU")
        assert content["figures"][-1]["what"] == "whole part"
        assert not any("not_run" in figure for figure in content["figures"])
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    assert run("--page", str(page), "--output", str(tmp_path)).returncode == 0
    text = page.read_text()
    assert "not run" not in text.partition("gpu figures: begin")[2].partition("gpu figures: end")[0]
    assert text.count("pictures_per_second") == 1


def test_a_part_that_fails_is_named_and_stops_nothing(tmp_path: Path) -> None:
    """The folder of the study's file is a file: writing it fails, and the list of parts goes on."""
    (tmp_path / "vq.tmp").mkdir()
    done = run(
        "--device", "cpu", "--tiny", "--parts", "vq", "generation", "--output", str(tmp_path)
    )  # fmt: skip
    assert done.returncode == 1
    assert "FAILED vq: ended with 1" in done.stdout
    assert (tmp_path / "generation.json").is_file()


def test_lists_what_would_run() -> None:
    done = run("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [*PARTS, "in"]


def test_the_page_says_what_was_not_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "benchmarks.md").read_text())
    assert run("--page", str(page), "--output", str(tmp_path)).returncode == 0
    for name in PARTS:
        section = page.read_text().partition(f"### {name}: ")[2].partition("###")[0]
        assert "not run" in section, name
