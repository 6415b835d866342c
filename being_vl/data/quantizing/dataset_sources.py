"""`datasets` data sets → encoded image files, by sample or as a stream.

Images stay undecoded (`Image(decode=False)`), so that one corrupt image can be named and does not end the
iteration.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa

from ...files import check_regular, read_json, reading
from .sources import IndexedSource, Record, Source


class DatasetSource(IndexedSource):
    """A `datasets.Dataset` (map style).

    Args:
        dataset: the samples.
        image_column: the column of images; the only one of type Image by default.
        id_column: the column of ids; the sample's number by default.
        shard_size: samples in a part.

    Raises:
        ValueError: a column is missing, or there are several of type Image and none was named.
    """

    sampling = None

    def __init__(
        self,
        dataset: datasets.Dataset,
        *,
        shard_size: int,
        image_column: str | None = None,
        id_column: str | None = None,
    ):
        self.image_column, self.id_column = _columns(dataset, image_column, id_column)
        self.fingerprint = dataset._fingerprint
        self.dataset = _undecoded(dataset, self.image_column)
        self.shard_size = shard_size
        self.num_images = len(dataset)
        self.left_out: list[tuple[str, str]] = []
        self.num_parts = -(-len(dataset) // shard_size)

    def identity(self) -> dict[str, Any]:
        columns = [self.image_column, self.id_column]
        return {
            "kind": "dataset",
            "images": self.num_images,
            "columns": columns,
            "fingerprint": self.fingerprint,
            "sample": image_digest(self.dataset, self.image_column),
        }

    def record(self, index: int) -> Record:
        with reading(f"row {index}"):
            row = self.dataset[index]
        return _record(row, self.image_column, self.id_column, str(index))


class StreamSource(Source):
    """A `datasets.IterableDataset` (streaming); its parts are its own shards.

    The arguments are those of [`DatasetSource`], without `shard_size`. Without an id column, an id is the number
    of the part, a slash, and the number of the sample. A part whose last shard is written counts as finished
    without being read again, since a stream has no fingerprint.
    """

    sampling = None

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        *,
        image_column: str | None = None,
        id_column: str | None = None,
    ):
        self.image_column, self.id_column = _columns(dataset, image_column, id_column)
        self.dataset = _undecoded(dataset, self.image_column)
        self.num_parts = dataset.num_shards
        self.num_images = None
        self.left_out: list[tuple[str, str]] = []

    def identity(self) -> dict[str, Any]:
        columns = [self.image_column, self.id_column]
        return {"kind": "stream", "parts": self.num_parts, "columns": columns}

    def records(self, part: int) -> Iterator[Record]:
        rows = self.dataset.shard(num_shards=self.num_parts, index=part)
        for number, sample in enumerate(rows_of(rows, lambda n: f"row {n} of part {part}")):
            yield _record(sample, self.image_column, self.id_column, f"{part:05d}/{number:08d}")


def load_dataset_source(
    name: str,
    *,
    shard_size: int,
    image_column: str | None = None,
    id_column: str | None = None,
    **where: Any,
) -> DatasetSource | StreamSource:
    """Open a data set by the path of a saved one, a folder that `load_dataset` reads, or a Hub id.

    Args:
        name: of the data set.
        shard_size, image_column, id_column: as of `DatasetSource`.
        where: `split`, `config_name`, `streaming`, as of `load_dataset_by_name`.

    Raises:
        ValueError: no such split or column.
        FileNotFoundError: no such data set.
    """
    loaded = load_dataset_by_name(name, shard_size=shard_size, **where)
    columns = {"image_column": image_column, "id_column": id_column}
    if isinstance(loaded, datasets.IterableDataset):
        return StreamSource(loaded, **columns)
    return DatasetSource(loaded, shard_size=shard_size, **columns)


def load_dataset_by_name(
    name: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    shard_size: int = 4096,
) -> datasets.Dataset | datasets.IterableDataset:
    """A split of a saved data set, of a folder that `load_dataset` reads, of parquet files or a Hub id.

    Parquet files are a path or a URL that ends in `.parquet`, `*` included; `split` says nothing of them.
    """
    path = Path(name)
    if path.suffix == ".parquet" and not path.is_dir():
        if "::" in name:  # even in a local file's name: fsspec would read another one
            raise ValueError(f"{name}: the name of parquet files must not hold '::'")
        return datasets.load_dataset("parquet", data_files=name, split="train", streaming=streaming)
    if not (path / "state.json").exists() and not (path / "dataset_dict.json").exists():
        with reading(name):
            return datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    for record in (
        *path.rglob("state.json"),
        *path.rglob("dataset_info.json"),
        *path.glob("dataset_dict.json"),
    ):
        if not isinstance(read_json(record), dict):
            raise ValueError(f"{record}: must hold an object")
    for shard in path.rglob("*.arrow"):
        check_regular(shard)
    with reading(name):
        loaded = datasets.load_from_disk(name)
    if isinstance(loaded, datasets.DatasetDict):
        if split not in loaded:
            raise ValueError(f"{name}: no split {split!r}; there are {sorted(loaded)}")
        loaded = loaded[split]
    for file in loaded.cache_files:
        check_arrow(file["filename"])
    if streaming:
        return loaded.to_iterable_dataset(num_shards=-(-len(loaded) // shard_size))
    return loaded


def check_arrow(path: str | os.PathLike) -> None:
    """Look at every offset and text of an Arrow stream before it is mapped: a wrong one is read from memory that is
    not there, which ends the process without a word. Values of fixed size and bytes are not touched.

    Raises:
        ValueError: naming the file and what is wrong.
    """
    with reading(path, "not a readable Arrow file"), pa.memory_map(str(path)) as file:
        for batch in pa.ipc.open_stream(file):
            batch.validate(full=True)


def rows_of(rows: Iterable[Any], name: Callable[[int], str]) -> Iterator[Any]:
    """Rows, with errors that name the one that cannot be read: Arrow looks at no value before it is asked for.

    Args:
        rows: of a data set.
        name: of the row at a place.

    Raises:
        ValueError: Arrow cannot make a value of a row, by whatever error it says so.
    """
    iterator = iter(rows)
    for place in count():
        try:
            row = next(iterator, None)
        except Exception:
            with reading(name(place)):
                raise
        if row is None:
            return
        yield row


def image_digest(dataset: datasets.Dataset, image_column: str) -> str:
    """A digest of up to 16 images of a column, evenly spaced.

    Samples are named by their number where there is no column of ids; this tells whether the numbers of two
    data sets mean the same images, which a fingerprint does not where one is a copy of the other.
    """
    kind = dataset.features[image_column]
    undecoded = datasets.Image(decode=False)
    if not isinstance(kind, datasets.Image):
        undecoded = datasets.List(undecoded)
    column = dataset.select_columns([image_column]).cast_column(image_column, undecoded)
    digest = hashlib.sha256()
    chosen = np.unique(np.linspace(0, max(len(column) - 1, 0), 16).astype(int))[: len(column)]
    for number in chosen.tolist():
        with reading(f"row {number}"):
            value = column[number][image_column]
        for image in value if isinstance(value, list) else [value]:
            record = _record({"image": image}, "image", None, str(number))
            try:
                content = record.read() if record.content is not None else b""
            except OSError:
                content = b""
            digest.update(f"{number} {len(content)} ".encode() + content)
    return f"sha256:{digest.hexdigest()}"


def _columns(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_column: str | None,
    id_column: str | None,
) -> tuple[str, str | None]:
    features = dataset.features
    if features is None:  # a stream whose types nobody has declared
        first = next(iter(islice(dataset, 1)), None)
        if first is None:
            raise ValueError("the data set has no sample")
        names, images = list(first), []
    else:
        names = list(features)
        images = [name for name in names if isinstance(features[name], datasets.Image)]
    if image_column is None:
        if len(images) != 1:
            raise ValueError(
                f"--image-column must name the images: {len(images)} columns are of type Image; "
                f"there are {names}"
            )
        image_column = images[0]
    for option, column in (("--image-column", image_column), ("--id-column", id_column)):
        if column is not None and column not in names:
            raise ValueError(f"{option}: no column {column!r}; there are {names}")
    return image_column, id_column


def _undecoded(dataset: Any, image_column: str) -> Any:
    """The same samples, with images as {"bytes", "path"} instead of decoded."""
    return dataset.cast_column(image_column, datasets.Image(decode=False))


def _record(sample: dict[str, Any], image: str, id_column: str | None, number: str) -> Record:
    image_id = number if id_column is None else str(sample[id_column])
    if id_column is not None and sample[id_column] is None:
        raise ValueError(f"row {number}: the id in column {id_column!r} is null")
    value = sample[image]
    if value is None:
        return Record(image_id, None)
    return Record(image_id, value["path"] if value["bytes"] is None else value["bytes"])
