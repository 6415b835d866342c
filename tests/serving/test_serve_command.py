"""`being-vl serve` as a process: a short soak of good and broken requests, and what it refuses to start with."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from being_vl.cli import main


def test_soak() -> None:
    """Sixty requests from eight clients, a tenth of them broken, and a stop by SIGTERM during one more."""
    pytest.importorskip("being_vl.serving.server.app", reason='needs pip install "being-vl[serve]"')
    script = Path(__file__).with_name("soak_server.py")
    command = [sys.executable, str(script), "--requests", "60", "--clients", "8", "--port", "8594"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
    assert "54 good: 200" in run.stdout
    assert f"status 200, exit status {-signal.SIGTERM}" in run.stdout


def test_what_it_does_not_start_with(tmp_path: Path, capsys) -> None:
    pytest.importorskip("being_vl.serving.server.app", reason='needs pip install "being-vl[serve]"')
    assert main(["serve", str(tmp_path)]) == 2
    assert "no config.json" in capsys.readouterr().err
