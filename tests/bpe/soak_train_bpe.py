"""Kill `being-vl train-bpe` at random moments: it must end with the bytes of an undisturbed run.

    python tests/bpe/soak_train_bpe.py --kills 100

Each run is killed (SIGKILL, the whole process) after a random time, and started again in the same folder
until it finishes; then the folder is emptied and it begins anew, until there have been enough kills.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def command(codes: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "being_vl", "train-bpe", "--codes", str(codes), "--output", str(output),
        "--codebook-size", "64", "--num-merges", "3000", "--checkpoint-every", "0.05",
    ]  # fmt: skip


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "image_bpe.json").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        steps = np.random.default_rng(0).integers(-1, 2, (2, 600, 32, 32))
        np.save(
            folder / "codes.npy", ((steps[0].cumsum(1) + steps[1].cumsum(2)) % 64).astype(np.int16)
        )
        started = time.monotonic()
        subprocess.run(
            command(folder / "codes.npy", folder / "whole"), check=True, capture_output=True
        )
        whole, seconds = digest(folder / "whole"), time.monotonic() - started
        kills = finished = resumed = 0
        output = folder / "killed"
        while kills < args.kills:
            resumed += (output / "checkpoint.json").exists()
            run = subprocess.Popen(
                command(folder / "codes.npy", output),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                status = run.wait(timeout=rng.uniform(0, 1.2 * seconds))
            except subprocess.TimeoutExpired:
                run.kill()
                run.wait()
                kills += 1
                continue
            if status != 0 or digest(output) != whole:
                sys.exit(f"after {kills} kills: status {status}, folder {sorted(output.iterdir())}")
            finished += 1
            shutil.rmtree(output)
        subprocess.run(command(folder / "codes.npy", output), check=True, capture_output=True)
        if digest(output) != whole:
            sys.exit(f"the last run differs after {kills} kills")
    print(
        f"{kills} kills, {resumed} runs began from a checkpoint, {finished + 1} finished: all the same bytes"
    )


if __name__ == "__main__":
    main()
