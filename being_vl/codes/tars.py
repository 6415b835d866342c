"""codes ↔ WebDataset tars: `KEY.codes.npy` (h, w) and `KEY.json` of each grid of a shard.

`KEY` is the image's id; what webdataset would read differently in a name (a dot, a leading `__`) is
percent-encoded, and `KEY.json` holds the id itself. The first member, `__being_vl__`, is the shard's parquet file
without its codes, so that opening a shard does not walk over its members; webdataset and datasets pass over such a
name. Headers hold no time and no owner: equal grids give equal bytes.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from ..files import reading, shown, tar_members

INDEX = "__being_vl__"
SUFFIX = ".tar"
_CODES, _FIELDS = ".codes.npy", ".json"
# Not in a key: what ends it (a dot of the last part), parts that are steps (`..`), and what tars or shells trip over.
_UNSAFE = re.compile(r"[%\\\x00-\x1f\x7f]|\.(?=[^/]*/*$)|^/|/(?=/|$)|(?<![^/])(?:\.|__)")


def keys_of(image_ids: Sequence[str]) -> list[str]:
    """The key of each grid; an id that comes again has its count behind it."""
    seen: Counter[str] = Counter()
    keys = []
    for image_id in image_ids:
        key = _UNSAFE.sub(lambda found: "".join(f"%{ord(c):02X}" for c in found[0]), image_id)
        seen[key] += 1
        # No escape begins with x, so that no other id has this key.
        keys.append(f"{key or '%'}%x{seen[key]}" if seen[key] > 1 else key or "%")
    return keys


def tar_bytes(
    index: bytes, keys: Sequence[str], grids: Iterable[np.ndarray], fields: Iterable[Mapping]
) -> memoryview:
    """A shard as a tar.

    Args:
        index: the shard without its codes, a parquet file.
        keys: of `keys_of`.
        grids: (h, w) of int16, uint16 or int32.
        fields: what `KEY.json` holds.
    """
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add(INDEX, index)
        for key, grid, said in zip(keys, grids, fields, strict=True):
            add(key + _CODES, _npy(grid))
            add(key + _FIELDS, json.dumps(said, ensure_ascii=False).encode())
    return file.getbuffer()


def _npy(grid: np.ndarray) -> bytes:
    array = np.ascontiguousarray(grid, grid.dtype.newbyteorder("<"))
    return _header(array.dtype.str, array.shape) + array.tobytes()


@lru_cache(maxsize=1000)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    empty = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, empty)  # with the magic string before it
    return file.getvalue()


def read_index(path: Path) -> bytes | None:
    """The shard without its codes, a parquet file; None of another tar."""
    members = tar_members(path)
    try:
        name, read = next(members, ("", bytes))
        return read() if name == INDEX else None
    finally:
        members.close()  # type: ignore[attr-defined]


def read_codes(
    path: Path, keys: Sequence[str], heights: np.ndarray, widths: np.ndarray, dtype: type
) -> np.ndarray:
    """The codes of all grids end to end.

    Args:
        path: the tar.
        keys: as `keys_of` gives them, in order.
        heights, widths: of the grids, int64: so many codes are allocated, and so many must each array have.
        dtype: of the codes.

    Raises:
        ValueError: an array is missing, comes out of order, or is no such array.
    """
    cells = heights * widths
    values: np.ndarray = np.empty(int(cells.sum()), dtype)
    ends = np.cumsum(cells)
    row = 0
    for name, read in tar_members(path):
        if not name.endswith(_CODES):
            continue
        wanted = keys[row] + _CODES if row < len(keys) else "no more of them"
        if name != wanted:
            raise ValueError(f"{path}: holds {shown(name)}, expected {shown(wanted)}")
        grid = read_npy(read(), f"{path}: {shown(name)}")
        shape = (int(heights[row]), int(widths[row]))
        if grid.shape != shape or grid.dtype != dtype:
            raise ValueError(
                f"{path}: {shown(name)} must be {np.dtype(dtype)} {shape}, got {grid.dtype} {grid.shape}"
            )
        values[ends[row] - cells[row] : ends[row]] = grid.reshape(-1)
        row += 1
    if row != len(keys):
        raise ValueError(f"{path}: {shown(keys[row] + _CODES)} is missing")
    return values


def read_npy(raw: bytes, what: str) -> np.ndarray:
    """A .npy file of integers, without a copy; no more is believed of its header than its bytes bear out.

    Raises:
        ValueError: it is another kind of array, damaged, or of another size than its header says.
    """
    with reading(what, "no .npy array of integers"):
        if raw[:8] != b"\x93NUMPY\x01\x00":
            raise ValueError(f"begins with {raw[:8]!r}, expected \\x93NUMPY and version 1.0")
        start = 10 + int.from_bytes(raw[8:10], "little")
        dtype, order, shape = _layout(raw[:start])
        if np.dtype(dtype).kind not in "iu":
            raise ValueError(f"of {dtype}")
        count = 1
        for side in shape:
            count *= side
        if count * dtype.itemsize != len(raw) - start:
            raise ValueError(
                f"{dtype} {shape} takes {count * dtype.itemsize} bytes, but {len(raw) - start} follow"
            )
        return np.frombuffer(raw, dtype, offset=start).reshape(shape, order=order)


@lru_cache(maxsize=1000)
def _layout(header: bytes) -> tuple[np.dtype, Any, tuple[int, ...]]:
    file = io.BytesIO(header)
    np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    return dtype, "F" if is_fortran else "C", shape
