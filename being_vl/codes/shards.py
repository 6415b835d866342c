"""codes ↔ files: shards of code grids.

A plain parquet table, or a WebDataset tar that reads as one (`tars`), so that pandas, polars, DuckDB and `datasets`
read it too. One row is one image: `image_id` string, `height` and `width` int32 in cells, `codes` list<int16> (uint16
or int32 where the codebook needs it) in row-major order. Frames of videos also have `video_id`, `frame` (int32, from 0)
and `time` (float64, seconds); those of a video lie together, in order. The file's metadata says which quantizer made
the codes.
"""

import itertools
import os
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ..files import check_entries, check_file, new_file, place, read_json
from .shard_files import (
    VERSION,
    ShardInfo,
    check_range,
    code_type,
    is_shard,
    read_columns,
    read_ids,
    read_info,
    read_schema,
    write_shard,
)

MANIFEST = "manifest.json"
RUN_FILE = "encode.json"
_CODE_TYPES = (pa.int16(), pa.uint16(), pa.int32())
_COLUMNS = ("image_id", "height", "width", "codes")
_VIDEO_COLUMNS = ("frame", "time")  # beside video_id


class Video(NamedTuple):
    """The rows of a video in `CodeShards`, and the time of each frame (float64, seconds)."""

    video_id: str
    start: int
    stop: int
    times: np.ndarray


