"""encoded image files → shards of codes.

Source: our own. Shards are the unit of work: rank r of a world makes the shards of parts r, r + world, …,
each written aside, fsynced and renamed, so that whatever stops the run, another run continues it and ends
with the same bytes. Batches never cross a shard and hold images of one size, in the order of the source,
so what a shard holds does not depend on how many processes made it or how often they were stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import BaseImageProcessor, PreTrainedModel

from ..code_shards import (
    MANIFEST,
    RUN_FILE,
    VERSION,
    ShardInfo,
    code_type,
    read_info,
    write_atomic,
    write_shard,
)
from .sources import Record, Source

_VOLATILE_CONFIG = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures")
_PREFETCH = 8  # decoded images that wait, for each worker


class Quantizer(Protocol):
    """What `quantize_source` asks of a model."""

    config: Any

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor: ...


@dataclass
class Summary:
    """What one process did: images and shards of this run, and images it found done."""

    images: int = 0
    skipped: int = 0
    shards: int = 0
    shards_found: int = 0
    cells: int = 0


@dataclass(frozen=True)
class _Task:
    """A record and its place: position in the shard (part, chunk), and whether a shard ends with it."""

    record: Record
    part: int
    chunk: int
    position: int
    ends_chunk: bool
    ends_part: bool


@dataclass(frozen=True)
class _Decoded:
    task: _Task
    digest: bytes
    pixels: torch.Tensor | None  # (3, H, W)
    reason: str = ""


@dataclass
class _Shard:
    """A shard in the making."""

    ids: list[str] = field(default_factory=list)
    grids: list[np.ndarray | None] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    buckets: dict[tuple[int, int], list[tuple[int, torch.Tensor]]] = field(default_factory=dict)


def quantizer_identity(
    model: PreTrainedModel, processor: BaseImageProcessor, dtype: torch.dtype
) -> str:
    """A digest of what decides the codes: weights, configuration, preprocessing, precision."""
    config = {k: v for k, v in model.config.to_dict().items() if k not in _VOLATILE_CONFIG}
    preprocessing = {k: v for k, v in processor.to_dict().items() if k not in _VOLATILE_CONFIG}
    digest = hashlib.sha256()
    for part in (config, preprocessing, str(dtype)):
        digest.update(json.dumps(part, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"


def quantize_source(
    source: Source,
    model: Quantizer,
    processor: BaseImageProcessor,
    output: Path,
    *,
    quantizer: str,
    shard_size: int = 4096,
    batch_size: int = 16,
    num_workers: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], Any] | None = None,
) -> Summary:
    """Make this rank's shards, those that are not there yet; `write_manifest` follows when all ranks have.

    Args:
        source: the images.
        model: `encode(pixel_values (B, 3, H, W)) -> (B, h, w)`, on its device, in evaluation mode.
        processor: an image processor that gives `pixel_values` for one image.
        output: the folder of the shards; made if need be.
        quantizer: identity of model and preprocessing, as of `quantizer_identity`.
        shard_size: images in a shard, at most.
        batch_size: images in a batch, at most.
        num_workers: processes that decode; 0 decodes in this one.
        on_error: whether an unreadable image ends the run or is named in the manifest.
        dtype: float32, or a type to autocast to.
        rank: this process among `world`.
        world: processes that share the work.
        progress: called with the number of images just finished or found done.

    Raises:
        ValueError: an unreadable image under `on_error="raise"`; shards of another source, quantizer or
            shard size in `output`; the message names what differs.
        OSError: another process holds this rank's lock, or a shard cannot be written.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = FileLock(output / f".rank-{rank:05d}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{output}: another process is encoding into it as rank {rank}") from None
    try:
        _claim(output, source, model, quantizer, shard_size)
        run = _Run(
            source, model, output, quantizer, shard_size, batch_size, on_error, dtype,
            progress or (lambda count: None),
        )  # fmt: skip
        loader = DataLoader(
            _Decode(processor, model.config.downsampling),
            batch_size=None,
            sampler=_Tasks(run, rank, world),
            num_workers=num_workers,
            collate_fn=_as_it_is,
            prefetch_factor=_PREFETCH if num_workers else None,
        )
        for decoded in loader:
            run.take(decoded)
        return run.summary
    finally:
        lock.release()


