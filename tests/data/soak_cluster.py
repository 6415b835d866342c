"""Small images by the local engine and by Ray with two workers: the same bytes, whatever is killed in between.

Says how long each takes, and the most memory of all its processes.

python tests/data/soak_cluster.py --count 100000 --kills 10 --folder FOLDER

Runs may be made one by one, `--runs local`, then `--runs ray`: what lies in FOLDER is compared with them.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from encode_fixtures import make_processor, make_quantizer, shard_bytes
from PIL import Image


def draw(folder: Path, count: int) -> None:
    for number in range(count):
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            coarse = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            Image.fromarray(coarse).resize((24, 24)).save(path)


def encode(work: Path, name: str, *options: str) -> tuple[dict[str, str], float]:
    command = [
        "encode",
        "--images",
        f"{work}/images",
        "--quantizer",
        f"{work}/vq",
        "--device",
        "cpu",
    ]
    command += ["--output", f"{work}/{name}", "--workers", "2", *options]
    start = time.monotonic()
    run = subprocess.Popen([sys.executable, "-m", "being_vl", *command], stderr=subprocess.DEVNULL)
    peak = 0
    while run.poll() is None:
        peak = max(peak, memory(run.pid))
        time.sleep(1)
    if run.returncode:
        raise subprocess.CalledProcessError(run.returncode, command)
    seconds = time.monotonic() - start
    print(f"{name}: {seconds:.1f} s, at most {peak / 1e6:,.0f} MB", flush=True)
    return shard_bytes(work / name), seconds


def memory(pid: int) -> int:
    """Bytes of a process and all below it, those of Ray's daemons and actors too; what they share counts once."""
    found = 0
    try:
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                found += process.memory_full_info().pss
    except psutil.NoSuchProcess:  # it has just ended
        return 0
    return found


def kill(output: Path, count: int, shards: int, killed: list[int]) -> None:
    """Kill an actor each time that another share of the shards is there."""
    rng = random.Random(0)
    while len(killed) < count and not (output / "manifest.json").exists():
        time.sleep(0.05)
        if len(list(output.glob("codes-*"))) <= len(killed) * shards // (count + 2):
            continue
        actors = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if "ray::_Actor" in " ".join(process.cmdline()):
                    actors.append(process)
        if actors:
            victim = rng.choice(actors)
            victim.kill()
            killed.append(victim.pid)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--shard-size", type=int, default=2048)
    parser.add_argument("--folder", type=Path, required=True)
    names = ["local", "ray", "killed"]
    parser.add_argument("--runs", nargs="+", choices=names, default=names, help="all by default")
    args = parser.parse_args()
    draw(args.folder / "images", args.count)
    make_quantizer().save_pretrained(args.folder / "vq")
    make_processor().save_pretrained(args.folder / "vq")
    killed: list[int] = []
    shards = -(-args.count // args.shard_size)
    made, seconds = {}, {}
    for name in args.runs:
        options = ["--shard-size", str(args.shard_size), "--resume", "false"]
        options += [] if name == "local" else ["--engine", "ray"]
        if name == "killed":
            arguments = (args.folder / name, args.kills, shards, killed)
            threading.Thread(target=kill, args=arguments, daemon=True).start()
        made[name], seconds[name] = encode(args.folder, name, *options)
    if {"local", "ray"} <= seconds.keys():
        print(f"ray takes {seconds['ray'] / seconds['local']:.2f} times as long as local")
    if "killed" in args.runs:
        print(f"{len(killed)} actors killed")
    for name in names:
        if name not in made and (args.folder / name / "manifest.json").exists():
            made[name] = shard_bytes(args.folder / name)
    same = len({tuple(files.items()) for files in made.values()}) == 1
    print(f"same bytes of {', '.join(made)}: {same}")
    return 0 if same and (len(killed) == args.kills or "killed" not in args.runs) else 1


if __name__ == "__main__":
    sys.exit(main())