class CodeShards(Sequence[np.ndarray]):
    """The grids of a folder of shards, as a sequence of (h, w) arrays.

    Opening reads footers and sizes alone. Codes are read shard by shard when they are asked for; a few
    shards stay in memory, and arrays are read-only views of them. Reading in order costs one shard at a time; for
    random access to more than memory holds, write `to_npy` first.

    Args:
        path: a folder that `being-vl encode` has finished, or any folder of such parquet files, or one
            file, or a list of files. Order is that of the file names.
        codebook_size: K, needed only for files that do not say it.
        cached_shards: shards kept in memory.
        verify: compare the sha256 of every shard with that of `manifest.json`, which reads them whole; their
            sizes are compared in any case.

    Raises:
        FileNotFoundError: there is no such file or folder, or no parquet file in it.
        ValueError: a folder whose `encode` has not finished, or has no checksums to `verify`, a shard that is not as
            it was written, shards of different quantizers, a column missing or of another type, sizes that do not
            fit; the message names file, field and value.
    """

    def __init__(
        self,
        path: str | os.PathLike | Sequence[str | os.PathLike],
        *,
        codebook_size: int | None = None,
        cached_shards: int = 4,
        verify: bool = False,
    ):
        self.files = _list_files(path, verify)
        self.codebook_size, self.quantizer = _common_info(self.files, codebook_size)
        sizes = [_read_sizes(file) for file in self.files]
        self.heights = np.concatenate([h for h, _ in sizes])  # (images,) int32
        self.widths = np.concatenate([w for _, w in sizes])  # (images,) int32
        self._starts = np.cumsum([0, *(len(h) for h, _ in sizes)])
        self._cached_shards = max(1, cached_shards)
        self._cache: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    @property
    def num_cells(self) -> int:
        """Cells of all grids together."""
        return int((self.heights.astype(np.int64) * self.widths).sum())

    @property
    def dtype(self) -> np.dtype:
        """The type of the codes, int16 for up to 32,768 codes."""
        return np.dtype(code_type(self.codebook_size).to_pandas_dtype())

    def __len__(self) -> int:
        return len(self.heights)

    def __getitem__(self, index: Any) -> Any:
        """Grid `index`, (h, w); a slice gives a list of grids."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"grid {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, position, side="right")) - 1
        values, offsets = self._shard(shard)
        row = position - self._starts[shard]
        shape = (self.heights[position], self.widths[position])
        return values[offsets[row] : offsets[row + 1]].reshape(shape)

    def __iter__(self) -> Iterator[np.ndarray]:
        """All grids in order, one shard in memory at a time."""
        for values, heights, widths in self.iter_flat():
            start = 0
            for height, width in zip(heights.tolist(), widths.tolist(), strict=True):
                yield values[start : start + height * width].reshape(height, width)
                start += height * width

    def iter_flat(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Shard by shard: codes of all its grids end to end, heights, widths; without a copy."""
        for shard, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False)):
            values, _ = self._load(shard)
            yield values, self.heights[start:stop], self.widths[start:stop]

    def image_ids(self) -> list[str]:
        """The ids of all images, in order."""
        return [name for file in self.files for name in read_ids(file)]

    @property
    def has_videos(self) -> bool:
        """Whether the grids are frames of videos."""
        return all("video_id" in read_schema(file).names for file in self.files)

    def videos(self) -> list[Video]:
        """The videos, in order; empty where the grids are images.

        Raises:
            ValueError: frames of a video do not count from 0, or the video comes twice.
        """
        if not self.has_videos:
            return []
        table = pa.concat_tables([read_columns(file, _VIDEO_COLUMNS) for file in self.files])
        names = [name for file in self.files for name in read_ids(file, "video_id")]
        numbers = table["frame"].to_numpy()
        starts = np.flatnonzero(numbers == 0).tolist()
        times = table["time"].to_numpy()
        if names and starts[:1] != [0]:
            raise ValueError(f"{self.files[0]}: the frames of video {names[0]!r} must count from 0")
        folder, found = self.files[0].parent, []
        for start, stop in itertools.pairwise([*starts, len(names)]):
            is_one = len(set(names[start:stop])) == 1
            if not is_one or (numbers[start:stop] != np.arange(stop - start)).any():
                raise ValueError(
                    f"{folder}: the frames of video {names[start]!r} must count from 0, one after another"
                )
            found.append(Video(names[start], start, stop, times[start:stop]))
        twice = [name for name, n in Counter(video.video_id for video in found).items() if n > 1]
        if twice:
            raise ValueError(f"{folder}: video ids must differ, got {twice[0]!r} twice")
        return found

    def to_npy(self, path: str | os.PathLike) -> None:
        """Write all codes as one (images, h, w) array, to be opened with `np.load(mmap_mode="r")`.

        Raises:
            ValueError: the grids are of more than one size.
        """
        shapes = set(zip(self.heights.tolist(), self.widths.tolist(), strict=True))
        if len(shapes) != 1:
            raise ValueError(
                f"grids of {len(shapes)} sizes cannot be one array: {sorted(shapes)[:5]}"
            )
        shape = (len(self), *shapes.pop())
        with new_file(path) as aside:
            array = np.lib.format.open_memmap(aside, mode="w+", dtype=self.dtype, shape=shape)
            start = 0
            for values, heights, _ in self.iter_flat():
                array[start : start + len(heights)] = values.reshape(len(heights), *shape[1:])
                start += len(heights)
            array.flush()

    def _shard(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        if shard not in self._cache:
            self._cache[shard] = self._load(shard)
            if len(self._cache) > self._cached_shards:
                self._cache.popitem(last=False)
        self._cache.move_to_end(shard)
        return self._cache[shard]

    def _load(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Codes of a shard end to end, and the offsets of its rows (rows + 1)."""
        file = self.files[shard]
        column = read_columns(file, ["codes"])["codes"].combine_chunks()
        offsets = np.asarray(column.offsets).astype(np.int64)
        start, stop = self._starts[shard], self._starts[shard + 1]
        cells = self.heights[start:stop].astype(np.int64) * self.widths[start:stop]
        wrong = np.flatnonzero(np.diff(offsets) != cells)
        if column.null_count or column.values.null_count:
            raise ValueError(f"{file}: codes must not be null")
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{file}: codes[{row}] must have height × width = {self.heights[start + row]} × "
                f"{self.widths[start + row]} values, got {int(np.diff(offsets)[row])}"
            )
        values = column.values.to_numpy(zero_copy_only=True)[offsets[0] : offsets[-1]]
        check_range(values, self.codebook_size, f"{file}: codes")
        return values, offsets - offsets[0]


class SampledShards(CodeShards):
    """A sample of the grids of `CodeShards`, `count` of them at most, uniform over all, in their order."""

    def __init__(self, shards: CodeShards, count: int, seed: int):
        self.__dict__.update(shards.__dict__)
        self._whole = shards
        drawn = np.random.default_rng(seed).choice(
            len(shards), min(count, len(shards)), replace=False
        )
        self.chosen = np.sort(drawn)  # (count,) numbers of grids
        self.heights, self.widths = shards.heights[self.chosen], shards.widths[self.chosen]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._whole[int(self.chosen[index])]

    def iter_flat(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Grid by grid."""
        for i in range(len(self)):
            yield self[i].reshape(-1), self.heights[i : i + 1], self.widths[i : i + 1]


def _list_files(path: Any, verify: bool) -> list[Path]:
    several = isinstance(path, Sequence) and not isinstance(path, str)
    folder = None if several else place(path)
    described = folder is not None and (folder / RUN_FILE).exists()
    if verify and not described:
        raise ValueError(f"{path}: no folder of being-vl encode, so that no checksums are known")
    if folder is None:
        files = [place(file) for file in path]
    elif folder.is_dir():
        files = sorted(folder.glob("*.parquet"))
        if not files:
            tars = folder.glob("codes-*.tar" if described else "*.tar")
            files = sorted(file for file in tars if described or is_shard(file))
        if described:
            _check_finished(folder, verify)
    else:
        files = [folder]
    if not files:
        raise FileNotFoundError(f"{path}: no parquet file, nor tar of codes, in this folder")
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
    return files


def _check_finished(folder: Path, verify: bool) -> None:
    """Check that the shards of a finished folder are those that its manifest lists, as they were written."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        raise ValueError(
            f"{folder}: no {MANIFEST}, so being-vl encode has not finished here; run it again (it "
            "continues), or name the parquet files themselves"
        )
    content = read_json(manifest)
    shards: Any = content.get("shards") if isinstance(content, dict) else None
    check_entries(manifest, shards)
    for shard in shards:
        check_file(folder / shard["file"], shard, MANIFEST, verify=verify)


def _common_info(files: list[Path], codebook_size: int | None) -> tuple[int, str]:
    quantizer: tuple[Path, str] | None = None
    size = codebook_size
    for file in files:
        info = read_info(file)
        if info is None and codebook_size is None:
            raise ValueError(f"{file}: the file does not say its codebook_size: pass codebook_size")
        if info is None:
            continue
        size = info.codebook_size if size is None else size
        if info.codebook_size != size:
            raise ValueError(f"{file}: codebook_size must be {size}, got {info.codebook_size}")
        quantizer = quantizer or (file, info.quantizer)
        if info.quantizer != quantizer[1]:
            raise ValueError(
                f"{file}: quantizer must be {quantizer[1]}, as in {quantizer[0].name}, "
                f"got {info.quantizer}"
            )
    assert size is not None
    return size, quantizer[1] if quantizer else ""


def _read_sizes(file: Path) -> tuple[np.ndarray, np.ndarray]:
    schema = read_schema(file)
    for name in _COLUMNS:
        if name not in schema.names:
            raise ValueError(f"{file}: column {name!r} is missing; there are {schema.names}")
    kind = schema.field("codes").type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or (
        kind.value_type not in _CODE_TYPES
    ):
        raise ValueError(f"{file}: codes must be a list of int16, uint16 or int32, got {kind}")
    table = read_columns(file, ["height", "width"])
    sizes = []
    for name in ("height", "width"):
        if table[name].null_count or not pa.types.is_integer(table[name].type):
            raise ValueError(f"{file}: {name} must be int32 without nulls, got {table[name].type}")
        sizes.append(table[name].to_numpy().astype(np.int32))
        if (sizes[-1] < 1).any():
            row = int(np.flatnonzero(sizes[-1] < 1)[0])
            raise ValueError(f"{file}: {name}[{row}] must be at least 1, got {sizes[-1][row]}")
    return sizes[0], sizes[1]


__all__ = [
    "MANIFEST",
    "RUN_FILE",
    "VERSION",
    "CodeShards",
    "ShardInfo",
    "code_type",
    "read_columns",
    "read_info",
    "write_shard",
]
