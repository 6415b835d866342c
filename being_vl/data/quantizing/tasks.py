"""a source → the images that are still to do.

Finished shards are found and checked here, against the quantizer and against the images that they were
made from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from torch.utils.data import Sampler

from ...codes.shards import ShardInfo
from .decoding import Task
from .manifest import read_our_info, shard_path
from .sources import Record, Source


@dataclass
class Summary:
    """What one process did: images and shards of this run, and shards it found done."""

    images: int = 0
    skipped: int = 0
    cells: int = 0
    shards: int = 0
    shards_found: int = 0


class Tasks(Sampler[Task]):
    """The records of the shards that are not there yet, in order; runs in the main process."""

    def __init__(
        self,
        source: Source,
        output: Path,
        *,
        quantizer: str,
        shard_size: int,
        parts: range,
        summary: Summary,
        progress: Callable[[int], Any],
    ):
        self._source = source
        self._output = output
        self._quantizer = quantizer
        self._shard_size = shard_size
        self._parts = parts
        self._summary = summary
        self._progress = progress

    def __iter__(self) -> Iterator[Task]:
        for part in self._parts:
            chunks, complete = self._finished_chunks(part)
            if not complete:
                yield from self._rest_of(part, chunks * self._shard_size)

    def _rest_of(self, part: int, start: int) -> Iterator[Task]:
        records = islice(self._source.records(part), start, None)
        record = next(records, None)
        position = start
        while record is not None:
            following = next(records, None)
            chunk, within = divmod(position, self._shard_size)
            ends_part = following is None
            ends_chunk = ends_part or within == self._shard_size - 1
            yield Task(record, part, chunk, within, ends_chunk, ends_part)
            record = following
            position += 1

    def _finished_chunks(self, part: int) -> tuple[int, bool]:
        """How many shards of a part are there, and whether these are all."""
        chunk = 0
        while (path := shard_path(self._output, part, chunk)).exists():
            info = read_our_info(path)
            self._check(path, part, chunk, info)
            self._summary.shards_found += 1
            self._progress(pq.read_metadata(path).num_rows + len(info.skipped))
            chunk += 1
            if info.last:
                return chunk, True
        return chunk, False

    def _check(self, path: Path, part: int, chunk: int, info: ShardInfo) -> None:
        """Refuse a shard of another quantizer, or of images that have changed since."""
        if info.quantizer != self._quantizer:
            raise ValueError(
                f"{path}: quantizer is {info.quantizer}, but this run's is {self._quantizer}; choose "
                "another output folder"
            )
        if self._source.modified(part) <= path.stat().st_mtime:
            return
        # Images newer than their shard may have been copied, touched or changed: their bytes tell.
        digest = hashlib.sha256()
        start = chunk * self._shard_size
        for record in islice(self._source.records(part), start, start + self._shard_size):
            add_to_digest(digest, record.image_id, _content_digest(record))
        if digest.hexdigest() != info.source:
            raise ValueError(
                f"{path}: an image of this shard has changed since it was written; choose another output "
                "folder"
            )


def add_to_digest(digest: Any, image_id: str, content: bytes) -> None:
    """Take one image, by its id and the digest of its file, into the digest of a shard's source."""
    digest.update(repr((image_id, content)).encode())


def _content_digest(record: Record) -> bytes:
    try:
        return hashlib.sha256(record.read()).digest()
    except (OSError, ValueError):
        return b""  # as it is recorded for a file that could not be read
