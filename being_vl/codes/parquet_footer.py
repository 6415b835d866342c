"""parquet file → what its column chunks stand for, read from the footer.

Source: FileMetaData of the parquet format, in Thrift's compact protocol. pyarrow's reader of column chunks
(`RowGroupMetaData.column`, 26.0.1) lets a C++ exception through for some damaged ones, which ends the process;
its reader of values makes an error of the same, but takes the memory before.
"""

from __future__ import annotations

import os
from typing import Any, BinaryIO

_MAX_FOOTER = 1 << 22  # of 20,000 column chunks; a second of Python
_ROW_GROUPS, _COLUMNS, _METADATA, _NUM_VALUES, _BYTES = 4, 1, 3, 5, 6  # numbers of fields


def column_chunks(source: str | os.PathLike | BinaryIO) -> list[tuple[int, int]]:
    """The number of values and the uncompressed bytes of every column chunk.

    Args:
        source: a path, or an open binary file.

    Raises:
        ValueError: the footer is no such one, or larger than 4 MB.
    """
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            return column_chunks(file)
    size = source.seek(0, 2)
    source.seek(max(0, size - 8))
    length, mark = int.from_bytes(source.read(4), "little"), source.read(4)
    if mark != b"PAR1" or length > min(size - 8, _MAX_FOOTER):
        raise ValueError(f"its footer of {length} bytes is none, or larger than {_MAX_FOOTER}")
    source.seek(size - 8 - length)
    try:
        footer = _struct(source.read(length))
        chunks = [chunk[_METADATA] for group in footer[_ROW_GROUPS] for chunk in group[_COLUMNS]]
        return [(int(chunk[_NUM_VALUES]), int(chunk[_BYTES])) for chunk in chunks]
    except (IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its footer is damaged: {type(error).__name__} {error}") from None


def _struct(data: bytes) -> dict[int, Any]:
    """A struct: the number of a field → its value."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("its footer is damaged: a number is too long")

    def read(kind: int) -> Any:
        nonlocal position
        if kind in (1, 2):  # true and false, of a field; the type is the value
            return kind == 1
        if kind in (4, 5, 6):  # zigzag: 0, −1, 1, −2, …
            value = varint()
            return value >> 1 ^ -(value & 1)
        if kind == 12:
            return struct()
        if kind in (9, 10):
            head = data[position]
            position += 1
            size = varint() if head >> 4 == 15 else head >> 4
            if size > len(data) - position:  # each takes a byte at least
                raise ValueError("its footer is damaged: a list is longer than the footer")
            return [read(3 if head & 15 in (1, 2) else head & 15) for _ in range(size)]
        if kind not in (3, 7, 8):
            raise ValueError(f"its footer is damaged: no type {kind}")
        length = 1 if kind == 3 else 8 if kind == 7 else varint()
        position += length
        return data[position - length : position]

    def struct() -> dict[int, Any]:
        nonlocal position
        fields: dict[int, Any] = {}
        number = 0
        while head := data[position]:
            position += 1
            number = number + (head >> 4) if head >> 4 else read(4)
            fields[number] = read(head & 15)
        position += 1
        return fields

    return struct()
