"""Folders that one run owns: locked while it works, marked by what they are made from, listed when finished.

`claim` lets a run continue in a folder that the same settings began, and refuses any other. Manifests hold one entry
for each file, by which readers see that a file is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .atomic import write_atomic
from .errors import shown
from .parsing import read_json
from .places import is_remote


@contextmanager
def locked(folder: Path, busy: str, *, name: str = ".lock") -> Iterator[None]:
    """Make the folder and hold it; in a store, where nothing can be held, whoever writes last stays.

    Args:
        folder: the folder.
        busy: what the error says of it.
        name: of the lock's file; runs that share a folder, as processes of one job do, have their own.

    Raises:
        OSError: another process holds it.
    """
    from filelock import FileLock, Timeout

    if is_remote(folder):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    # Held by the system, not by the file: a process that is killed lets go of it, and the file may stay.
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{folder}: {busy}") from None
    try:
        yield
    finally:
        lock.release()


def claim(path: Path, wanted: Mapping[str, Any], rule: str, *, made: str | None = None) -> None:
    """Write down what a folder is made from; refuse a folder that was made from something else.

    Args:
        path: the file, in the folder.
        wanted: what this run is made from, as JSON.
        rule: why the two do not go together, for the error.
        made: pattern of the files that a run leaves; none may lie in a folder without `path`.

    Raises:
        ValueError: the folder holds, or is to hold, something else.
    """
    wanted = json.loads(json.dumps(wanted))  # as it will be read back: lists for tuples
    if path.exists():
        refuse_others(path, read_json(path), wanted, wanted, rule)
    elif made is not None and any(path.parent.glob(made)):
        raise ValueError(
            f"{path.parent}: holds shards but no {path.name}; choose another output folder"
        )
    else:
        write_atomic(path, json.dumps(wanted, indent=1, ensure_ascii=False) + "\n")


def refuse_others(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str], rule: str
) -> None:
    """Raises ValueError if a setting that `path` holds is not this run's; both values are named."""
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold an object, got {shown(found)}")
    for name in names:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: {name} is {found.get(name)}, but this run's is {wanted.get(name)}: {rule}"
            )


def file_entry(path: Any) -> dict[str, Any]:
    """What a manifest says of a file: its name (`file`), `bytes` and `sha256`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": digest}


def check_entries(manifest: Any, entries: Any, **more: type) -> None:
    """Look at the `shards` of a manifest, entries as of `file_entry` with `more` fields, before any is opened.

    Raises:
        ValueError: naming manifest, entry, field and value; a file must lie beside the manifest.
    """
    if not isinstance(entries, list):
        raise ValueError(f"{manifest}: shards must be a list, got {shown(entries)}")
    kinds = {"file": str, "bytes": int, "sha256": str, **more}
    for number, entry in enumerate(entries):
        for name, kind in kinds.items():
            value = entry.get(name) if isinstance(entry, dict) else None
            if type(value) is not kind:
                must = f"shards[{number}].{name} must be {kind.__name__}"
                raise ValueError(f"{manifest}: {must}, got {shown(value)}")
        if Path(entry["file"]).name != entry["file"]:
            must = f"shards[{number}].file must be a file of the folder"
            raise ValueError(f"{manifest}: {must}, got {shown(entry['file'])}")


def check_file(path: Any, entry: Mapping[str, Any], manifest: str, *, verify: bool) -> None:
    """Raises ValueError if a file is not as its entry says: its size always, its digest with `verify`."""
    if not path.is_file():
        raise ValueError(f"{path}: is listed in {manifest} but missing")
    if (size := path.stat().st_size) != entry["bytes"]:
        raise ValueError(f"{path}: has {size} bytes, {entry['bytes']} were written")
    if verify and (found := file_entry(path)["sha256"]) != entry["sha256"]:
        raise ValueError(f"{path}: its sha256 is {found}, {entry['sha256']} was written")
