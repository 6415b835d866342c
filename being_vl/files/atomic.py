"""Files and folders that appear whole or not at all, also after a crash or a power cut.

Each is written under a temporary name beside its own, flushed to the disk, and then renamed. The temporary names of
writers that were killed are removed by the next one.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import writing
from .places import is_remote


def write_atomic(path: str | os.PathLike, data: bytes | memoryview | str) -> None:
    """Write a file so that readers, and a restart after a crash, see all of it or nothing.

    Args:
        path: the file; folders above it are made.
        data: bytes, or text that is written as UTF-8.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left behind, and the file
            that was there before is untouched.
    """
    raw = data.encode("utf-8") if isinstance(data, str) else data
    if is_remote(path):  # a store shows an object when the whole of it has come
        path.fs.pipe_file(path.path, bytes(raw))  # type: ignore[union-attr]
        return
    with new_file(path) as aside, open(aside, "wb") as file:
        file.write(raw)


def write_json(path: str | os.PathLike, fields: Mapping[str, Any]) -> None:
    """Write a configuration as transformers writes its own: sorted keys, two spaces."""
    text = json.dumps(fields, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomic(path, text + "\n")


@contextmanager
def new_file(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path beside `path` for the body to write; it takes the name when the body succeeds.

    Raises:
        OSError: as the body does, with `path` as its file name; nothing is left behind.
    """
    path = Path(path)
    aside = _aside(path)
    try:
        yield aside
        # The content must be on the disk before the name is: after a power cut, a file of the name would be empty.
        flush(aside)
        os.replace(aside, path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    flush(path.parent)  # the name itself


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder beside `path` for the body to fill; it takes the name when the body succeeds.

    Raises:
        ValueError: `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} exists and is not an empty folder")
    aside = _aside(path)
    aside.mkdir()
    try:
        with writing(aside, name=path):
            yield aside
        os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


_STEM = 40  # characters of a name that its temporary name begins with; all of it may be too long
_WRITER = re.compile(r"([0-9]+)-[0-9a-f]{8}\.tmp")


def _aside(path: Path) -> Path:
    """A temporary name beside `path`; what processes that were killed while they wrote it have left is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.stem[:_STEM]}."
    for name in os.listdir(path.parent):
        if not (name.startswith(start) and name.endswith(f".tmp{path.suffix}")):
            continue
        writer = _WRITER.match(name.removeprefix(start))  # None: of a longer name
        if writer is None or _is_running(int(writer[1])):
            continue
        left = path.parent / name
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
    # The suffix stays last: writers such as Pillow choose the format by it.
    # The process says whether a leftover is one; the random part keeps its threads apart.
    return path.with_name(f"{start}{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")


def _is_running(pid: int) -> bool:
    if os.name != "posix":
        return True  # no way to ask without a dependency; leftovers stay
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True


def flush(path: Path) -> None:
    """fsync of a file, or of a folder's entries where the system knows such a thing."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
