"""a training's state ↔ checkpoint folders that are complete or absent.

The folders are the `checkpoint-N` of transformers' `Trainer`. Each is written under another name, gets a manifest
with the size and the CRC-32 of every file, is flushed to disk, and only then renamed. A folder of that name was
therefore complete once, and damage since then is found, file by file, before anything is loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..files import flush, read_json

MANIFEST_NAME = "checkpoint_manifest.json"
_VERSION = 1
_PARTIAL, _REPLACED, _DELETED = ".partial", ".replaced", ".deleted"  # folders beside checkpoint-N
_BLOCK = 1 << 22
# What a reader of a message calls a file, the first pattern that fits.
_PARTS = (
    ("trainer state", ("trainer_state.json",)),
    ("RNG state", ("rng_state*.pth",)),
    ("scheduler state", ("scheduler.pt",)),
    ("gradient scaler state", ("scaler.pt",)),
    ("optimizer state", ("optimizer*", "*optim_states.pt")),
    ("model weights", ("model*.safetensors*", "adapter_model*", "pytorch_model*", "*model_states.pt")),
)  # fmt: skip


class DamagedCheckpointError(ValueError):
    """A checkpoint, or every checkpoint of a folder, is not as it was written."""


def checkpoint_step(folder: Path) -> int | None:
    """N of a folder `checkpoint-N`, None for any other name."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match.group(1)) if match else None


def checkpoint_folders(output_dir: str | os.PathLike) -> list[Path]:
    """The folders `checkpoint-N` of a run, the highest step first, whole or not."""
    output_dir = Path(output_dir)
    found = {}
    for path in output_dir.iterdir() if output_dir.is_dir() else ():
        step = checkpoint_step(path)
        if step is not None and path.is_dir():
            found[step] = path
    return [found[step] for step in sorted(found, reverse=True)]


def partial_folder(checkpoint: Path) -> Path:
    """Where `checkpoint` is written before it is whole: a folder of its name inside another."""
    return _aside(checkpoint, _PARTIAL)


def publish(checkpoint: Path, content: dict[str, Any]) -> None:
    """Give a checkpoint that has been written aside its place."""
    partial = partial_folder(checkpoint)
    manifest = {
        "version": _VERSION,
        "step": checkpoint_step(checkpoint),
        **content,
        "files": file_entries(partial),
    }
    manifest["crc32"] = _content_crc32(manifest)
    (partial / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n")
    # All content is on the disk before the name is: what has the name `checkpoint-N` is whole, also after a power cut.
    for path in partial.rglob("*"):
        flush(path)
    flush(partial)
    # A folder with files cannot be replaced in one step. Killed between the two, `clean_up` puts the old one back.
    if checkpoint.exists():
        _move_aside(checkpoint, _REPLACED)
    os.replace(partial, checkpoint)
    flush(checkpoint.parent)
    clean_up(checkpoint.parent)


def rotate(newest: Path, limit: int | None, keep: Iterable[str | os.PathLike] = ()) -> None:
    """Delete the oldest checkpoints beside `newest` until `limit` are left."""
    if not limit or limit < 0:
        return
    kept = {newest.resolve(), *(Path(path).resolve() for path in keep)}
    others = [path for path in checkpoint_folders(newest.parent) if path.resolve() not in kept]
    others.sort(key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) + len(kept) - limit)]:
        _move_aside(path, _DELETED)  # a kill amid the deletion leaves no half checkpoint in place
    clean_up(newest.parent)


def clean_up(output_dir: str | os.PathLike) -> None:
    """Remove what a killed run was writing or deleting, and put back what it was replacing."""
    output_dir = Path(output_dir)
    for replaced in checkpoint_folders(output_dir / _REPLACED):
        if not (output_dir / replaced.name).exists():
            os.rename(replaced, output_dir / replaced.name)
    for name in (_PARTIAL, _REPLACED, _DELETED):
        if (output_dir / name).exists():
            shutil.rmtree(output_dir / name)


