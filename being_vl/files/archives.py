"""Tar files, plain or compressed, here or in a store → the content of their members, one after the other.

No member is unpacked to the disk, and sizes are compared with limits before a member is read.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from .errors import reading, shown
from .places import check_regular, is_remote

_MAX_MEMBER = 1 << 28  # bytes of a file in an archive
_DAMAGED_TAR = "damaged tar file"
_MOST_COMPRESSED = 200  # images and codes hardly shrink; a bomb shrinks a thousandfold


def no_member() -> bytes:
    """Stands for the content of a link or a device in a tar file."""
    raise ValueError("a link or a device in a tar file, which is not read")


def tar_members(path: Path, *, others: bool = False) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The files of a tar file, plain or compressed, in order: name, and a function that reads the content.

    With `others`, links and devices too, with `no_member` for that function.

    Raises:
        ValueError: a damaged file; a member that is too large, or stands for far more than the file has, is
            refused before it is read.
    """
    check_regular(path)

    def content(member: tarfile.TarInfo) -> bytes:
        with reading(path, _DAMAGED_TAR):
            return archive.extractfile(member).read()  # type: ignore[union-attr]

    with reading(path, _DAMAGED_TAR), ExitStack() as stack:
        size = path.stat().st_size
        if is_remote(path):
            file = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r|*"))
        else:
            archive = stack.enter_context(tarfile.open(path))
        for member in archive:
            _check_member(path, member, size)
            if member.isfile():
                yield member.name, partial(content, member)
            elif others and not member.isdir():
                yield member.name, no_member


def _check_member(path: Path, member: tarfile.TarInfo, size: int) -> None:
    if member.size > _MAX_MEMBER and member.isfile():
        raise ValueError(
            f"{path}: {shown(member.name)} has {member.size} bytes, more than {_MAX_MEMBER}"
        )
    if member.offset_data + member.size > _MOST_COMPRESSED * (size + (1 << 16)):
        raise ValueError(
            f"{path}: {shown(member.name)} ends at byte {member.offset_data + member.size} of a file of {size}: cut, "
            f"or compressed more than {_MOST_COMPRESSED}-fold"
        )
