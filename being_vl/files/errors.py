"""An error names the file and the value: `shown` for values, `reading` and `writing` around other libraries.

What those raise says neither which file they had in hand nor, where a disk is full, that it is.
"""

from __future__ import annotations

import os
import re
import reprlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def shown(value: Any) -> str:
    """A value for an error message, never long; of a list or dictionary its first entries."""
    if isinstance(value, (list, dict)):
        text = f"a {type(value).__name__} {reprlib.repr(value)}"
    else:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def reading(path: str | os.PathLike, problem: str = "cannot be read") -> Iterator[None]:
    """For other libraries' readers: whatever they raise becomes one ValueError that names the file.

    The file is `path`, or where that is a folder, the one in it that was being read. Errors that name it already
    pass.
    """
    try:
        yield
    except BaseException as error:
        is_panic = type(error).__name__ == "PanicException"  # of a library in Rust; no Exception
        if not isinstance(error, Exception) and not is_panic:
            raise
        text = " ".join(str(error).split())
        if isinstance(error, (ValueError, OSError, ImportError)) and str(path) in text:
            raise
        kind = "" if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: "
        named: Any = path
        if isinstance(path, (str, os.PathLike)) and os.path.isdir(path):
            named = _file_in_hand(error, Path(path), os.path.isfile)
        raise ValueError(f"{named}: {problem}: {kind}{text or type(error).__name__}") from error


_TORCH_WRITES = re.compile(r"inline_container|PytorchStreamWriter")
_FAILED_WRITES = re.compile(rf"iostream error|I/O error|{_TORCH_WRITES.pattern}")


@contextmanager
def writing(folder: str | os.PathLike, *, name: str | os.PathLike = "") -> Iterator[None]:
    """Around libraries that write below a folder: a write that failed is an OSError that names the file.

    Where a disk is full, safetensors and torch raise errors of their own, and Python's names no file.

    Args:
        folder: where they write.
        name: what the error calls it, where it is not there to stay.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())
        if str(folder) in text or not (isinstance(error, OSError) or _FAILED_WRITES.search(text)):
            raise
        folder = Path(folder)
        file = _file_in_hand(error, folder, lambda path: path.suffix != "" and path.parent.is_dir())
        shown_file = Path(name or folder, file.relative_to(folder))
        places = (folder, *folder.absolute().parents)
        free = shutil.disk_usage(next(path for path in places if path.exists())).free
        if _TORCH_WRITES.search(text):  # which tells places in its source and in the file
            text = "only a part of the file was written"
        raise OSError(f"{shown_file}: cannot be written, {free} bytes are free: {text}") from error


def _file_in_hand(error: BaseException, path: Path, is_file: Callable[[Path], bool]) -> Path:
    """The file below a folder that the innermost function to hold one had, or the folder."""
    found, traceback = path, error.__traceback__
    while traceback is not None:
        frame = traceback.tb_frame
        # pathlib's own frames hold paths that are not made yet, which have no text.
        own = "pathlib" in frame.f_globals.get("__name__", "")
        for value in () if own else frame.f_locals.values():
            if isinstance(value, (str, os.PathLike)) and len(str(value)) < 4096:
                candidate = Path(value)
                if path in candidate.parents and is_file(candidate):
                    found = candidate
        traceback = traceback.tb_next
    return found
