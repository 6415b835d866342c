"""The dispatcher: fast help, one line and status 2 on bad input."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

import pytest

from being_vl.cli import COMMANDS, main


def run(*args: str, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "being_vl", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
    )


def test_help_is_quick_and_lists_every_command():
    def cpu_seconds() -> float:
        before = os.times()
        assert run("--help").returncode == 0
        after = os.times()
        return (
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )

    assert statistics.median(cpu_seconds() for _ in range(3)) < 0.5
    text = run("--help").stdout
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom being_vl.cli import main\nmain(['--help'])\n"
        "heavy = {'torch', 'transformers', 'numba', 'numpy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_a_config(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: being-vl {name} ")
    assert "--config" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_option(name):
    done = run(name, "--no-such-option", "1")
    assert done.returncode == 2
    assert "no-such-option" in done.stderr or "no_such_option" in done.stderr


def test_unknown_command():
    done = run("trian")
    assert done.returncode == 2
    assert "no command 'trian'" in done.stderr


def test_no_command_shows_the_usage():
    assert main([]) == 2


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("being-vl 0.")


def test_config_file_is_overridden_by_flags(tmp_path):
    (tmp_path / "options.yaml").write_text("minutes: 2.5\nseed: 7\n")
    done = run(
        "quickstart", "--config", str(tmp_path / "options.yaml"), "--seed", "8", "--print_config"
    )
    assert done.returncode == 0
    assert "minutes: 2.5" in done.stdout and "seed: 8" in done.stdout


def test_unknown_key_in_a_config_file(tmp_path):
    (tmp_path / "options.yaml").write_text("minuets: 2.5\n")
    done = run("quickstart", "--config", str(tmp_path / "options.yaml"))
    assert done.returncode == 2
    assert "minuets" in done.stderr


def test_traceback_on_request(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("quickstart", "--output", str(tmp_path / "file"), BEING_VL_DEBUG="1")
    assert "Traceback" in done.stderr
