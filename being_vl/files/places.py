"""Names of files → their bytes, within limits; a name is a path here or the URL of an object in a store.

Nothing here waits for ever or takes all memory: pipes and devices are refused, and sizes are bounded.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Any, BinaryIO

from .errors import shown

MAX_TEXT_BYTES = 1 << 20


def place(name: str | os.PathLike) -> Any:
    """What a name stands for: a `Path`, or for a URL (s3://, gs://, hf://, https:// …) universal_pathlib's likeness of one.

    A name that is there as a file is that file, whatever it looks like.

    Raises:
        ImportError: a URL, and the package that reads it is not installed.
        ValueError: fsspec would take the URL for a chain of places.
    """
    if (
        not isinstance(name, str)
        or not re.match(r"[a-z][a-z0-9]+://", name)
        or os.path.exists(name)
    ):
        return name if is_remote(name) else Path(name)
    if "::" in name:
        raise ValueError(f"{shown(name)}: a URL must not hold '::'")
    try:
        from upath import UPath

        return UPath(name, use_listings_cache=False)  # others write there, too
    except ImportError as error:
        raise ImportError(f'{name}: needs pip install "being-vl[s3]" ({error})') from error


def is_remote(path: Any) -> bool:
    """Whether a path of `place` is an object in a store."""
    return not isinstance(path, (str, bytes, os.PathLike)) and hasattr(path, "storage_options")


def check_regular(path: str | os.PathLike) -> None:
    """Refuse what is no regular file, links followed: a pipe would block its reader, a device never ends.

    Raises:
        ValueError: a pipe, a device or a socket.
        OSError: a folder, or nothing that can be looked at.
    """
    if not is_remote(path):
        _check_mode(os.stat(path).st_mode, path)


def _check_mode(mode: int, path: str | os.PathLike) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise ValueError(f"{path}: not a regular file")


def read_bytes(path: str | os.PathLike, max_bytes: int) -> bytes:
    """The content of a file of bounded size.

    Raises:
        ValueError: the file is larger, or no regular file (a pipe would block, a device never ends).
        OSError: the file cannot be read.
    """
    with path.open("rb") if is_remote(path) else _open_regular(path) as file:  # type: ignore[union-attr]
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"{path}: larger than {max_bytes} bytes")
    return raw


def _open_regular(path: str | os.PathLike) -> BinaryIO:
    # Without O_NONBLOCK, opening a pipe that nobody writes to waits for ever.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_mode(os.fstat(handle).st_mode, path)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_text(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> str:
    """A text in UTF-8 of bounded size.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    try:
        return read_bytes(path, max_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a text in UTF-8: {error}") from None
