"""codes → files: one shard of code grids, parquet or WebDataset tar, and what its metadata says.

The format is described in `shards.py`, which reads it.
"""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import PurePath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..files import (
    check_regular,
    is_of,
    is_remote,
    parse_json,
    reading,
    record,
    shown,
    write_atomic,
)
from .parquet_footer import column_chunks
from .tars import INDEX, SUFFIX, keys_of, read_codes, read_index, tar_bytes

VERSION = 1
_METADATA_KEY = b"being_vl.codes"
_ROW_GROUP = 4096
# of a file, decoded; encode's own have some 4 million values
_MAX_VALUES, _MAX_BYTES = 1 << 27, 1 << 29
_MAX_CODEBOOK_SIZE = 1 << 31  # of int32


@dataclass(frozen=True)
class Frame:
    """Where a grid stands in a video.

    Attributes:
        video_id: the video's name in the source.
        number: of the frame among those that were kept, from 0.
        time: seconds from the beginning of the video; NaN where unknown.
    """

    video_id: str
    number: int
    time: float


@dataclass(frozen=True)
class ShardInfo:
    """What a shard's metadata says of it.

    Attributes:
        codebook_size: K; every code is in [0, K).
        quantizer: identity of the model and preprocessing that made the codes ("" if unknown).
        source: digest of the ids and contents of the images, in order ("" if unknown).
        last: whether this is the last shard of its part of the source.
        skipped: images left out, as (position, image_id, reason), positions counted within the shard.
        version: version of the format.
    """

    codebook_size: int
    quantizer: str = ""
    source: str = ""
    last: bool = True
    skipped: tuple[tuple[int, str, str], ...] = ()
    version: int = VERSION


def code_type(codebook_size: int) -> pa.DataType:
    """The narrowest of int16, uint16, int32 that holds codes 0…codebook_size − 1."""
    if codebook_size <= 1 << 15:
        return pa.int16()
    return pa.uint16() if codebook_size <= 1 << 16 else pa.int32()


