"""Soak of `being-vl tokenize`, too long for the tests: kill -9 at random moments, then the same bytes.

    python tests/soak_tokenize.py --kills 30

Prints one line of JSON, and fails with an assertion.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from data_fixtures import folder_bytes, make_checkpoint, make_codes, make_rows, write_rows


def start(folder: Path, output: Path, workers: int) -> subprocess.Popen:
    """The command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "being_vl", "tokenize", "--checkpoint", folder / "checkpoint", "--data",
         folder / "rows.jsonl", "--codes", folder / "codes", "--output", output, "--shard-size", "40",
         "--num-workers", str(workers), "--on-missing", "skip"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint")
        rows = make_rows([*make_codes(folder / "codes", 40), "missing.png"], 3000)
        write_rows(folder / "rows.jsonl", rows)
        started = time.perf_counter()
        assert start(folder, folder / "out", 0).wait() == 0
        wanted = folder_bytes(folder / "out")
        seconds = time.perf_counter() - started
        shutil.rmtree(folder / "out")
        kills, runs, half_written, at = 0, 0, 0, []
        while kills < args.kills:
            run = start(folder, folder / "out", args.workers if kills % 2 else 0)
            time.sleep(float(rng.uniform(0.5, 1.2)) * seconds / 2)
            children = psutil.Process(run.pid).children() if run.poll() is None else []
            run.send_signal(signal.SIGKILL)
            outcome = run.wait()
            gone, alive = psutil.wait_procs(children, timeout=20)
            assert not alive, f"workers outlived their parent: {alive}"
            shards = len(list((folder / "out").glob("*.arrow")))
            if outcome == -signal.SIGKILL:
                kills += 1
                at.append(shards)
                half_written += len(list((folder / "out").glob("*.tmp")))
            if shards == len(wanted_shards(wanted)) or outcome == 0:
                assert start(folder, folder / "out", 0).wait() == 0
                assert folder_bytes(folder / "out") == wanted
                runs += 1
                shutil.rmtree(folder / "out")
        if (folder / "out").exists():
            assert start(folder, folder / "out", 2).wait() == 0
            assert folder_bytes(folder / "out") == wanted
            runs += 1
        print(
            json.dumps(
                {"kills": kills, "completed_runs_with_equal_bytes": runs, "shards": len(wanted_shards(wanted)),
                 "shards_at_each_kill": at, "half_written_files_seen": half_written, "cores": os.cpu_count()}
            )
        )  # fmt: skip


def wanted_shards(files: dict[str, str]) -> list[str]:
    return [name for name in files if name.endswith(".arrow")]


if __name__ == "__main__":
    main()
