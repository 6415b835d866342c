"""storage → encoded image files: folders, `datasets` data sets, WebDataset shards.

Source: the conventions of `datasets` and WebDataset (a sample is the run of members of one base name).
Every source is a list of parts, so that ranks can share them out, and hands out undecoded bytes or paths,
so that decoding can happen in worker processes.
"""

from __future__ import annotations

import glob
import hashlib
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import datasets
import fsspec

IMAGE_EXTENSIONS = frozenset(
    ".avif .bmp .gif .ico .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .tga .tif .tiff .webp".split()
)


@dataclass(frozen=True)
class Record:
    """One image, not yet decoded.

    Attributes:
        image_id: its name in the source.
        content: the encoded file, or the path or URL of one; None if the sample has no image.
    """

    image_id: str
    content: bytes | str | None

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            ValueError: the sample has no image.
            OSError: the file cannot be read.
        """
        if self.content is None:
            raise ValueError("the sample has no image")
        if isinstance(self.content, bytes):
            return self.content
        with fsspec.open(self.content, "rb") as file:
            return file.read()


class Source(Protocol):
    """A list of parts; a part is a fixed sequence of records.

    Attributes:
        num_parts: ranks share out the parts: rank r takes r, r + world, …
        num_images: how many there are, where that is known without reading them all.
    """

    num_parts: int
    num_images: int | None

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation, as JSON values."""
        ...

    def records(self, part: int) -> Iterator[Record]:
        """The images of a part, in an order that never changes."""
        ...

    def modified(self, part: int) -> float:
        """When the part last changed (seconds since the epoch), 0 where the source cannot say."""
        ...