def write_shard(
    path: str | os.PathLike,
    image_ids: Sequence[str],
    grids: Sequence[np.ndarray],
    info: ShardInfo,
    frames: Sequence[Frame] | None = None,
) -> None:
    """Write one shard atomically; equal input gives equal bytes.

    Args:
        path: the file to make, of the format of `tars` where it ends in .tar, else parquet.
        image_ids: one for each grid.
        grids: (h, w) integer arrays, of mixed sizes if need be.
        info: the metadata; its `codebook_size` chooses the type of the codes.
        frames: for grids of videos, one a grid, those of a video together and in order.

    Raises:
        ValueError: lengths differ, a grid has not two dimensions, or a code is outside [0, K).
    """
    for what, given in (("image ids", image_ids), ("frames", frames)):
        if given is not None and len(given) != len(grids):
            raise ValueError(f"{path}: {len(given)} {what} for {len(grids)} grids")
    for image_id, grid in zip(image_ids, grids, strict=True):
        if grid.ndim != 2:
            raise ValueError(f"{path}: the grid of {image_id!r} must be (h, w), got {grid.shape}")
        check_range(grid, info.codebook_size, f"{path}: codes of {image_id!r}")
    kind = code_type(info.codebook_size)
    sizes = np.array([grid.size for grid in grids], np.int64)
    flat = [grid.reshape(-1) for grid in grids]
    values = np.concatenate(flat) if flat else np.empty(0, np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    of_videos = {}
    if frames is not None:
        of_videos = {
            "video_id": pa.array([frame.video_id for frame in frames], pa.string()),
            "frame": pa.array([frame.number for frame in frames], pa.int32()),
            "time": pa.array([frame.time for frame in frames], pa.float64()),
        }
    table = pa.table(
        {
            "image_id": pa.array(image_ids, pa.string()),
            "height": pa.array([grid.shape[0] for grid in grids], pa.int32()),
            "width": pa.array([grid.shape[1] for grid in grids], pa.int32()),
            "codes": pa.ListArray.from_arrays(
                pa.array(offsets), pa.array(values.astype(kind.to_pandas_dtype()))
            ),
            **of_videos,
        }
    ).replace_schema_metadata({_METADATA_KEY: json.dumps(asdict(info)).encode()})
    if not _is_tar(path):
        write_atomic(path, memoryview(_parquet(table)))
        return
    index = table.drop_columns("codes")
    said = {"codebook_size": info.codebook_size, "quantizer": info.quantizer}
    fields = ({**_plain(row), **said} for row in index.to_pylist())
    typed = [grid.astype(kind.to_pandas_dtype()) for grid in grids]
    write_atomic(path, tar_bytes(_parquet(index).to_pybytes(), keys_of(image_ids), typed, fields))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row as JSON: a time that is not known is null."""
    return {name: None if value != value else value for name, value in row.items()}


def _parquet(table: pa.Table) -> pa.Buffer:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", use_dictionary=False, write_statistics=False,
        row_group_size=_ROW_GROUP,
    )  # fmt: skip
    return sink.getvalue()


def _is_tar(path: Any) -> bool:
    return PurePath(str(path)).suffix == SUFFIX


def is_shard(path: Any) -> bool:
    """Whether a file is of a format of `write_shard`, as far as its name and, of a tar, its first member say."""
    return read_index(path) is not None if _is_tar(path) else path.suffix == ".parquet"


def opened(path: Any) -> Any:
    """A shard's parquet part, as pyarrow takes it; of an object in a store it fetches what it needs."""
    if _is_tar(path):
        index = read_index(path)
        if index is None:
            raise ValueError(f"{path}: not a shard that being-vl encode wrote (no {INDEX} in it)")
        return io.BytesIO(index)
    return path.open("rb") if is_remote(path) else path


def count_rows(path: Any) -> int:
    """The grids of a shard, as its footer has them."""
    with reading(path, "not a readable shard"):
        return pq.read_metadata(opened(path)).num_rows


def read_schema(path: str | os.PathLike) -> pa.Schema:
    """The schema of a shard, or of another parquet file, that is small enough to be read whole.

    Raises:
        ValueError: no parquet file, or one that stands for more than 2²⁷ values or 512 MB, whatever its own size.
    """
    check_regular(path)
    with reading(path, "not a readable parquet file"):
        source = opened(path)
        chunks = column_chunks(source)
        metadata = pq.read_metadata(source)
        schema = metadata.schema.to_arrow_schema()
        values = max(sum(max(values, 0) for values, _ in chunks), metadata.num_rows)
        size = sum(max(size, 0) for _, size in chunks)
    if values > _MAX_VALUES or size > _MAX_BYTES:
        raise ValueError(
            f"{path}: stands for {values} values in {size} bytes, more than {_MAX_VALUES} or {_MAX_BYTES}: make "
            "smaller shards"
        )
    if not _is_tar(path) or "codes" in schema.names:
        return schema
    info = _info_of(schema, path)
    if info is None:
        raise ValueError(f"{path}: not a shard that being-vl encode wrote")
    return schema.append(pa.field("codes", pa.list_(code_type(info.codebook_size))))


def read_columns(path: str | os.PathLike, columns: Sequence[str]) -> pa.Table:
    """Columns of a shard, or of another parquet file, as `read_schema` allows it."""
    schema = read_schema(path)
    from_arrays = _is_tar(path) and "codes" in columns
    wanted = [name for name in columns if not (from_arrays and name == "codes")]
    needed = {*wanted, *(("image_id", "height", "width") if from_arrays else ())}
    with reading(path, "not a readable parquet file"):
        table = pq.read_table(opened(path), columns=sorted(needed), partitioning=None)
        table.validate(full=True)
    if from_arrays:
        codes = _codes_of_tar(path, table, schema.field("codes").type)
        table = table.append_column("codes", codes)
    return table.select(list(columns))


def _codes_of_tar(path: Any, index: pa.Table, kind: pa.DataType) -> pa.ListArray:
    with reading(path, "not a readable shard"):
        heights, widths = (index[name].to_numpy().astype(np.int64) for name in ("height", "width"))
        cells = heights.astype(float) * widths  # floats do not wrap
        if (heights < 1).any() or (widths < 1).any() or cells.sum() > _MAX_VALUES:
            raise ValueError(f"{path}: height × width must be from 1 to {_MAX_VALUES} in all")
        keys = keys_of(index["image_id"].to_pylist())
        values = read_codes(path, keys, heights, widths, kind.value_type.to_pandas_dtype())
        offsets = np.concatenate([[0], np.cumsum(heights * widths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values), type=kind)


def read_ids(path: str | os.PathLike, column: str = "image_id") -> list[str]:
    """The ids of a shard's images, or of their videos, one a row, checked to be text."""
    ids = read_columns(path, [column])[column].to_pylist()
    for number, name in enumerate(ids):
        if not isinstance(name, str):
            raise ValueError(f"{path}: {column} must be text, got {shown(name)} in row {number}")
    return ids


def read_info(path: str | os.PathLike) -> ShardInfo | None:
    """The metadata of a shard; None for a parquet file that carries none of ours.

    Raises:
        ValueError: the file is not parquet, or its metadata is malformed or of a later version.
    """
    return _info_of(read_schema(path), path)


def _info_of(schema: pa.Schema, path: Any) -> ShardInfo | None:
    raw = (schema.metadata or {}).get(_METADATA_KEY)
    if raw is None:
        return None
    fields = parse_json(raw, f"{path}: the metadata of the shard")
    version = fields.get("version") if isinstance(fields, dict) else None
    if version != VERSION and is_of(version, int):
        raise ValueError(
            f"{path}: version must be {VERSION}, got {version}; a later being_vl may have written it"
        )
    try:
        info = record(ShardInfo, fields)
        if not 1 <= info.codebook_size <= _MAX_CODEBOOK_SIZE:
            raise ValueError(
                f"codebook_size must be 1 to {_MAX_CODEBOOK_SIZE}, got {info.codebook_size}"
            )
    except ValueError as error:
        raise ValueError(f"{path}: malformed metadata: {error}") from None
    skipped: Any = info.skipped  # lists, as JSON has them
    return replace(info, skipped=tuple(map(tuple, skipped)))


def check_range(codes: np.ndarray, codebook_size: int, what: str) -> None:
    if codes.size and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        low, high = int(codes.min()), int(codes.max())
        raise ValueError(f"{what} must be in [0, {codebook_size}), got {low} to {high}")
