"""Soaks of training, too long for the tests: kills -9 at random moments and inside saves, and damage.

    python tests/training/soak_train.py kills --count 30 --inside-saves 10
    python tests/training/soak_train.py damage

Each prints one line of JSON, and fails with an assertion. The training: two epochs and a part of a small
model with dropout, accumulation of two batches, rows grouped by length, a checkpoint every second step and
one that is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from resume_fixtures import DAMAGES, equal_weights, make_trainer, steps_on_disk, weights
from safetensors.torch import load_file, save_file

# Calls that change what is on the disk, as Python's audit hooks name them; `open` counts when it writes.
_DISK_EVENTS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "open"}
_ARGUMENTS = {"save_steps": 2, "save_total_limit": 1, "max_steps": 11}


def train(folder: Path, kill_at_event: int | None = None) -> None:
    """What a child does: train or go on, then write the final weights.

    Args:
        folder: the run's.
        kill_at_event: kill -9 this process at so many changes of the disk inside saves.
    """
    torch.set_num_threads(1)  # OpenMP does not survive the fork
    warnings.filterwarnings("error", "damaged")  # no kill leaves a damaged checkpoint
    trainer = make_trainer(folder, **_ARGUMENTS)
    (folder / "started").touch()
    if kill_at_event is not None:
        _kill_inside_a_save(trainer, kill_at_event)
    trainer.train(resume_from_checkpoint="auto")
    save_file(weights(trainer), folder / "final.partial")
    os.replace(folder / "final.partial", folder / "final.safetensors")


def _kill_inside_a_save(trainer: Any, event_number: int) -> None:
    seen, saving = 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not saving or event not in _DISK_EVENTS:
            return
        if event == "open" and not (arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        seen += 1
        if seen == event_number:
            os.kill(os.getpid(), signal.SIGKILL)

    save = trainer._save_checkpoint

    def watched(*args: Any, **kwargs: Any) -> None:
        nonlocal saving
        saving = True
        save(*args, **kwargs)
        saving = False

    trainer._save_checkpoint = watched
    sys.addaudithook(hook)


def _start(folder: Path, kill_at_event: int | None = None) -> multiprocessing.Process:
    child = multiprocessing.get_context("fork").Process(target=train, args=(folder, kill_at_event))
    child.start()
    return child


def kills(count: int, inside_saves: int, seed: int) -> dict[str, Any]:
    """Kill the training, `inside_saves` times of `count` inside a save, and compare the final weights."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        wanted_folder, folder = Path(name) / "wanted", Path(name) / "run"
        wanted_folder.mkdir()
        folder.mkdir()
        (child := _start(wanted_folder)).join()
        assert child.exitcode == 0
        seconds = time.time() - (wanted_folder / "started").stat().st_mtime
        wanted = load_file(wanted_folder / "final.safetensors")
        kinds = ["save"] * inside_saves + ["any"] * (count - inside_saves)
        rng.shuffle(kinds)
        found: Counter[str] = Counter()
        runs = 0
        while kinds or not (folder / "final.safetensors").exists():
            (folder / "started").unlink(missing_ok=True)
            kind = kinds[-1] if kinds else "none"
            # A save makes some thirty changes; a run has six saves.
            child = _start(folder, rng.randint(1, 90) if kind == "save" else None)
            if kind == "any":
                while not (folder / "started").exists() and child.is_alive():
                    time.sleep(0.002)
                time.sleep(rng.uniform(0, seconds))
                child.kill()
            child.join()
            if child.exitcode == -signal.SIGKILL:
                kinds.pop()
                found[kind] += 1
                found["half-written checkpoints left"] += (folder / ".partial").exists()
                found["half-deleted checkpoints left"] += (folder / ".deleted").exists()
            else:
                assert child.exitcode == 0
            if (folder / "final.safetensors").exists() and kinds:
                runs += 1
                assert equal_weights(load_file(folder / "final.safetensors"), wanted)
                shutil.rmtree(folder)
                folder.mkdir()
        assert equal_weights(load_file(folder / "final.safetensors"), wanted)
        return {
            "kills": found,
            "completed_runs": runs + 1,
            "undisturbed_seconds": round(seconds, 2),
        }


def damage() -> dict[str, Any]:
    """Each kind of damage to the newest checkpoint: named, passed over, and the same final weights."""
    named = {}
    with tempfile.TemporaryDirectory() as name:
        whole = make_trainer(Path(name) / "whole")
        whole.train()
        for kind, (do, said) in DAMAGES.items():
            folder = Path(name) / kind.replace(" ", "-")
            shutil.copytree(whole.args.output_dir, folder)
            newest, before = steps_on_disk(folder)
            do(folder / newest)
            trainer = make_trainer(folder)
            with warnings.catch_warnings():
                warnings.filterwarnings("error", "damaged")
                try:
                    trainer.train(resume_from_checkpoint=True)
                    raise AssertionError(f"{kind}: silent")
                except UserWarning as warning:
                    message = str(warning).replace(str(folder), "RUN")
            trainer = make_trainer(folder)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "damaged")
                trainer.train(resume_from_checkpoint=True)
            assert re.search(said, message), message
            assert message.endswith(f"Going on from RUN/{before}"), message
            assert equal_weights(weights(trainer), weights(whole)), kind
            do(folder / newest)
            do(folder / before)
            try:
                make_trainer(folder).train(resume_from_checkpoint=True)
                raise AssertionError(f"{kind}: silent")
            except ValueError as error:
                assert "no checkpoint is whole" in str(error)
            named[kind] = message
            shutil.rmtree(folder)
    return {"kinds": len(named), "messages": named}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("soak", choices=("kills", "damage"))
    parser.add_argument("--count", type=int, default=30)
    parser.add_argument("--inside-saves", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = kills(args.count, args.inside_saves, args.seed) if args.soak == "kills" else damage()
    print(json.dumps({args.soak: result}, indent=1))


if __name__ == "__main__":
    main()
