"""Benchmarks of the image BPE: sizes, threads, and the dense algorithm, on the same data.

    python benchmarks/bpe.py                       # minutes, 2 GB: photographs, 4,000 grids, 8,192 merges
    python benchmarks/bpe.py --grids 120000 --skip-dense --repeats 5    # the same, larger; medians
    python benchmarks/bpe.py --data synthetic --grids 120000 --skip-dense
    python benchmarks/bpe.py --paper-scale         # 2.78 million grids, 24 GB

Every measurement runs in a process of its own, after a small run that loads the machine code. Times are CPU
seconds and wall seconds; memory is what the peak adds to the process before the measurement.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bpe_data
import bpe_dense
import numpy as np

CURVE = (0, 256, 1024, 2048, 4096, 8192)
PAPER_GRIDS = 2_780_000


def in_a_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, computed in a fresh process, so that peaks of memory do not mix."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def peak_bytes() -> int:
    """The most memory that this process has had; Linux hands ru_maxrss down to child processes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Meter:
    """CPU seconds, wall seconds, and bytes added to the peak."""

    def __enter__(self) -> Meter:
        self._bytes = peak_bytes()
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.cpu = round(time.process_time() - self._cpu, 3)
        self.wall = round(time.perf_counter() - self._wall, 3)
        self.bytes = peak_bytes() - self._bytes


def train_ours(
    path: str, codebook_size: int, num_merges: int, threads: int, **options: Any
) -> dict:
    from being_vl.bpe.training.trainer import train_merges

    grids = np.load(path, mmap_mode="r")
    few = np.asarray(grids[:64])
    train_merges(few, num_merges=64, codebook_size=codebook_size, num_threads=threads)
    train_merges(few, num_merges=64, codebook_size=codebook_size, num_threads=threads, max_cells=9)
    last = []
    with Meter() as meter:
        merges = train_merges(
            grids, num_merges=num_merges, codebook_size=codebook_size, num_threads=threads,
            progress=lambda progress: last.__setitem__(slice(None), [progress]), **options,
        )  # fmt: skip
    return {
        "cpu": meter.cpu,
        "wall": meter.wall,
        "bytes_a_code": round(meter.bytes / grids.size, 2),
        "merges": len(merges),
        "tokens_per_grid": round(last[0].tokens_per_grid, 1),
        "last_count": int(last[0].checkpoint.counts[-1]),
        "sha256": hashlib.sha256(merges.tobytes()).hexdigest()[:16],
        "rules": merges.tolist(),
    }


