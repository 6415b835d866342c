"""A tiny checkpoint, code shards and LLaVA rows for the tests of `being-vl tokenize` and `ablate`."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from checkpoint_fixtures import CODEBOOK_SIZE, random_grids, tiny_checkpoint
from tqdm import tqdm

from being_vl.codes.shards import ShardInfo, write_shard
from being_vl.data.identity import processor_identity
from being_vl.hub.checkpoint import save_checkpoint


def make_checkpoint(folder: Path, family: str = "llama-3") -> Path:
    save_checkpoint(*tiny_checkpoint(family), folder)
    return folder


def make_codes(
    folder: Path, count: int = 6, *, quantizer: str | None = None
) -> dict[str, np.ndarray]:
    """Two shards of grids of two sizes, by default of `tiny_checkpoint`'s quantizer; image id → grid."""
    if quantizer is None:
        quantizer = processor_identity(tiny_checkpoint()[1])["quantizer"]
    sides = [4 + i % 2 for i in range(count)]
    grids = {f"{'ab'[i % 2]}/{i}.png": random_grids(1, seed=i, side=side, smooth=True)[0]
             for i, side in enumerate(sides)}  # fmt: skip
    folder.mkdir()
    names = list(grids)
    for number, part in enumerate((names[: count // 2], names[count // 2 :])):
        info = ShardInfo(codebook_size=CODEBOOK_SIZE, quantizer=quantizer)
        write_shard(folder / f"codes-{number}.parquet", part, [grids[n] for n in part], info)
    return grids


def make_rows(images: list[str], count: int = 10) -> list[dict[str, Any]]:
    """One turn or two, with an image, two images, or none."""
    rows: list[dict[str, Any]] = []
    for i in range(count):
        turns = [
            {"from": "human", "value": "<image>\nWhat is in the picture?"},
            {"from": "gpt", "value": f"A red square {i}."},
        ]
        row: dict[str, Any] = {
            "id": f"r{i}",
            "image": images[i % len(images)],
            "conversations": turns,
        }
        if i % 3 == 1:
            turns += [
                {"from": "human", "value": "And there?\n<image>"},
                {"from": "gpt", "value": "é"},
            ]
            row["image"] = [images[i % len(images)], images[(i + 1) % len(images)]]
        elif i % 3 == 2:
            del row["image"]
            turns[0]["value"] = "What is small?"
        rows.append(row)
    return rows


def write_rows(path: Path, rows: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def folder_bytes(folder: Path) -> dict[str, str]:
    """Name → sha256 of every file that is not a lock."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.name != ".lock"
    }


def forked(run: Callable[[], Any]) -> int:
    """Run it in a child that may be killed at any moment, and return the child's pid; its status is what `run` returns.

    tqdm's lock is a semaphore that a child shares: killed while it holds it, the child would block this process for ever.
    """
    child = os.fork()
    if child == 0:
        tqdm.set_lock(threading.RLock())
        os._exit(run() or 0)
    return child