def write_manifest(output: Path, source: Source) -> dict[str, Any]:
    """Check that every shard is there, and write `manifest.json` and `skipped.jsonl`.

    Returns:
        The manifest: totals, and for each shard its file, images and skipped images.

    Raises:
        ValueError: a shard is missing.
    """
    import pyarrow.parquet as pq

    shards, skipped = [], []
    cells = 0
    for part in range(source.num_parts):
        chunk = 0
        while True:
            path = output / _shard_name(part, chunk)
            if not path.exists() and chunk == 0 and next(iter(source.records(part)), None) is None:
                break  # an empty part has no shard
            if not path.exists():
                raise ValueError(f"{path}: this shard is missing; run the command again to make it")
            info = _our_info(path)
            sizes = pq.read_table(path, columns=["height", "width"])
            cells += int(
                (sizes["height"].to_numpy().astype(np.int64) * sizes["width"].to_numpy()).sum()
            )
            shards.append(
                {"file": path.name, "images": sizes.num_rows, "skipped": len(info.skipped)}
            )
            skipped += [
                {"image_id": name, "reason": why, "shard": path.name}
                for _, name, why in info.skipped
            ]
            if info.last:
                break
            chunk += 1
    manifest = {
        "version": VERSION,
        "images": sum(shard["images"] for shard in shards),
        "skipped": len(skipped),
        "cells": cells,
        "shards": shards,
    }
    lines = "".join(json.dumps(line) + "\n" for line in skipped)
    write_atomic(output / "skipped.jsonl", lines.encode())
    write_atomic(output / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


class _Run:
    """Takes decoded images in order and writes shards."""

    def __init__(
        self,
        source: Source,
        model: Quantizer,
        output: Path,
        quantizer: str,
        shard_size: int,
        batch_size: int,
        on_error: str,
        dtype: torch.dtype,
        progress: Callable[[int], Any],
    ):
        self.source = source
        self.model = model
        self.output = output
        self.quantizer = quantizer
        self.shard_size = shard_size
        self.batch_size = batch_size
        self.on_error = on_error
        self.dtype = dtype
        self.progress = progress
        self.summary = Summary()
        self._shard = _Shard()
        self._codes_dtype = code_type(model.config.num_embeddings).to_pandas_dtype()
        self._device = next(model.parameters()).device  # type: ignore[attr-defined]

    def take(self, decoded: _Decoded) -> None:
        """Account for the next image of the shard, and write the shard if it ends with it."""
        task, shard = decoded.task, self._shard
        image_id = task.record.image_id
        shard.digest.update(repr((image_id, decoded.digest)).encode())
        shard.ids.append(image_id)
        shard.grids.append(None)
        if decoded.pixels is None:
            if self.on_error == "raise":
                raise ValueError(f"{image_id}: {decoded.reason}")
            shard.skipped.append((task.position, image_id, decoded.reason))
            self.progress(1)
        else:
            bucket = shard.buckets.setdefault(tuple(decoded.pixels.shape[1:]), [])
            bucket.append((task.position, decoded.pixels))
            if len(bucket) == self.batch_size:
                self._encode(bucket)
        if task.ends_chunk:
            for bucket in shard.buckets.values():
                if bucket:
                    self._encode(bucket)
            self._write(task)

    def already_done(self, part: int, chunk: int) -> ShardInfo | None:
        """The finished shard of that place, checked against quantizer and source; None if there is none."""
        path = self.output / _shard_name(part, chunk)
        if not path.exists():
            return None
        info = _our_info(path)
        if info.quantizer != self.quantizer:
            raise ValueError(
                f"{path}: made by another quantizer or preprocessing: {info.quantizer} where this run's is "
                f"{self.quantizer}; choose another output folder"
            )
        if self.source.modified(part) > path.stat().st_mtime:
            self._check_content(path, part, chunk, info)
        return info

    def _check_content(self, path: Path, part: int, chunk: int, info: ShardInfo) -> None:
        """A file is newer than its shard: copied, touched or changed? Its bytes tell."""
        digest = hashlib.sha256()
        start = chunk * self.shard_size
        for record in islice(self.source.records(part), start, start + self.shard_size):
            digest.update(repr((record.image_id, _digest(record))).encode())
        if digest.hexdigest() != info.source:
            raise ValueError(
                f"{path}: the source has changed since this shard was written; choose another output folder"
            )

    @torch.inference_mode()
    def _encode(self, bucket: list[tuple[int, torch.Tensor]]) -> None:
        batch = torch.stack([pixels for _, pixels in bucket]).to(self._device)
        half = self.dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self.dtype, enabled=half):
            codes = self.model.encode(batch).cpu().numpy().astype(self._codes_dtype)
        for (position, _), grid in zip(bucket, codes, strict=True):
            self._shard.grids[position] = grid
        self.progress(len(bucket))
        bucket.clear()

    def _write(self, task: _Task) -> None:
        shard = self._shard
        made = [(i, grid) for i, grid in zip(shard.ids, shard.grids, strict=True) if grid is not None]
        info = ShardInfo(
            codebook_size=self.model.config.num_embeddings,
            quantizer=self.quantizer,
            source=shard.digest.hexdigest(),
            last=task.ends_part,
            skipped=tuple(shard.skipped),
        )
        path = self.output / _shard_name(task.part, task.chunk)
        write_shard(path, [i for i, _ in made], [grid for _, grid in made], info)
        self.summary.shards += 1
        self.summary.images += len(made)
        self.summary.skipped += len(shard.skipped)
        self.summary.cells += sum(grid.size for _, grid in made)
        self._shard = _Shard()


