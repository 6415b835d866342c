"""Every command's every file, by thousands of mutants: how each ended, how long it took, what memory.

    python tests/cli/soak_hostile.py --count 500 --seeds 0 1 2 3 --jobs 2 --output rows.jsonl
    python tests/cli/soak_hostile.py --only "^encode images/a.png$" --seeds 2 --first 17 --count 1

Each seed goes through all targets before the next begins, so that a run that is stopped has tried each equally.
Mutants of a target run one after another in a process that is watched: a hang is ended and counted, and so is a
crash, and the next one goes on in a new process. What went wrong is tried again alone in a new process, which also
is what `--first I --count 1` does. Times are of the processor, so that a machine that is busy, or that stops the
run for a while, is not blamed on a mutant. One line for each command, file and seed; the last lines are the total
and every kind of problem, with a mutant that shows it. The exit status is 1 if there was one. PYTHONPATH must name
the folders that setup.cfg gives pytest; the folder of temporary files is best in memory (TMPDIR=/dev/shm).
"""

from __future__ import annotations

import argparse
import functools
import gc
import importlib.util
import json
import multiprocessing as mp
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MOST_SECONDS, MOST_MEMORY = 2.0, 300e6
TICK, HANG = 2.0, 30.0  # seconds between two looks at a process, and of its processor time
STILL = 10  # looks at which a process that waits has done nothing


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000, help="mutants of a target and seed")
    parser.add_argument("--first", type=int, default=0, help="number of the first mutant")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", help="a pattern of the names of targets")
    parser.add_argument("--jobs", type=int, default=1, help="targets at a time")
    parser.add_argument(
        "--output", type=Path, help="JSON lines of the targets; those in it are not run again"
    )
    args = parser.parse_args()
    from hostile_commands import TARGETS

    numbers = [i for i, target in enumerate(TARGETS) if re.search(args.only, target.name)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch, "world")
        _make(world)
        work, done = mp.SimpleQueue(), mp.SimpleQueue()  # type: ignore[var-annotated]
        if args.output is not None and args.output.exists():
            rows = [json.loads(line) for line in args.output.read_text().splitlines()]
        found = {(row["seed"], row["target"]) for row in rows}
        tasks = [(s, i) for s in args.seeds for i in numbers if (s, i) not in found]
        for task in [*tasks, *[None] * args.jobs]:
            work.put(task)
        for job in range(args.jobs):
            mp.get_context("fork").Process(
                target=_share, args=(work, done, world, Path(scratch, f"scratch{job}"), args)
            ).start()
        for _ in tasks:
            rows.append(done.get())
            line = json.dumps(rows[-1])
            print(line, flush=True)
            if args.output is not None:
                with args.output.open("a") as file:
                    file.write(line + "\n")
    kinds: dict[str, list[str]] = {}
    for row in rows:
        for kind, examples in row["problems"].items():
            kinds.setdefault(f"{row['command']}: {kind}", []).extend(examples)
    total = {name: sum(row[name] for row in rows) for name in ("mutants", "refused", "read")}
    most = {name: max(row[name] for row in rows) for name in ("slowest", "memory")}
    print(json.dumps({"targets": len(numbers), **total, **most, "kinds of problems": len(kinds)}))
    for kind, examples in sorted(kinds.items(), key=lambda entry: -len(entry[1])):
        print(f"{len(examples):6} {kind}\n         {examples[0]}")
    return int(bool(kinds))


def _share(work: Any, done: Any, world: Path, scratch: Path, args: Any) -> None:
    while (task := work.get()) is not None:
        seed, number = task
        done.put(_fuzz(number, world, scratch, args.first, args.first + args.count, seed))


def _make(world: Path) -> None:
    """The world, and every command once: what is compiled and imported here need not be in each child."""
    from hostile_commands import TARGETS, Runner, make_world

    runner = Runner(make_world(world), world / "scratch")
    (world / "scratch").mkdir()
    runner.prepare()
    for target in {(target.command, target.argv): target for target in TARGETS}.values():
        runner.run(target, None)
    os.fsync = lambda descriptor: None  # nothing here outlives the machine
    yaml.safe_dump = functools.partial(yaml.dump, Dumper=yaml.CSafeDumper)
    find_spec = functools.cache(importlib.util.find_spec)
    importlib.util.find_spec = lambda name, package=None: find_spec(name, package)
    gc.collect()
    gc.freeze()  # what the commands left is walked over by no child's collections


