"""The kernels of the image BPE, compiled by other processes before the commands that need them run.

On a new machine they take 14 CPU seconds. Those that train are compiled beside what comes before `being-vl train-bpe`,
which waits for the rest of them: it would only compile the same ones once more. Those that encode are compiled
meanwhile, as this process has nothing else to do.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

from ..commands import RunCommand

_FEW = "few = np.arange(512).reshape(2, 16, 16) % 3"
_TRAIN = "ImageBPE.train(few, num_merges=2, codebook_size=3)"
_ENCODE = "bpe = ImageBPE([[0, 1, 0, 1]], 3); bpe.decode(bpe.encode_batch(few)[0], 16, 16)"
_LONGEST_WAIT = 30.0  # seconds; on a busy machine the command compiles by itself


class Compiling:
    """Compiles as long as the context lasts; `run` takes commands to where their kernels are."""

    def __init__(self, run: RunCommand):
        self._run = run
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Compiling:
        # torch's threads wait for each other, and nobody waits for this yet
        self._start(_TRAIN, "import os; os.name == 'posix' and os.nice(10); ")
        return self

    def run(self, command: str, argv: list[str]) -> Any:
        """Run a command once the kernels that it needs are compiled."""
        needed = {"train-bpe": _TRAIN, "tokenize": _ENCODE}.get(command)
        if needed is not None:
            self._start(_ENCODE)
            self._wait(needed)
        return self._run(command, argv)

    def _start(self, work: str, before: str = "") -> None:
        if work not in self._processes:
            code = f"{before}import numpy as np; from being_vl.bpe import ImageBPE; {_FEW}; {work}"
            nothing = subprocess.DEVNULL
            self._processes[work] = subprocess.Popen(
                [sys.executable, "-c", code], stdout=nothing, stderr=nothing
            )

    def _wait(self, work: str) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._processes[work].wait(_LONGEST_WAIT)

    def __exit__(self, *error: object) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
