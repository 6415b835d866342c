"""a tokenized folder → a stream of its samples, a shard at a time, from a disk or a bucket.

`load_tokenized` maps all shards into one data set and can take any sample; a stream opens a shard when it comes to it
and closes it behind, so that memory does not grow with their number. It is a `datasets.IterableDataset`: `shuffle`,
`shard` and `set_epoch` are its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Features

from ..files import check_file, place, reading
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.tokenization_being_vl import BeingVLTokenizer
from .identity import compare
from .tokenized import FEATURES, MANIFEST, arrow_file, identity_of, read_manifest

_LISTS = ("input_ids", "assistant_masks")


@dataclass(frozen=True)
class TokenizedStream:
    """The samples of a tokenized folder in the order of its shards.

    Attributes:
        rows: samples as dictionaries of `id`, `input_ids` int32 (length,), `assistant_masks` int8 (length,), and
            `where`: shard and row, for errors. Its shards are those of the folder.
        shards: of each, what the manifest says: `file`, `samples`, `bytes`, `sha256`.
    """

    rows: datasets.IterableDataset
    shards: tuple[Mapping[str, Any], ...]

    def samples_of(self, rank: int, world: int) -> int:
        """How many samples the shards hold that `rows.shard(world, rank, contiguous=False)` takes."""
        return sum(shard["samples"] for shard in self.shards[rank::world])


def stream_tokenized(
    folder: str | os.PathLike,
    checkpoint: BeingVLTokenizer | BeingVLProcessor,
    *,
    accept_mismatch: Collection[str] = (),
    verify: bool = False,
) -> TokenizedStream:
    """Open a folder of `being-vl tokenize` as a stream; its shards are opened when they are read.

    Args:
        folder: on a disk, or a URL (`s3://…`).
        checkpoint, accept_mismatch: as of `load_tokenized`.
        verify: compare the digest of each shard when it is opened, which reads it twice.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: as `load_tokenized`; of a shard, when the stream comes to it: it is damaged, or an id is none of the
            vocabulary. The message names shard, row and value.
    """
    at = place(folder)
    manifest = read_manifest(at)
    rule = "tokenize the data with this checkpoint"
    compare(
        str(folder), manifest["parts"], identity_of(checkpoint), rule=rule, accept=accept_mismatch
    )
    shards = tuple(shard for shard in manifest["shards"] if shard["samples"])
    if not shards:
        raise ValueError(f"{folder}: has no sample")
    is_processor = isinstance(checkpoint, BeingVLProcessor)
    tokenizer: Any = checkpoint.tokenizer if is_processor else checkpoint
    rows = datasets.IterableDataset.from_generator(
        _rows,
        gen_kwargs={
            "shards": [{**shard, "path": str(at / shard["file"])} for shard in shards],
            "num_ids": tokenizer.layout.size,
            "verify": verify,
        },
    )
    return TokenizedStream(rows, shards)


def _rows(shards: list[Mapping[str, Any]], num_ids: int, verify: bool) -> Iterator[dict[str, Any]]:
    for shard in shards:
        path = place(shard["path"])
        check_file(path, shard, MANIFEST, verify=verify)
        start = 0
        with reading(path, "not a readable shard"), ExitStack() as stack:
            file = stack.enter_context(arrow_file(path))
            stream = stack.enter_context(pa.ipc.open_stream(file))
            if Features.from_arrow_schema(stream.schema) != FEATURES:
                raise ValueError(f"{path}: columns must be {FEATURES}, got {stream.schema.names}")
            for batch in stream:
                batch.validate(full=True)
                yield from _rows_of(batch, path, start, num_ids)
                start += len(batch)
        if start != shard["samples"]:
            raise ValueError(
                f"{path}: has {start} samples, but {MANIFEST} counts {shard['samples']}"
            )


def _rows_of(
    batch: pa.RecordBatch, path: Any, start: int, num_ids: int
) -> Iterator[dict[str, Any]]:
    """The samples of a batch, each with memory of its own: a buffer of samples would hold whole batches else."""
    names = batch["id"].to_pylist()
    sizes = batch["length"].to_numpy(zero_copy_only=False)

    def where(row: int) -> str:
        return f"{path}: row {start + row} (id {names[row]!r})"

    lists = {}
    for name in _LISTS:
        if batch[name].null_count or batch[name].flatten().null_count:
            raise ValueError(f"{path}: {name} must not be null, from row {start} on")
        own = batch[name].value_lengths().to_numpy(zero_copy_only=False)
        if len(wrong := np.flatnonzero(own != sizes)):
            row = int(wrong[0])
            raise ValueError(f"{where(row)}: length is {sizes[row]}, but {name} has {own[row]}")
        lists[name] = batch[name].flatten().to_numpy(zero_copy_only=False)
    ends = np.cumsum(sizes)
    ids, spoken = lists.values()
    if len(outside := np.flatnonzero((ids < 0) | (ids >= num_ids))):
        row = int(np.searchsorted(ends, outside[0], side="right"))
        raise ValueError(
            f"{where(row)}: input_ids must be in [0, {num_ids}), got {ids[outside[0]]}"
        )
    for row, (first, end) in enumerate(zip((ends - sizes).tolist(), ends.tolist(), strict=True)):
        yield {
            "id": names[row],
            "input_ids": ids[first:end].astype(np.int32),
            "assistant_masks": spoken[first:end].astype(np.int8),
            "where": where(row),
        }