def read_manifest(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is as it was written."""
    checkpoint = Path(checkpoint)
    manifest = _parse_manifest(checkpoint)
    step = checkpoint_step(checkpoint)
    problems = []
    if step is not None and step != manifest["step"]:
        problems.append(f"its manifest is that of step {manifest['step']}")
    with ThreadPoolExecutor() as pool:
        entries = manifest["files"].items()
        checked = pool.map(lambda entry: file_problem(checkpoint, *entry), entries)
        problems += [problem for problem in checked if problem is not None]
    if problems:
        raise DamagedCheckpointError(f"{checkpoint}: {'; '.join(problems)}")
    return manifest


def newest_whole_checkpoint(
    output_dir: str | os.PathLike,
) -> tuple[Path, dict[str, Any], list[str]] | None:
    """The newest checkpoint of a folder that is whole.

    Returns:
        the checkpoint, its manifest, and for each newer one what is wrong with it; None where the folder
        holds no checkpoint at all.
    """
    damaged: list[str] = []
    for folder in checkpoint_folders(output_dir):
        try:
            return folder, read_manifest(folder), damaged
        except DamagedCheckpointError as error:
            damaged.append(str(error))
    if damaged:
        raise DamagedCheckpointError(
            f"no checkpoint is whole, delete them to start anew. {'. '.join(damaged)}"
        )
    return None


def _aside(checkpoint: Path, name: str) -> Path:
    return checkpoint.parent / name / checkpoint.name


def _move_aside(checkpoint: Path, name: str) -> None:
    target = _aside(checkpoint, name)
    target.parent.mkdir(exist_ok=True)
    os.rename(checkpoint, target)


def _parse_manifest(checkpoint: Path) -> dict[str, Any]:
    if not checkpoint.is_dir():
        raise DamagedCheckpointError(f"{checkpoint}: no such folder")
    name = f"{checkpoint}: its manifest ({MANIFEST_NAME})"
    try:
        manifest = read_json(checkpoint / MANIFEST_NAME)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"{name} is missing") from None
    except (OSError, ValueError) as error:
        raise DamagedCheckpointError(f"{name} cannot be read: {error}") from error
    if not isinstance(manifest, dict) or manifest.pop("crc32", None) != _content_crc32(manifest):
        raise DamagedCheckpointError(f"{name} has another content than was written")
    if manifest["version"] != _VERSION:
        raise DamagedCheckpointError(
            f"{name} is of version {manifest['version']}, but this library reads version {_VERSION}"
        )
    return manifest


def _content_crc32(manifest: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest).encode())


def file_entries(folder: Path) -> dict[str, dict[str, int]]:
    """Size and CRC-32 of every file below a folder, by relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    with ThreadPoolExecutor() as pool:
        sums = list(pool.map(_crc32, paths))
    return {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc32": value}
        for path, value in zip(paths, sums, strict=True)
    }


def file_problem(checkpoint: Path, name: str, entry: dict[str, int]) -> str | None:
    """What is wrong with a file of `file_entries`, in words; None if it is as it was."""
    path = checkpoint / name
    # Path.resolve raises on links in a circle until Python 3.13.
    home, there = (Path(os.path.realpath(place)) for place in (checkpoint, path))
    if not isinstance(entry, dict) or home not in there.parents:
        return f"its entry of {name!r} is malformed"
    label = next(
        (part for part, patterns in _PARTS if any(fnmatch(path.name, p) for p in patterns)), "file"
    )
    try:
        size = path.stat().st_size
        if size != entry.get("size"):
            return f"{label} ({name}) has {size} bytes, {entry.get('size')} were written"
        if _crc32(path) != entry.get("crc32"):
            return f"{label} ({name}) has other bytes than were written"
    except FileNotFoundError:
        return f"{label} ({name}) is missing"
    except OSError as error:
        return f"{label} ({name}) cannot be read: {error.strerror}"
    return None


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