class FolderSource:
    """All image files under a folder, sorted by relative path, which is their id.

    Args:
        folder: searched recursively; links to folders are not followed.
        shard_size: images in a part.

    Raises:
        ValueError: not a folder, no image file in it, or a name that is not UTF-8.
    """

    def __init__(self, folder: str | os.PathLike, *, shard_size: int):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: not a folder")
        self._files: list[tuple[str, int, float]] = []  # id, bytes, time of last change
        for root, _, names in os.walk(self.folder):
            for name in names:
                if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS:
                    path = Path(root, name)
                    stat = path.lstat() if not path.exists() else path.stat()
                    image_id = _utf8(path.relative_to(self.folder).as_posix())
                    self._files.append((image_id, stat.st_size, stat.st_mtime))
        if not self._files:
            raise ValueError(f"{folder}: no image file ({' '.join(sorted(IMAGE_EXTENSIONS))})")
        self._files.sort()
        self.shard_size = shard_size
        self.num_images = len(self._files)
        self.num_parts = -(-len(self._files) // shard_size)

    def identity(self) -> dict[str, Any]:
        listing = ((name, size) for name, size, _ in self._files)
        return {"kind": "folder", "images": len(self._files), "listing": _digest(listing)}

    def record(self, index: int) -> Record:
        """One image by its place in the order, 0 … num_images − 1."""
        name = self._files[index][0]
        return Record(name, str(self.folder.absolute() / name))

    def records(self, part: int) -> Iterator[Record]:
        first = part * self.shard_size
        for index in range(first, min(first + self.shard_size, self.num_images)):
            yield self.record(index)

    def modified(self, part: int) -> float:
        files = self._files[part * self.shard_size : (part + 1) * self.shard_size]
        return max(time for _, _, time in files)


class TarSource:
    """WebDataset shards on local disks; an id is the archive's base name, a slash, the sample's key.

    Args:
        pattern: a path or a glob pattern of tar files (plain or compressed); a part is one file.

    Raises:
        ValueError: no file matches.
    """

    def __init__(self, pattern: str):
        self.paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
        if not self.paths:
            raise ValueError(f"{pattern}: no tar file matches")
        self.num_parts = len(self.paths)
        self.num_images = None

    def identity(self) -> dict[str, Any]:
        listing = ((path.name, path.stat().st_size) for path in self.paths)
        return {"kind": "webdataset", "files": len(self.paths), "listing": _digest(listing)}

    def records(self, part: int) -> Iterator[Record]:
        """One record a sample; a sample without an image is a record whose content is None.

        Raises:
            ValueError: the archive is damaged, or a sample has two images.
        """
        path = self.paths[part]
        stem = path.name.split(".", 1)[0]
        key: str | None = None
        content: bytes | None = None
        try:
            with tarfile.open(path) as archive:
                for member in archive:
                    folder, _, name = member.name.rpartition("/")
                    base, dot, extension = name.partition(".")
                    if not member.isfile() or not base or not dot:
                        continue
                    found = f"{folder}/{base}" if folder else base
                    if key is not None and found != key:
                        yield Record(f"{stem}/{_utf8(key)}", content)
                        content = None
                    key = found
                    if f".{extension.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS:
                        if content is not None:
                            raise ValueError(f"{path}: sample {key!r} has two images")
                        content = archive.extractfile(member).read()  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(f"{path}: damaged tar file: {error}") from error
        if key is not None:
            yield Record(f"{stem}/{_utf8(key)}", content)

    def modified(self, part: int) -> float:
        return self.paths[part].stat().st_mtime


class DatasetSource:
    """A `datasets.Dataset` (map style).

    Args:
        dataset: the rows.
        image_column: the column of images; the only one of type Image by default.
        id_column: the column of ids; the row's number by default.
        shard_size: rows in a part.

    Raises:
        ValueError: a column is missing, or there are several of type Image and none was named.
    """

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
        self.num_parts = -(-len(dataset) // shard_size)

    def identity(self) -> dict[str, Any]:
        columns = [self.image_column, self.id_column]
        return {
            "kind": "dataset",
            "images": self.num_images,
            "columns": columns,
            "fingerprint": self.fingerprint,
        }

    def record(self, index: int) -> Record:
        """One image by the number of its row."""
        return _row_record(self.dataset[index], self.image_column, self.id_column, str(index))

    def records(self, part: int) -> Iterator[Record]:
        first = part * self.shard_size
        for row in range(first, min(first + self.shard_size, self.num_images)):
            yield self.record(row)

    def modified(self, part: int) -> float:
        return 0.0  # the fingerprint speaks for the rows


class StreamSource:
    """A `datasets.IterableDataset` (streaming); its parts are its own shards.

    Args: as for [`DatasetSource`]; without an id column an id is the part's number, a slash, the row's.
        `shard_size` does not matter here. A part whose last shard is written is taken as finished
        without reading it again, since a stream has no fingerprint.
    """

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

    def identity(self) -> dict[str, Any]:
        columns = [self.image_column, self.id_column]
        return {"kind": "stream", "parts": self.num_parts, "columns": columns}

    def records(self, part: int) -> Iterator[Record]:
        for row, sample in enumerate(self.dataset.shard(num_shards=self.num_parts, index=part)):
            yield _row_record(sample, self.image_column, self.id_column, f"{part:05d}/{row:08d}")

    def modified(self, part: int) -> float:
        return 0.0


def load_dataset_source(
    name: str,
    *,
    shard_size: int,
    split: str = "train",
    config_name: str | None = None,
    streaming: bool = False,
    image_column: str | None = None,
    id_column: str | None = None,
) -> DatasetSource | StreamSource:
    """Open a data set by the path of a saved one, a folder that `load_dataset` reads, or a Hub id.

    Raises:
        ValueError: no such split or column.
        FileNotFoundError: no such data set.
    """
    path = Path(name)
    if (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        loaded = datasets.load_from_disk(name)
        if isinstance(loaded, datasets.DatasetDict):
            if split not in loaded:
                raise ValueError(f"{name}: no split {split!r}; there are {sorted(loaded)}")
            loaded = loaded[split]
        if streaming:
            loaded = loaded.to_iterable_dataset(num_shards=-(-len(loaded) // shard_size))
    else:
        loaded = datasets.load_dataset(name, config_name, split=split, streaming=streaming)
    if isinstance(loaded, datasets.IterableDataset):
        return StreamSource(loaded, image_column=image_column, id_column=id_column)
    return DatasetSource(
        loaded, shard_size=shard_size, image_column=image_column, id_column=id_column
    )


def _columns(
    dataset: datasets.Dataset | datasets.IterableDataset,
    image_column: str | None,
    id_column: str | None,
) -> tuple[str, str | None]:
    features = dataset.features
    if features is None:  # a stream whose types nobody has declared
        first = next(iter(islice(dataset, 1)), None)
        if first is None:
            raise ValueError("the data set has no row")
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
    """The same rows, with images as {"bytes", "path"} instead of decoded."""
    return dataset.cast_column(image_column, datasets.Image(decode=False))


def _row_record(row: dict[str, Any], image: str, id_column: str | None, number: str) -> Record:
    image_id = number if id_column is None else str(row[id_column])
    value = row[image]
    if value is None:
        return Record(image_id, None)
    return Record(image_id, value["path"] if value["bytes"] is None else value["bytes"])


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{os.fsencode(name)!r}: the file name is not UTF-8; rename it") from None
    return name


def _digest(items: Any) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()
