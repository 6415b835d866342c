"""merges ↔ `checkpoint.json`: what lets a killed training go on, and the lock of its folder.

A checkpoint holds the rules so far with their counts; the cells follow from the grids and the rules. It is
written aside and renamed, so it is whole at any moment. The lock belongs to the process: however it ends,
the operating system frees the folder.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from ...files import is_remote, read_json, record, shown, write_atomic
from ..rules import RULE_FIELDS, as_rules, check_merges

FILE_NAME = "checkpoint.json"
_LOCK_NAME = "train-bpe.lock"
_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A training up to some rank.

    Attributes:
        merges: (m, 4) int32, the rules so far.
        counts: (m,) int64, how often each occurred when it was chosen.
    """

    merges: np.ndarray
    counts: np.ndarray


@dataclass(frozen=True)
class _Content:
    version: int
    options: dict[str, Any]
    merges_and_counts: list[list[int]]


def lock_folder(folder: Path) -> AbstractContextManager:
    """Make the folder, and hold it until the process ends or the lock is released; in a store nothing can be held.

    Raises:
        ValueError: another process holds it.
    """
    if is_remote(folder):
        return nullcontext()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK_NAME)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(f"{folder}: another process is training in this folder") from None
    return lock


def save_checkpoint(folder: Path, checkpoint: Checkpoint, options: dict[str, Any]) -> None:
    """Write the rules so far; `options` are what they depend on beside the grids."""
    rows = np.concatenate([checkpoint.merges, checkpoint.counts[:, None]], axis=1)
    content = _Content(_VERSION, options, rows.tolist())
    write_atomic(folder / FILE_NAME, json.dumps(vars(content)).encode())


def load_checkpoint(folder: Path, options: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint of a folder, if there is one.

    Args:
        folder: of the training.
        options: those of `train_merges`, and what else it depends on.

    Raises:
        ValueError: it is malformed, or was made with other options.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        content = record(_Content, read_json(path))
        rows = np.array(content.merges_and_counts, np.int64).reshape(-1, 5)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{path}: not a checkpoint of train-bpe: {error}") from error
    if content.version != _VERSION:
        raise ValueError(f"{path}: version must be {_VERSION}, got {content.version}")
    for name, value in options.items():
        found = content.options.get(name, "nothing")
        if found != value:
            raise ValueError(
                f"{path}: it was made with {name}={shown(found)}, not {value!r}; "
                "use the same options, or another folder"
            )
    try:
        rules = as_rules(rows[:, :4], options["codebook_size"], RULE_FIELDS, "merges")
        check_merges(rules, options["merge_rule"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return Checkpoint(rows[:, :4].astype(np.int32), rows[:, 4])
