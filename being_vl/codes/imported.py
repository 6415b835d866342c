"""arrays of codes in other files → one parquet shard.

For codes that another program made: numpy arrays, torch tensors (`weights_only`), a parquet column of nested
lists, WebDataset shards with a .npy a sample. An image is known by its name where the file has one (key,
`image_id`, `id`), else by its number, from 0.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..files import check_regular, place, reading, shown, tar_members
from .shard_files import ShardInfo, is_shard, read_columns, read_schema, write_shard
from .tars import read_npy

ARRAY_SUFFIXES = (".npy", ".pt", ".pth", ".tar")
_IDS = ("image_id", "id", "__key__")


def holds_arrays(path: Any) -> bool:
    """Whether a file holds codes in a form that `import_codes` reads and `CodeShards` does not."""
    path = place(path)
    if not path.is_file():
        return False
    if path.suffix == ".parquet":
        return "height" not in read_schema(path).names
    return path.suffix in ARRAY_SUFFIXES and not is_shard(path)


def import_codes(path: str | os.PathLike, output: str | os.PathLike, *, codebook_size: int) -> Path:
    """Write the codes of a file as a shard that `CodeShards` reads.

    Args:
        path: .npy (N, h, w); .pt of such a tensor, of a list of (h, w), or of a dictionary of these by
            image id; .parquet with one column of nested lists; or .tar.
        output: the parquet file to write.
        codebook_size: K.

    Raises:
        ValueError: another form, or a code outside [0, K); the message says what is expected.
    """
    path = Path(path)
    read = {".npy": _numpy, ".tar": _tar, ".parquet": _parquet}
    check_regular(path)
    with reading(path):
        pairs = list(read.get(path.suffix, _torch)(path))
    if not pairs:
        raise ValueError(f"{path}: no codes in it")
    ids, grids = zip(*((name, _grid(grid, f"{path}: {name}")) for name, grid in pairs), strict=True)
    write_shard(output, ids, grids, ShardInfo(codebook_size=codebook_size))
    return Path(output)


def _grid(values: Any, where: str) -> np.ndarray:
    grid = np.asarray(values)
    if grid.ndim != 2 or grid.dtype.kind not in "iu":
        hint = "; a sequence of n codes is a grid (1, n)" if grid.ndim == 1 else ""
        raise ValueError(
            f"{where}: codes must be integers (h, w), got {grid.dtype} {grid.shape}{hint}"
        )
    return grid


def _numbered(array: Any, path: Path) -> Iterator[tuple[str, Any]]:
    shape = tuple(array.shape)
    if len(shape) == 2:
        raise ValueError(
            f"{path}: codes must be (N, h, w), got {shape}; reshape sequences to ({shape[0]}, 1, {shape[1]})"
        )
    if len(shape) != 3:
        raise ValueError(f"{path}: codes must be (N, h, w), got {shape}")
    yield from ((str(number), grid) for number, grid in enumerate(array))


def _numpy(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path}: not an array of numbers: {error}") from error
    yield from _numbered(array, path)


def _torch(path: Path) -> Iterator[tuple[str, Any]]:
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make the unpickler raise nearly any type
        raise ValueError(f"{path}: not a file of tensors alone, or damaged") from error
    if isinstance(content, torch.Tensor):
        yield from _numbered(content.numpy(), path)
    elif isinstance(content, dict):
        yield from ((str(name), grid) for name, grid in content.items())
    elif isinstance(content, (list, tuple)):
        yield from ((str(number), grid) for number, grid in enumerate(content))
    else:
        raise ValueError(f"{path}: must hold a tensor, a list or a dictionary of tensors")


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    schema = read_schema(path)
    nested = [name for name in schema.names if _depth(schema.field(name).type) == 2]
    if len(nested) != 1:
        raise ValueError(
            f"{path}: codes must be one column of lists of rows (list<list<int>>), found {nested} among "
            f"{schema.names}"
        )
    column = nested[0]
    names = next((name for name in _IDS if name in schema.names), None)
    table = read_columns(path, [column, *([names] if names else [])])
    for number in range(table.num_rows):
        name = str(table[names][number].as_py()) if names else str(number)
        yield name, np.array(table[column][number].as_py())


def _depth(kind: pa.DataType) -> int:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if any(is_list(kind) for is_list in lists):
        inner = _depth(kind.value_type)
        return inner + 1 if inner >= 0 else -1
    return 0 if pa.types.is_integer(kind) else -1


def _tar(path: Path) -> Iterator[tuple[str, Any]]:
    for member, read in tar_members(path):
        if member.endswith(".npy"):
            folder, slash, name = member.rpartition("/")
            key = name.partition(".")[0]
            yield f"{folder}{slash}{key}", read_npy(read(), f"{path}: {shown(member)}")
