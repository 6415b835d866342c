"""A folder that one run owns: locked while it works, and made from one thing only.

Source: our own. What a run is made from is a JSON file in its folder, so that another run, started again or
with other settings, knows whether it may go on there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .code_shards import write_atomic


@contextmanager
def locked(folder: Path, busy: str, *, name: str = ".lock") -> Iterator[None]:
    """Make the folder and hold it.

    Args:
        folder: the folder.
        busy: what the error says of it.
        name: of the lock's file; runs that share a folder, as processes of one job do, have their own.

    Raises:
        OSError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
        refuse_others(path, json.loads(path.read_text("utf-8")), wanted, wanted, rule)
    elif made is not None and any(path.parent.glob(made)):
        raise ValueError(
            f"{path.parent}: holds shards but no {path.name}; choose another output folder"
        )
    else:
        write_atomic(path, (json.dumps(wanted, indent=1, ensure_ascii=False) + "\n").encode())


def refuse_others(
    path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], names: Iterable[str], rule: str
) -> None:
    """Raises ValueError if a setting that `path` holds is not this run's; both values are named."""
    for name in names:
        if found.get(name) != wanted.get(name):
            raise ValueError(
                f"{path}: {name} is {found.get(name)}, but this run's is {wanted.get(name)}: {rule}"
            )
