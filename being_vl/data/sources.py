"""files of conversations → raw samples, by number.

LLaVA's JSON (one list), JSON Lines, both also compressed, and `datasets`. A JSON list is held in memory, as
its form demands; JSON Lines and data sets are read piece by piece.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..files import check_regular, load_json
from .quantizing.dataset_sources import image_digest, load_dataset_by_name, rows_of

_MOST_COMPRESSED = 60  # conversations shrink some ten times
_COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
_UNPACKED_BYTES = 1 << 26  # that a compressed file may always unpack to


class SampleSource(Protocol):
    """Samples by number.

    Attributes:
        name: what the column `source` says by default.
        num_samples: how many there are.
    """

    name: str
    num_samples: int

    def identity(self) -> dict[str, Any]:
        """What tells this source from another: JSON values."""
        ...

    def read(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The samples of these numbers, ascending; JSON Lines come as bytes, see `decode_sample`."""
        ...

    def where(self, number: int) -> str:
        """The name of a sample in errors."""
        ...

    def positions(self) -> dict[str, Any] | None:
        """What the numbers of samples mean, where they name images; None where they do not."""
        return None


class JsonSource(SampleSource):
    """A JSON file that is one list of samples, or an object with one such list (`{"data": […]}`)."""

    def __init__(self, path: Path, samples: Any, digest: str):
        self.path = path
        self.name = _stem(path)
        if isinstance(samples, dict):
            lists = [value for value in samples.values() if _is_list_of_objects(value)]
            samples = lists[0] if len(lists) == 1 else samples
        if not isinstance(samples, list):
            raise ValueError(f"{path}: must be a list of samples, got {type(samples).__name__}")
        self._samples = samples
        self._digest = digest
        self.num_samples = len(samples)

    def identity(self) -> dict[str, Any]:
        return {"kind": "json", "samples": self.num_samples, "sha256": self._digest}

    def read(self, numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            yield self._samples[number]

    def where(self, number: int) -> str:
        return f"{self.path}: sample {number}"


class JsonLinesSource(SampleSource):
    """A file of one JSON object a line; blank lines are passed over."""

    def __init__(self, path: Path):
        self.path = path
        self.name = _stem(path)
        self._file = _open_plain(path)
        digest = hashlib.sha256()
        starts, lines = [], []
        position = 0
        for number, line in enumerate(self._file, start=1):
            digest.update(line)
            if line.strip():
                starts.append(position)
                lines.append(number)
            position += len(line)
        self._starts = np.array(starts, np.int64)
        self._lines = np.array(lines, np.int64)
        self._digest = digest.hexdigest()
        self.num_samples = len(starts)

    def identity(self) -> dict[str, Any]:
        return {"kind": "jsonl", "samples": self.num_samples, "sha256": self._digest}

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        for number in numbers:
            self._file.seek(self._starts[number])
            yield self._file.readline()

    def where(self, number: int) -> str:
        return f"{self.path}: line {self._lines[number]}"


def _open_json(path: Path) -> JsonSource | JsonLinesSource:
    """A .json file: one list, or, as many are, JSON Lines under that name."""
    with _open_plain(path) as file:
        data = file.read()
    try:
        samples = load_json(data)
    except (ValueError, RecursionError) as error:
        first, _, rest = data.lstrip().partition(b"\n")
        try:
            lines = rest.strip() and isinstance(load_json(first), dict)
        except (ValueError, RecursionError):
            lines = False
        if lines:
            return JsonLinesSource(path)
        raise ValueError(f"{path}: not valid JSON: {error}") from None
    if isinstance(samples, dict) and data.count(b"\n", 0, len(data.rstrip())) == 0:
        if any(name in samples for name in ("conversations", "messages", "query")):
            return JsonLinesSource(path)  # a single line
    return JsonSource(path, samples, hashlib.sha256(data).hexdigest())


def _open_plain(path: Path) -> IO[bytes]:
    """A file to read from any place in it; a compressed one is unpacked into a temporary file."""
    check_regular(path)
    if path.suffix not in _COMPRESSED:
        return open(path, "rb")
    limit = _UNPACKED_BYTES + _MOST_COMPRESSED * path.stat().st_size
    unpacked = tempfile.TemporaryFile()
    try:
        with pa.input_stream(str(path), compression=_COMPRESSED[path.suffix]) as packed:
            while block := packed.read(1 << 20):
                unpacked.write(block)
                if unpacked.tell() > limit:
                    raise ValueError(f"{path}: unpacks to more than {limit} bytes")
    except (pa.ArrowException, OSError) as error:
        unpacked.close()
        raise ValueError(f"{path}: cannot be unpacked: {error}") from None
    unpacked.seek(0)
    return unpacked


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _stem(path: Path) -> str:
    """The file's name without what says its form: a.jsonl.gz is a."""
    return Path(path.stem).stem if path.suffix in _COMPRESSED else path.stem


class DatasetSamples(SampleSource):
    """A `datasets.Dataset`; a column of images stands for the ids that `being-vl encode` gave them.

    These are the values of `id_column`, or the numbers of the samples; a list of images has `ID/0`, `ID/1`, …
    A sample whose image is null has no image.

    Args:
        dataset: the samples.
        name: in errors, and by default in the column `source`.
        image_column: the column of images; by default `image` or `images`, or the only one of that type.
        id_column: the column of ids.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        name: str,
        *,
        image_column: str | None = None,
        id_column: str | None = None,
    ):
        self.name = Path(name).name
        self._shown = name
        self._id_column = id_column
        for option, column in (("--image-column", image_column), ("--id-column", id_column)):
            if column is not None and column not in dataset.column_names:
                raise ValueError(
                    f"{option}: no column {column!r}; there are {dataset.column_names}"
                )
        images = [name for name, kind in dataset.features.items() if _holds_images(kind)]
        chosen = [image_column] if image_column in images else []
        if not chosen and image_column is None:
            chosen = [name for name in images if name in ("image", "images")] or images
            if len(chosen) > 1:
                raise ValueError(f"--image-column must name one of the columns of images: {chosen}")
        self._texts_as_ids = image_column if image_column not in (None, *images) else None
        self._images = chosen[0] if chosen else None
        self._is_list = bool(chosen) and not isinstance(dataset.features[chosen[0]], datasets.Image)
        self._counts = _count_images(dataset, chosen[0]) if chosen else None  # type: ignore[arg-type]
        self._identity = {"samples": len(dataset), "fingerprint": dataset._fingerprint}
        self._whole = dataset
        self._dataset = dataset.remove_columns(images)
        if not self._dataset.column_names:
            raise ValueError(f"{name}: holds images alone, and no conversations about them")
        self.num_samples = len(dataset)

    def identity(self) -> dict[str, Any]:
        return {"kind": "dataset", "id_column": self._id_column, **self._identity}

    def positions(self) -> dict[str, Any] | None:
        """What the numbers of the samples mean, where they name images: see `image_digest`."""
        if self._images is None or self._id_column is not None:
            return None
        return {
            "images": self.num_samples,
            "sample": image_digest(self._whole, self._images),
        }

    def read(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        rows = rows_of(self._dataset.select(numbers), lambda place: self.where(numbers[place]))
        for number, sample in zip(numbers, rows, strict=True):
            name = str(number)
            if self._id_column is not None:
                sample["id"] = name = str(sample[self._id_column])
            if self._counts is not None:
                count = int(self._counts[number])
                ids = [f"{name}/{k}" for k in range(count)] if self._is_list else [name] * count
                sample.pop("image", None)
                sample["images"] = ids
            elif self._texts_as_ids is not None:
                sample["images"] = sample.pop(self._texts_as_ids)
            yield sample

    def where(self, number: int) -> str:
        return f"{self._shown}: sample {number}"


def open_samples(
    data: str, *, image_column: str | None = None, id_column: str | None = None, **where: Any
) -> SampleSource:
    """A source by its name: a .json or .jsonl file, else a data set (saved, a folder, or a Hub id).

    Args:
        data: the name.
        image_column, id_column: as of [`DatasetSamples`].
        where: `split`, "train" by default, and `config_name` of a data set.

    Raises:
        ValueError: the file is not JSON, or has no sample; no such split or column.
        FileNotFoundError: no such file or data set.
    """
    path = Path(data)
    form = Path(path.stem).suffix if path.suffix in _COMPRESSED else path.suffix
    source: SampleSource
    if form in (".json", ".jsonl", ".ndjson") and not path.is_dir():
        source = _open_json(path) if form == ".json" else JsonLinesSource(path)
    elif path.is_file():
        raise ValueError(f"{data}: must be a .json or .jsonl file, or a data set")
    else:
        loaded = load_dataset_by_name(data, **where)
        source = DatasetSamples(loaded, data, image_column=image_column, id_column=id_column)
    if not source.num_samples:
        raise ValueError(f"{data}: has no sample")
    return source


def decode_sample(raw: Any, where: str) -> Any:
    """A sample as `SampleSource.read` gives it → its JSON value."""
    if not isinstance(raw, bytes):
        return raw
    try:
        return load_json(raw)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None


def iter_samples(source: SampleSource, limit: int | None = None) -> Iterator[tuple[int, str, Any]]:
    """All samples, or the first so many: number, name in errors, JSON value.

    Raises:
        ValueError: a line is not JSON.
    """
    numbers = range(source.num_samples if limit is None else min(limit, source.num_samples))
    for number, raw in zip(numbers, source.read(numbers), strict=True):
        where = source.where(number)
        yield number, where, decode_sample(raw, where)


def _holds_images(feature: Any) -> bool:
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    return isinstance(feature, datasets.Image) or isinstance(inner, datasets.Image)


def _count_images(dataset: datasets.Dataset, column: str) -> np.ndarray:
    """How many images each sample has, int32; reads no image."""
    counts = []
    for table in dataset.select_columns([column]).with_format("arrow").iter(batch_size=1000):
        for chunk in table[column].chunks:
            if pa.types.is_struct(chunk.type):
                empty = [chunk.field(name).is_null().to_numpy(False) for name in ("bytes", "path")]
                null = chunk.is_null().to_numpy(False) | (empty[0] & empty[1])
                counts.append(np.where(null, 0, 1))
            else:
                counts.append(pc.list_value_length(chunk).fill_null(0).to_numpy(False))
    return np.concatenate(counts).astype(np.int32) if counts else np.empty(0, np.int32)
