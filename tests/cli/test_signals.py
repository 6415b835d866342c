"""Ctrl-C and SIGTERM: what a command has begun is undone, and one line and the exit status say so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

# A command of its own: `body` runs in place of what the command line names.
SCRIPT = """
import multiprocessing, os, sys, time
from being_vl import cli
from being_vl.files import new_folder

class Dropping:
    def __del__(self):
        ready()
        while time.monotonic() - began < 1:  # a loop: the signal is handled in here
            pass

def ready():
    global began
    began = time.monotonic()
    print("ready", flush=True)

def body():
{body}

cli._run = lambda argv: body() or 0
sys.argv = ["being-vl", "encode"]
sys.exit(cli.main())
"""
WRITES = """
    with new_folder(os.environ["OUTPUT"]) as folder:
        (folder / "half").touch()
        ready()
        time.sleep(60)
"""
UNDOES = """
    try:
        ready()
        time.sleep(60)
    finally:
        time.sleep(0.6)
        open(os.environ["OUTPUT"], "w").close()
"""
DROPS = """
    Dropping()
    time.sleep(60)
"""
STARTS_A_WORKER = """
    worker = multiprocessing.get_context("{method}").Process(target=time.sleep, args=(60,))
    worker.start()
    try:
        ready()
        worker.join()
    finally:
        worker.join(1)  # it would end by now
        assert worker.is_alive()
        worker.terminate()
        worker.join()
"""


def ended(body: str, output: Path, *signals: int) -> tuple[int, str]:
    """Exit status and standard error of a command whose process group gets the signals, 0.2 s apart."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(body=body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OUTPUT": str(output)},
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for number in signals:
        time.sleep(0.2)
        os.killpg(process.pid, number)
    _, error = process.communicate(timeout=20)
    return process.returncode, error


INTERRUPTED = (signal.SIGINT, 130, "interrupted")
TERMINATED = (signal.SIGTERM, -signal.SIGTERM, "terminated")


@pytest.mark.parametrize(
    "body, number, status, word",
    [
        pytest.param(WRITES, *INTERRUPTED, id="writes"),
        pytest.param(WRITES, *TERMINATED, id="writes-sigterm"),
        pytest.param(DROPS, *INTERRUPTED, id="drops"),
        pytest.param(DROPS, *TERMINATED, id="drops-sigterm"),
        pytest.param(STARTS_A_WORKER.format(method="fork"), *INTERRUPTED, id="forks"),
        pytest.param(STARTS_A_WORKER.format(method="forkserver"), *INTERRUPTED, id="forkserver"),
    ],
)
def test_a_signal_ends_a_command(body, number, status, word, tmp_path):
    assert ended(body, tmp_path / "out", number) == (status, f"being-vl encode: {word}\n")
    assert not list(tmp_path.iterdir())


def test_a_second_ctrl_c_does_not_disturb_what_the_first_undoes(tmp_path):
    done = ended(UNDOES, tmp_path / "undone", signal.SIGINT, signal.SIGINT)
    assert done == (130, "being-vl encode: interrupted\n")
    assert (tmp_path / "undone").exists()


def test_main_in_another_program_leaves_its_signals_alone():
    from being_vl.cli import main

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["--version"]) == 0
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