def train_dense(path: str, codebook_size: int, num_merges: int, steps: int) -> dict:
    """Some merges at the start; then at larger vocabularies, with the images as they are by then.

    A merge costs a pass over the matrix and one over the images. The matrix is as large as at each rank;
    the images stay longer than they would be, by less than 2 %, since only `steps` merges were made.
    """
    grids = np.load(path, mmap_mode="r")
    warm = bpe_dense.Dense(grids[:4], codebook_size, 4)
    for _ in range(3):
        warm.step()
    dense = bpe_dense.Dense(np.asarray(grids), codebook_size, num_merges)
    first = [dense.step() for _ in range(steps)]
    curve = {len(first) // 2: float(np.median(first[1:]))}
    for rank in (num_merges // 2, num_merges - 8):
        dense.size = codebook_size + rank
        curve[rank] = float(np.median([dense.step() for _ in range(5)]))
    ranks, seconds = list(curve), list(curve.values())
    total = float(np.interp(np.arange(num_merges), ranks, seconds).sum())
    return {"seconds_a_merge": curve, "cpu_extrapolated": round(total, 1)}


def encode_ours(path: str, rules: list, codebook_size: int, threads: int) -> dict:
    from being_vl import ImageBPE

    grids = np.load(path, mmap_mode="r")[:20_000]
    bpe = ImageBPE(np.array(rules, np.int32).reshape(-1, 4), codebook_size)
    bpe.encode_batch(np.asarray(grids[:8]), num_threads=threads)
    with Meter() as meter:
        bpe.encode_batch(grids, num_threads=threads)
    return {
        "grids_a_second": round(len(grids) / meter.wall),
        "a_cpu_second": round(len(grids) / meter.cpu),
    }


def tokens_held_out(
    path: str, rules: list, dense: list, codebook_size: int
) -> dict[int, dict[str, float]]:
    """Tokens per held-out grid with the first n merges of each scheme."""
    from being_vl import ImageBPE

    grids = np.load(path)
    table: dict[int, dict[str, float]] = {}
    for n in (256, 512, 1024, 2048, 4096, 8192):
        if n > len(rules):
            break
        bpe = ImageBPE(np.array(rules[:n], np.int32), codebook_size)
        table[n] = {"ours": float(np.mean([len(ids) for ids in bpe.encode_batch(grids)]))}
        if len(dense) >= n:
            table[n]["dense"] = bpe_dense.dense_tokens(grids, dense[:n], codebook_size)
    return table


def dense_rules(path: str, codebook_size: int, num_merges: int) -> list:
    dense = bpe_dense.Dense(np.load(path), codebook_size, num_merges)
    for _ in range(num_merges):
        dense.step()
    return dense.rules


def make_data(args: argparse.Namespace, folder: Path) -> tuple[str, str]:
    """Files of grids to train on, and held-out ones."""
    paths = str(folder / "train.npy"), str(folder / "held_out.npy")
    if args.data == "synthetic":
        training = np.lib.format.open_memmap(
            paths[0], mode="w+", dtype=np.int16, shape=(args.grids, 32, 32)
        )
        bpe_data.synthetic(training, noise=args.noise)
        held_out = np.empty((500, 32, 32), np.int16)
        bpe_data.synthetic(held_out, noise=args.noise, seed=1)
    elif args.data == "drawings":
        training, held_out = bpe_data.drawings(args.codes)
        training = training[: args.grids]
    else:
        training, held_out = bpe_data.photographs(args.grids, args.codes)
    if args.data != "synthetic":
        np.save(paths[0], training)
    np.save(paths[1], held_out)
    return paths


def report(name: str, result: dict) -> None:
    shown = {k: v for k, v in result.items() if k != "rules"}
    print(f"{name:<28} {json.dumps(shown)}", flush=True)


def medians(results: list[dict]) -> dict:
    """Of several runs: the times' medians and ranges, and what else the first one found."""
    times = {name: sorted(result[name] for result in results) for name in ("cpu", "wall")}
    ranges = {f"{name}_range": [values[0], values[-1]] for name, values in times.items()}
    return {
        **results[0],
        **{name: statistics.median(values) for name, values in times.items()},
        **(ranges if len(results) > 1 else {}),
    }


def compare(args: argparse.Namespace, folder: Path) -> None:
    training, held_out = make_data(args, folder)
    size, merges = args.codes, args.merges
    runs: dict[int, list[dict]] = {threads: [] for threads in args.threads}
    for number in range(args.repeats):
        for threads in args.threads[:: -1 if number % 2 else 1]:
            runs[threads].append(in_a_process(train_ours, training, size, merges, threads))
    ours = runs[args.threads[0]][0]
    for threads, results in runs.items():
        report(f"ours, {threads} thread(s)", medians(results))
    for threads in args.threads:
        encoded = in_a_process(encode_ours, training, ours["rules"], size, threads)
        report(f"encode, {threads} thread(s)", encoded)
    if args.growth:
        for n in CURVE[1:-1]:
            report(f"ours, {n} merges", in_a_process(train_ours, training, size, n, 1))
    rules = []
    if not args.skip_dense:
        dense = in_a_process(train_dense, training, size, merges, 12)
        report("dense", dense)
        one = in_a_process(train_ours, training, size, merges, 1)
        print(
            f"ours, one thread: {dense['cpu_extrapolated'] / one['cpu']:.0f} times the dense algorithm"
        )
        rules = in_a_process(dense_rules, training, size, args.dense_merges)
    table = in_a_process(tokens_held_out, held_out, ours["rules"], rules, size)
    for n, row in table.items():
        report(f"tokens held out, {n} merges", {k: round(v, 1) for k, v in row.items()})


def paper_scale(args: argparse.Namespace, folder: Path) -> None:
    """The paper's number of images; codes memory-mapped, memory bounded, all threads."""
    args.data, args.codes, args.grids = "synthetic", 8192, PAPER_GRIDS
    started = time.perf_counter()
    training, _ = make_data(args, folder)
    print(f"made {args.grids} grids in {time.perf_counter() - started:.0f} s", flush=True)
    options = {"memory_limit": int(args.memory_gb * 1e9)}
    result = in_a_process(_train_with, training, args.merges, max(args.threads), options)
    report("paper scale", result)


def _train_with(path: str, num_merges: int, threads: int, options: dict) -> dict:
    return train_ours(path, 8192, num_merges, threads, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--data", choices=("photographs", "drawings", "synthetic"), default="photographs"
    )
    parser.add_argument("--grids", type=int, default=4000)
    parser.add_argument("--codes", type=int, default=8192)
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--noise", type=float, default=0.05, help="of the synthetic fields")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=1, help="of training, by turns of threads")
    parser.add_argument("--dense-merges", type=int, default=256, help="for its tokens per grid")
    parser.add_argument("--growth", action="store_true", help="also with fewer merges")
    parser.add_argument("--skip-dense", action="store_true")
    parser.add_argument("--paper-scale", action="store_true")
    parser.add_argument("--memory-gb", type=float, default=19.0, help="for --paper-scale")
    parser.add_argument("--folder", type=Path, help="for the data; a temporary one by default")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        (paper_scale if args.paper_scale else compare)(args, Path(folder))


if __name__ == "__main__":
    main()
