"""The quickstart's kernels are compiled beside it, and commands that need them wait."""

from __future__ import annotations

import pytest

from being_vl.studies.quickstart import compiling
from being_vl.studies.quickstart.compiling import Compiling


@pytest.fixture
def ran(monkeypatch, tmp_path) -> list:
    """Work of a moment that leaves a file; a command notes which files are there when it runs."""
    for name in ("train", "encode"):
        work = (
            f"import pathlib, time; time.sleep(1); pathlib.Path({str(tmp_path / name)!r}).touch()"
        )
        monkeypatch.setattr(compiling, f"_{name.upper()}", work)
    return []


def commands(ran: list, tmp_path):
    return lambda name, argv: ran.append((name, argv, {path.name for path in tmp_path.iterdir()}))


def test_commands_wait_for_their_kernels(ran, tmp_path):
    with Compiling(commands(ran, tmp_path)) as compiler:
        for name in ("encode", "train-bpe", "tokenize", "train-bpe"):
            compiler.run(name, [name])
    assert [(name, argv) for name, argv, _ in ran] == [
        (name, [name]) for name in ("encode", "train-bpe", "tokenize", "train-bpe")
    ]
    assert [files - {"encode"} for _, _, files in ran[:2]] == [set(), {"train"}]
    assert ran[2][2] == ran[3][2] == {"train", "encode"}


def test_a_run_that_goes_on_with_its_tokens_waits_for_those_alone(ran, tmp_path):
    with Compiling(commands(ran, tmp_path)) as compiler:
        compiler.run("tokenize", [])
    assert "encode" in ran[0][2]


def test_nobody_waits_for_ever_and_nothing_is_left_running(ran, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "_LONGEST_WAIT", 0.01)
    with Compiling(commands(ran, tmp_path)) as compiler:
        compiler.run("train-bpe", [])
        processes = list(compiler._processes.values())
        assert len(processes) == 2
    assert ran == [("train-bpe", [], set())]
    assert all(process.returncode is not None for process in processes)
