"""Every command's every file, by thousands of mutants: how each ended, how long it took, what memory.

    python tests/cli/soak_hostile.py --count 2000 --only "encode " --seed 0

A mutant runs in a process that is watched: a hang is ended and counted, and so is a crash. One line for each
command and file; the last lines are the total and every kind of problem, with a mutant that shows it. The exit
status is 1 if there was one. PYTHONPATH must name the folders that setup.cfg gives pytest.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing as mp
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MOST_SECONDS, MOST_MEMORY, HANG = 2.0, 300e6, 30.0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--only", default="", help="a pattern of the names of targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=1e9, help="seconds for each target")
    parser.add_argument("--output", type=Path, help="JSON lines of the targets")
    args = parser.parse_args()
    from hostile_commands import TARGETS

    names = [i for i, target in enumerate(TARGETS) if re.search(args.only, target.name)]
    problems: dict[str, tuple[int, str]] = {}
    total = {"mutants": 0, "refused": 0, "slowest": 0.0, "memory": 0.0}
    with tempfile.TemporaryDirectory() as scratch:
        world = Path(scratch, "world")
        _make(world)
        for number in names:
            row = _fuzz(number, world, Path(scratch, "scratch"), args, problems)
            total["mutants"] += row["mutants"]
            total["refused"] += row["refused"]
            total["slowest"] = max(total["slowest"], row["slowest"])
            total["memory"] = max(total["memory"], row["memory"])
            print(json.dumps(row), flush=True)
            if args.output is not None:
                with args.output.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print(json.dumps({"targets": len(names), **total, "kinds of problems": len(problems)}))
    for kind, (count, example) in sorted(problems.items(), key=lambda entry: -entry[1][0]):
        print(f"{count:6} {kind}\n         {example}")
    return int(bool(problems))


def _make(world: Path) -> None:
    """The world, and every command once: what is compiled and imported here need not be in each child."""
    from hostile_commands import TARGETS, Runner, make_world

    runner = Runner(make_world(world), world / "scratch")
    (world / "scratch").mkdir()
    runner.prepare()
    for target in {(target.command, target.argv): target for target in TARGETS}.values():
        runner.run(target, None)
    gc.collect()
    gc.freeze()  # what the commands left is walked over by no child's collections


def _work(connection: Any, number: int, world: Path, scratch: Path, seed: int, first: int, count: int) -> None:  # fmt: skip
    from hostile_commands import TARGETS, Runner

    os.setpgid(0, 0)
    null = os.open(os.devnull, os.O_RDWR)  # libraries in C and Rust write past sys.stderr
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    runner, target = Runner(world, scratch), TARGETS[number]
    normal = min(runner.run(target, None).seconds for _ in range(2))
    outcome = runner.run(target, None)
    connection.send(("normal", normal, outcome.status, outcome.line or outcome.problem))
    for index in range(first, count):
        connection.send(("begins", index))
        _reset_peak()
        before = _memory("VmRSS")
        outcome = runner.run(target, random.Random(f"{seed} {target.name} {index}"))
        connection.send(
            ("ended", index, outcome.status, outcome.problem, outcome.seconds, _memory("VmHWM") - before, outcome.done, outcome.line)
        )  # fmt: skip
    connection.send(("done",))


def _fuzz(number: int, world: Path, scratch: Path, args: Any, problems: dict) -> dict[str, Any]:
    from hostile_commands import TARGETS

    target = TARGETS[number]
    row: dict[str, Any] = {
        "command": target.command, "file": target.file, "mutants": 0, "refused": 0, "read": 0, "slowest": 0.0,
        "memory": 0.0, "problems": 0,
    }  # fmt: skip
    started = time.monotonic()

    def note(kind: str, example: str) -> None:
        row["problems"] += 1
        kind = (
            f"{target.command}: {re.sub(r'[0-9]+', '9', re.sub(str(world.parent), '', kind))[:160]}"
        )
        if kind not in problems:
            print(f"{kind}\n    {target.name} #{example}", file=sys.stderr, flush=True)
        problems[kind] = problems.get(kind, (0, ""))[0] + 1, f"{target.name} #{example}"

    index, done = 0, False
    while not done and index < args.count:
        shutil.rmtree(scratch, ignore_errors=True)
        copy = scratch / "world"
        shutil.copytree(world, copy, symlinks=True)
        _repoint(copy, world)
        ours, theirs = mp.Pipe()
        process = mp.get_context("fork").Process(
            target=_work, args=(theirs, number, copy, scratch, args.seed, index, args.count)
        )
        process.start()
        theirs.close()
        normal, begun = 0.0, index
        try:
            while True:
                if not ours.poll(HANG):
                    note("hang", f"{begun}")
                    row["mutants"] += 1
                    process.kill()
                    index = begun + 1
                    break
                what, *rest = ours.recv()
                if what == "normal":
                    normal, status, line = rest
                    row["normal"] = round(normal, 3)
                    if status != 0:
                        note(f"not read as it is: {line}", "as it is")
                elif what == "begins":
                    (begun,) = rest
                    if time.monotonic() - started > args.budget:
                        done = True
                        process.kill()
                        break
                elif what == "ended":
                    index, status, problem, seconds, memory, how, line = rest
                    index += 1
                    row["mutants"] += 1
                    row["refused" if status else "read"] += 1
                    row["slowest"] = round(max(row["slowest"], seconds - normal), 3)
                    row["memory"] = max(row["memory"], memory)
                    if seconds - normal > MOST_SECONDS:
                        note("slow", f"{begun}: {how}: {seconds:.1f} s: {line[:200]}")
                    if memory > MOST_MEMORY:
                        note("memory", f"{begun}: {how}: {memory / 1e6:.0f} MB: {line[:200]}")
                    if problem:
                        note(problem, f"{begun}: {how}: {problem[:400]}")
                else:
                    done = True
                    break
        except EOFError:
            process.join()
            note(f"crash {process.exitcode}", f"{begun}")
            row["mutants"] += 1
            index = begun + 1
        process.join()
    row["memory"] = round(row["memory"] / 1e6, 1)
    return row


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
