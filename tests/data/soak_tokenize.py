"""Soak of `being-vl tokenize`, too long for the tests: kill -9 at random moments, then the same bytes.

    python tests/data/soak_tokenize.py --kills 30

Every third run works with two processes. Prints one line of JSON, and fails with an assertion.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from data_fixtures import folder_bytes, forked, make_checkpoint, make_codes, make_rows, write_rows

from being_vl.cli import main as being_vl_command


def tokenize(folder: Path, workers: int) -> int:
    """Run the command in this process; its status."""
    with contextlib.redirect_stderr(io.StringIO()):
        return being_vl_command(
            ["tokenize", "--checkpoint", str(folder / "checkpoint"), "--data", str(folder / "rows.jsonl"),
             "--codes", str(folder / "codes"), "--output", str(folder / "out"), "--shard-size", "40",
             "--workers", str(workers), "--on-missing", "skip"]
        )  # fmt: skip


def killed(folder: Path, workers: int, seconds: float) -> bool:
    """Start the command in a child, kill it after so long; whether the kill hit it while it ran."""
    child = forked(lambda: tokenize(folder, workers))
    time.sleep(seconds)
    helpers = psutil.Process(child).children(recursive=True)  # a finished child is not gone yet
    os.kill(child, signal.SIGKILL)
    outcome = os.waitpid(child, 0)[1]
    _, alive = psutil.wait_procs(helpers, timeout=30)
    assert not alive, f"processes that outlived their parent: {alive}"
    assert os.WIFSIGNALED(outcome) or outcome == 0, outcome
    return os.WIFSIGNALED(outcome)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    args = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP does not survive the forks
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint")
        rows = make_rows([*make_codes(folder / "codes", 40), "missing.png"], 1600)
        write_rows(folder / "rows.jsonl", rows)
        started = time.perf_counter()
        assert tokenize(folder, 0) == 0
        seconds = time.perf_counter() - started
        wanted = folder_bytes(folder / "out")
        shards = sum(name.endswith(".arrow") for name in wanted)
        shutil.rmtree(folder / "out")
        kills, runs, half_written, found = 0, 0, 0, []
        while kills < args.kills:
            workers = 0 if kills % 3 else 2
            longest = seconds / 2 if workers == 0 else seconds + 8  # processes take time to start
            kills += killed(folder, workers, float(rng.uniform(0, longest)))
            half_written += len(list((folder / "out").glob("*.tmp")))
            found.append(len(list((folder / "out").glob("*.arrow"))))
            print(f"{kills} kills, {found[-1]} of {shards} shards", file=sys.stderr, flush=True)
            if found[-1] == shards or kills == args.kills:
                assert tokenize(folder, 0) == 0
                assert folder_bytes(folder / "out") == wanted
                runs += 1
                shutil.rmtree(folder / "out")
        print(json.dumps({"kills": kills, "completed_runs": runs, "shards": shards, "shards_at_kills": found,
                          "half_written_files_seen": half_written,
                          "undisturbed_seconds": round(seconds, 2)}))  # fmt: skip


if __name__ == "__main__":
    main()
