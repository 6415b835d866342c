"""Small images by the local engine and by Ray with two workers: the same bytes, killed in between, and how long each takes.

python tests/data/soak_cluster.py --count 100000 --kills 10 --folder FOLDER
"""

from __future__ import annotations

import argparse
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
    subprocess.run(
        [sys.executable, "-m", "being_vl", *command], check=True, stderr=subprocess.DEVNULL
    )
    return shard_bytes(work / name), time.monotonic() - start


def kill(output: Path, count: int, shards: int, killed: list[int]) -> None:
    """Kill an actor each time that another share of the shards is there."""
    rng = random.Random(0)
    while len(killed) < count and not (output / "manifest.json").exists():
        time.sleep(0.05)
        if len(list(output.glob("codes-*"))) <= len(killed) * shards // (count + 2):
            continue
        actors = []
        for process in psutil.process_iter(["cmdline"]):
            if "ray::_Actor" in " ".join(process.info["cmdline"] or []):
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
    args = parser.parse_args()
    draw(args.folder / "images", args.count)
    make_quantizer().save_pretrained(args.folder / "vq")
    make_processor().save_pretrained(args.folder / "vq")
    size = ["--shard-size", str(args.shard_size)]
    local, local_seconds = encode(args.folder, "local", *size)
    ray, ray_seconds = encode(args.folder, "ray", "--engine", "ray", *size)
    print(
        f"local {local_seconds:.1f} s, ray {ray_seconds:.1f} s: {ray_seconds / local_seconds:.2f} times; same bytes: {ray == local}",
        flush=True,
    )
    killed: list[int] = []
    shards = -(-args.count // args.shard_size)
    thread = threading.Thread(
        target=kill, args=(args.folder / "killed", args.kills, shards, killed), daemon=True
    )
    thread.start()
    after, seconds = encode(args.folder, "killed", "--engine", "ray", *size)
    print(f"ray, {len(killed)} actors killed: {seconds:.1f} s; same bytes: {after == local}")
    return 0 if ray == after == local and len(killed) == args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