class _Tasks(Sampler):
    """The records of a rank's unfinished shards, in order; runs in the main process."""

    def __init__(self, run: _Run, rank: int, world: int):
        self._run = run
        self._parts = range(rank, run.source.num_parts, world)

    def __iter__(self) -> Iterator[_Task]:
        for part in self._parts:
            yield from self._part(part)

    def _part(self, part: int) -> Iterator[_Task]:
        size = self._run.shard_size
        found = []
        while (info := self._run.already_done(part, len(found))) is not None:
            found.append(info)
            self._run.summary.shards_found += 1
            self._run.progress(_images_of(self._run.output / _shard_name(part, len(found) - 1), info))
            if info.last:
                return
        records = islice(self._run.source.records(part), len(found) * size, None)
        record = next(records, None)
        position = len(found) * size
        while record is not None:
            following = next(records, None)
            chunk, within = divmod(position, size)
            ends_chunk = following is None or within == size - 1
            yield _Task(record, part, chunk, within, ends_chunk, following is None)
            record = following
            position += 1


class _Decode(Dataset):
    """Task → pixels; runs in the worker processes."""

    def __init__(self, processor: BaseImageProcessor, downsampling: int):
        self._processor = processor
        self._downsampling = downsampling

    def __getitem__(self, task: _Task) -> _Decoded:
        try:
            data = task.record.read()
        except (OSError, ValueError) as error:
            return _Decoded(task, b"", None, _one_line(error))
        digest = hashlib.sha256(data).digest()
        try:
            image = _load(data)
            pixels = self._processor(image, return_tensors="pt")["pixel_values"][0]
            height, width = pixels.shape[1:]
            if height % self._downsampling or width % self._downsampling:
                raise ValueError(
                    f"height × width must be multiples of {self._downsampling} after preprocessing, got "
                    f"{height} × {width}"
                )
        except (OSError, ValueError) as error:
            return _Decoded(task, digest, None, _one_line(error))
        return _Decoded(task, digest, pixels)


def _load(data: bytes):
    import io

    from PIL import Image

    with Image.open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _claim(output: Path, source: Source, model: Quantizer, quantizer: str, shard_size: int) -> None:
    """Write down what this folder is made from; refuse a folder that was made from something else."""
    wanted = {
        "version": VERSION,
        "quantizer": quantizer,
        "codebook_size": model.config.num_embeddings,
        "shard_size": shard_size,
        "source": source.identity(),
    }
    path = output / RUN_FILE
    if path.exists():
        found = json.loads(path.read_text())
        for name, value in wanted.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{path}: {name} is {found.get(name)}, but this run's is {value}: shards of both must "
                    "not be mixed; choose another output folder"
                )
    elif any(output.glob("codes-*.parquet")):
        raise ValueError(f"{output}: holds shards but no {RUN_FILE}; choose another output folder")
    else:
        write_atomic(path, json.dumps(wanted, indent=1).encode())


def _our_info(path: Path) -> ShardInfo:
    info = read_info(path)
    if info is None:
        raise ValueError(f"{path}: not a shard that being-vl encode wrote")
    return info


def _images_of(path: Path, info: ShardInfo) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows + len(info.skipped)


def _digest(record: Record) -> bytes:
    try:
        return hashlib.sha256(record.read()).digest()
    except (OSError, ValueError):
        return b""


def _shard_name(part: int, chunk: int) -> str:
    return f"codes-{part:05d}-{chunk:05d}.parquet"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _as_it_is(decoded: _Decoded) -> _Decoded:
    return decoded