def _work(connection: Any, number: int, world: Path, scratch: Path, seed: int, first: int, stop: int) -> None:  # fmt: skip
    from hostile_commands import TARGETS, Runner

    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)  # libraries in C and Rust write past sys.stderr
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    runner, target = Runner(world, scratch), TARGETS[number]
    normal = min(runner.run(target, None).seconds for _ in range(2))
    outcome = runner.run(target, None)
    connection.send(("normal", normal, outcome.status, outcome.line or outcome.problem))
    for index in range(first, stop):
        connection.send(("begins", index))
        _reset_peak()
        before = _memory("VmRSS")
        outcome = runner.run(target, random.Random(f"{seed} {target.name} {index}"))
        connection.send(
            ("ended", index, outcome.status, outcome.problem, outcome.seconds, _memory("VmHWM") - before, outcome.done, outcome.line)
        )  # fmt: skip
    connection.send(("done",))


def _fuzz(number: int, world: Path, scratch: Path, first: int, stop: int, seed: int) -> dict[str, Any]:  # fmt: skip
    from hostile_commands import TARGETS

    target = TARGETS[number]
    row: dict[str, Any] = {
        "target": number, "command": target.command, "file": target.file, "seed": seed, "mutants": 0, "refused": 0, "read": 0,
        "slowest": 0.0, "memory": 0.0, "seconds": time.monotonic(), "problems": {},
    }  # fmt: skip

    index = first
    while index < stop:
        wrong: list[tuple[int, str, str]] = []
        for at, kind, example in _batch(number, world, scratch, seed, index, stop, row):
            index = stop if at is None else at + 1
            if at is not None and kind:
                wrong.append((at, kind, example))
        for at, kind, example in wrong:
            kind = re.sub(r"[0-9]+", "9", kind.replace(str(scratch), ""))[:160]
            if stop - first > 1 and len(row["problems"].get(kind, "")) < 3:
                alone = list(_batch(number, world, scratch, seed, at, at + 1, dict(row)))
                if not any(kind for _, kind, _ in alone):
                    kind = f"only after others: {kind}"
            row["problems"].setdefault(kind, []).append(f"{target.name} #{seed} {at}: {example}")
    row["seconds"] = round(time.monotonic() - row["seconds"], 1)
    row["memory"] = round(row["memory"] / 1e6, 1)
    return row


def _batch(number: int, world: Path, scratch: Path, seed: int, first: int, stop: int, row: dict[str, Any]) -> Iterator[tuple[int | None, str, str]]:  # fmt: skip
    """Mutants in one new process: each one's number, and what was wrong with it. It ends early with a hang or a crash."""
    shutil.rmtree(scratch, ignore_errors=True)
    copy = scratch / "world"
    shutil.copytree(world, copy, symlinks=True)
    _repoint(copy, world)
    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(
        target=_work, args=(theirs, number, copy, scratch, seed, first, stop)
    )
    process.start()
    theirs.close()
    normal, begun = 0.0, first
    try:
        while True:
            if _hangs(ours, process.pid):
                row["mutants"] += 1
                yield begun, "hang", ""
                break
            what, *rest = ours.recv()
            if what == "normal":
                normal, status, line = rest
                row["normal"] = round(normal, 3)
                if status != 0:
                    yield first - 1, f"not read as it is: {line}", ""
            elif what == "begins":
                (begun,) = rest
            elif what == "ended":
                _, status, problem, seconds, memory, how, line = rest
                row["mutants"] += 1
                row["refused" if status else "read"] += 1
                row["slowest"] = round(max(row["slowest"], seconds - normal), 3)
                row["memory"] = max(row["memory"], memory)
                if seconds - normal > MOST_SECONDS:
                    yield begun, "slow", f"{how}: {seconds:.1f} s: {line[:200]}"
                if memory > MOST_MEMORY:
                    yield begun, "memory", f"{how}: {memory / 1e6:.0f} MB: {line[:200]}"
                yield begun, problem, f"{how}: {problem[:400]}"
            else:
                yield None, "", ""
                break
    except EOFError:
        process.join()
        row["mutants"] += 1
        yield begun, f"crash {process.exitcode}", ""
    process.kill()
    process.join()


def _hangs(connection: Any, pid: int | None) -> bool:
    """Wait for the next message; true when the process works for too long, or waits for what will never come."""
    began, idle = _used(pid)[1], 0
    last = began
    while not connection.poll(TICK):
        state, used = _used(pid)
        idle = idle + 1 if used == last and state == "S" else 0
        last = used
        if used - began > HANG or idle > STILL:
            return True
    return False


def _used(pid: int | None) -> tuple[str, float]:
    """A process's state (S: it waits), and the processor time that it has had."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "", 0.0
    return fields[0], (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _repoint(copy: Path, world: Path) -> None:
    """Records of runs name the folders that they were made from."""
    for path in copy.rglob("*"):
        if path.suffix in (".json", ".yaml", ".jsonl") and path.is_file():
            text = path.read_text()
            if str(world) in text:
                path.write_text(text.replace(str(world), str(copy)))


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024.0 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    raise SystemExit(main())
