"""files of conversations → rows, in chunks that processes can share out.

Source: LLaVA's JSON (one list), JSON Lines, and `datasets`. A JSON list is held in memory, as its form
demands; JSON Lines and data sets are read piece by piece.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np

from .quantizing.dataset_sources import load_dataset_by_name


class SampleSource(Protocol):
    """Rows by number.

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
        """The rows of these numbers, ascending; JSON Lines come as bytes, see `decode_sample`."""
        ...

    def where(self, number: int) -> str:
        """The name of a row in errors."""
        ...


class JsonSource:
    """A JSON file that is one list of rows."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.stem
        data = path.read_bytes()
        self._digest = hashlib.sha256(data).hexdigest()
        try:
            rows = json.loads(data)
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(rows, list):
            raise ValueError(f"{path}: must be a list of rows, got {type(rows).__name__}")
        self._rows = rows
        self.num_samples = len(rows)

    def identity(self) -> dict[str, Any]:
        return {"kind": "json", "rows": self.num_samples, "sha256": self._digest}

    def read(self, numbers: Sequence[int]) -> Iterator[Any]:
        for number in numbers:
            yield self._rows[number]

    def where(self, number: int) -> str:
        return f"{self.path}: row {number}"


class JsonLinesSource:
    """A file of one JSON object a line; blank lines are passed over."""

    def __init__(self, path: Path):
        self.path = path
        self.name = path.stem
        digest = hashlib.sha256()
        starts, lines = [], []
        position = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
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
        return {"kind": "jsonl", "rows": self.num_samples, "sha256": self._digest}

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            for number in numbers:
                file.seek(self._starts[number])
                yield file.readline()

    def where(self, number: int) -> str:
        return f"{self.path}: line {self._lines[number]}"


class DatasetSamples:
    """A `datasets.Dataset`; a column of type Image stands for the ids that `being-vl encode` gave it.

    These are the values of `id_column`, or the numbers of the rows.

    Raises:
        ValueError: the id column is missing.
    """

    def __init__(self, dataset: datasets.Dataset, name: str, *, id_column: str | None = None):
        self.name = Path(name).name
        self._shown = name
        self._id_column = id_column
        columns = dataset.column_names
        if id_column is not None and id_column not in columns:
            raise ValueError(f"--id-column: no column {id_column!r}; there are {columns}")
        self._pixels = [
            column for column in ("image", "images") if _is_image(dataset.features.get(column))
        ]
        self._identity = {"rows": len(dataset), "fingerprint": dataset._fingerprint}
        self._dataset = dataset.remove_columns(self._pixels)
        self.num_samples = len(dataset)

    def identity(self) -> dict[str, Any]:
        return {"kind": "dataset", "id_column": self._id_column, **self._identity}

    def read(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for number, row in zip(numbers, self._dataset.select(numbers), strict=True):
            if self._id_column is not None:
                row["id"] = str(row[self._id_column])
            for column in self._pixels:
                row[column] = row["id"] if self._id_column is not None else str(number)
            yield row

    def where(self, number: int) -> str:
        return f"{self._shown}: row {number}"


def open_samples(
    data: str,
    *,
    split: str = "train",
    config_name: str | None = None,
    id_column: str | None = None,
) -> SampleSource:
    """A source by its name: a .json or .jsonl file, else a data set (saved, a folder, or a Hub id).

    Raises:
        ValueError: the file is not JSON, or has no row; no such split or column.
        FileNotFoundError: no such file or data set.
    """
    path = Path(data)
    source: SampleSource
    if path.suffix == ".json":
        source = JsonSource(path)
    elif path.suffix in (".jsonl", ".ndjson"):
        source = JsonLinesSource(path)
    elif path.is_file():
        raise ValueError(f"{data}: must be a .json or .jsonl file, or a data set")
    else:
        loaded = load_dataset_by_name(data, split=split, config_name=config_name)
        source = DatasetSamples(loaded, data, id_column=id_column)
    if not source.num_samples:
        raise ValueError(f"{data}: has no row")
    return source


def decode_sample(raw: Any, where: str) -> Any:
    """A row as `SampleSource.read` gives it → its JSON value.

    Raises:
        ValueError: a line is not JSON.
    """
    if not isinstance(raw, bytes):
        return raw
    try:
        return json.loads(raw)
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from None


def iter_samples(source: SampleSource, limit: int | None = None) -> Iterator[tuple[int, str, Any]]:
    """All rows, or the first so many: number, name in errors, JSON value.

    Raises:
        ValueError: a line is not JSON.
    """
    numbers = range(source.num_samples if limit is None else min(limit, source.num_samples))
    for number, raw in zip(numbers, source.read(numbers), strict=True):
        where = source.where(number)
        yield number, where, decode_sample(raw, where)


def _is_image(feature: Any) -> bool:
    if isinstance(feature, datasets.Image):
        return True
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if isinstance(inner, datasets.Image):
        raise ValueError(
            "images is a list of images a row; name them by ids (a column of texts) as being-vl encode does"
        )
    return False
