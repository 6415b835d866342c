"""pixels → shards of codes.

Shards are the unit of work: rank r of a world makes the shards of parts r, r + world, …, each written to a
temporary file, fsynced and renamed. A run that was stopped at any point can therefore be continued, and ends
with the same bytes: shards that are there are checked, against the quantizer and the images that they were made
from, and passed over. Batches never cross a shard and hold images of one size, in the order of the source, so
what a shard holds does not depend on how many processes made it or how often they were stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Sampler

from ...codes.shard_files import Frame, ShardInfo, code_type, count_rows, write_shard
from ...files import locked
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.quantizing import encode_by_size
from ..ray_engine import ray_map
from .decoding import Decoded, Item, make_loader
from .manifest import Format, claim, read_our_info, shard_path
from .sources import Record, Source


@dataclass
class Summary:
    """What one process did: images and shards of this run, shards it found done, and images of both."""

    images: int = 0
    skipped: int = 0
    cells: int = 0
    shards: int = 0
    shards_found: int = 0
    seen: int = 0

    def count(self, images: int) -> None:
        """Take note of images that are finished, or were found done."""
        self.seen += images


@dataclass(frozen=True)
class EncodeSettings:
    """What decides the shards, besides images and quantizer.

    Args:
        quantizer: identity of model and preprocessing, as of `quantizer_identity`.
        shard_size: images in a shard, at most.
        batch_size: images in a batch, at most.
        on_error: whether an unreadable image ends the run or is named in the manifest.
        dtype: float32, or a type to autocast to.
        format: of the shards.
    """

    quantizer: str
    shard_size: int = 4096
    batch_size: int = 16
    on_error: Literal["raise", "skip"] = "raise"
    dtype: torch.dtype = torch.float32
    format: Format = "parquet"


def quantize_source(
    source: Source,
    model: Any,
    processor: BeingVLImageProcessor,
    output: Path,
    settings: EncodeSettings,
    *,
    num_workers: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], Any] = lambda count: None,
) -> Summary:
    """Make this rank's shards, those that are not there yet; `write_manifest` follows when all ranks have.

    Args:
        source: the images.
        model: the quantizer (`config.num_embeddings`, `config.downsampling`, `encode`), on its device.
        processor: gives the `pixel_values` of one image.
        output: the folder of the shards; made if need be.
        num_workers: processes that decode; 0 decodes in this one.
        rank: this process among `world`.
        world: processes that share the work.
        progress: called with the number of images just finished or found done.

    Raises:
        ValueError: an unreadable image under `on_error="raise"`; shards of another source, quantizer or
            shard size in `output`; the message names what differs.
        OSError: another process holds this rank's lock, or a shard cannot be written.
    """
    run = _Run(source, model, output, settings, progress)
    with _claimed(run, rank):
        _make_parts(run, range(rank, source.num_parts, world), processor, num_workers)
    return run.summary


def quantize_with_ray(
    source: Source,
    model: Any,
    processor: BeingVLImageProcessor,
    output: Path,
    settings: EncodeSettings,
    *,
    workers: int,
    cpus_per_worker: int = 1,
    gpus_per_worker: float = 0,
    progress: Callable[[int], Any] = lambda count: None,
) -> Summary:
    """Make all shards as `quantize_source` does, in actors of Ray, to each of which the quantizer travels.

    Args:
        output: visible to all nodes.
        workers: actors; each makes one part at a time, and writes its shards itself.
        cpus_per_worker: all but one of them decode in processes of their own.
        gpus_per_worker: 0.5 shares a GPU between two actors; with 0 the quantizer runs on CPUs.
    """
    run = _Run(source, model.cpu(), output.absolute(), settings)
    device = "cuda" if gpus_per_worker else "cpu"
    make = partial(_part_maker, run, processor, device, cpus_per_worker - 1)
    parts = range(source.num_parts)
    with _claimed(run, 0):
        for part in ray_map(
            make, parts, workers=workers, cpus=cpus_per_worker, gpus=gpus_per_worker
        ):
            for entry in fields(Summary):
                total = getattr(run.summary, entry.name) + getattr(part, entry.name)
                setattr(run.summary, entry.name, total)
            progress(part.seen)
    return run.summary


def _part_maker(
    run: _Run, processor: BeingVLImageProcessor, device: str, num_workers: int
) -> Callable[[int], Summary]:
    model = run.model.to(device)

    def make(part: int) -> Summary:
        summary = Summary()
        own = replace(run, model=model, summary=summary, progress=summary.count)
        _make_parts(own, range(part, part + 1), processor, num_workers)
        return summary

    return make


@contextmanager
def _claimed(run: _Run, rank: int) -> Iterator[None]:
    settings, codebook_size = run.settings, run.model.config.num_embeddings
    busy = f"another process is encoding into it as rank {rank}"
    with locked(run.output, busy, name=f".rank-{rank:05d}.lock"):
        claim(
            run.output,
            run.source,
            quantizer=settings.quantizer,
            codebook_size=codebook_size,
            shard_size=settings.shard_size,
            format=settings.format,
        )
        yield


def _make_parts(
    run: _Run, parts: range, processor: BeingVLImageProcessor, num_workers: int
) -> None:
    loader = make_loader(
        _Items(run, parts),
        processor,
        downsampling=run.model.config.downsampling,
        num_workers=num_workers,
        sampling=run.source.sampling,
    )
    # The loader gives items back in their order, whichever worker was first, so a shard's come one after another.
    for _, images in groupby(loader, key=lambda done: (done.item.part, done.item.chunk)):
        shard = _Shard(run)
        shard.encode(images)
        shard.write()


@dataclass
class _Run:
    """What all shards of this process share, see `quantize_source`."""

    source: Source
    model: Any
    output: Path
    settings: EncodeSettings
    progress: Callable[[int], Any] = lambda count: None
    summary: Summary = field(default_factory=Summary)


class _Items(Sampler[Item]):
    """The images of the shards that are not there yet, in order; runs in the main process."""

    def __init__(self, run: _Run, parts: range):
        self._run, self._parts = run, parts

    def __iter__(self) -> Iterator[Item]:
        for part in self._parts:
            chunks, complete = self._finished_chunks(part)
            if not complete:
                yield from self._rest_of(part, chunks * self._run.settings.shard_size)

    def _rest_of(self, part: int, start: int) -> Iterator[Item]:
        # One record ahead: a shard says whether it is the last of its part, which a stream tells only at its end.
        records = islice(self._run.source.records(part), start, None)
        record = next(records, None)
        position = start
        while record is not None:
            following = next(records, None)
            chunk, within = divmod(position, self._run.settings.shard_size)
            yield Item(record, part, chunk, within, ends_part=following is None)
            record = following
            position += 1

    def _finished_chunks(self, part: int) -> tuple[int, bool]:
        """How many shards of a part are there, and whether these are all."""
        chunk = 0
        while (
            path := shard_path(self._run.output, part, chunk, self._run.settings.format)
        ).exists():
            info = read_our_info(path)
            self._check(path, part, chunk, info)
            self._run.summary.shards_found += 1
            self._run.progress(count_rows(path) + len(info.skipped))
            chunk += 1
            if info.last:
                return chunk, True
        return chunk, False

    def _check(self, path: Path, part: int, chunk: int, info: ShardInfo) -> None:
        """Refuse a shard of another quantizer, or of images that have changed since."""
        run = self._run
        if info.quantizer != run.settings.quantizer:
            raise ValueError(
                f"{path}: quantizer is {info.quantizer}, but this run's is {run.settings.quantizer}; choose "
                "another output folder"
            )
        if run.source.modified(part) <= path.stat().st_mtime:
            return  # spares reading a million files when a run goes on
        # Images newer than their shard may have been copied, touched or changed: their bytes tell.
        digest = hashlib.sha256()
        start = chunk * run.settings.shard_size
        for record in islice(run.source.records(part), start, start + run.settings.shard_size):
            _add_to_digest(digest, record.image_id, _content_digest(record))
        if digest.hexdigest() != info.source:
            raise ValueError(
                f"{path}: an image of this shard has changed since it was written; choose another output "
                "folder"
            )


class _Shard:
    """A shard in the making: takes its images in order, encodes them, and is written when they have ended."""

    def __init__(self, run: _Run):
        self._run = run
        self._dtype = code_type(run.model.config.num_embeddings).to_pandas_dtype()
        self._ids: list[str] = []
        # By the image's place in the shard, and the number of the frame, which is 0 of an image.
        self._grids: dict[tuple[int, int], np.ndarray] = {}
        self._times: dict[int, tuple[float, ...]] = {}  # of videos
        self._skipped: list[tuple[int, str, str]] = []
        self._digest = hashlib.sha256()

    def encode(self, images: Iterable[Decoded]) -> None:
        """Encode the images of the shard; never more of them are in memory than wait for a batch."""
        run = self._run
        for keys, _, codes in encode_by_size(
            self._readable(images),
            run.model,
            batch_size=run.settings.batch_size,
            dtype=run.settings.dtype,
            name=lambda key: self._row_id(key[0].record.image_id, key[1]),
        ):
            for (item, number), grid in zip(
                keys, codes.cpu().numpy().astype(self._dtype), strict=True
            ):
                self._grids[item.position, number] = grid
            run.progress(sum(not number for _, number in keys))

    def _row_id(self, image_id: str, number: int) -> str:
        return image_id if self._run.source.sampling is None else f"{image_id}#{number}"

    def _readable(self, images: Iterable[Decoded]) -> Iterator[tuple[tuple[Item, int], np.ndarray]]:
        """Account for every image or video, and pass on the pixels of those that have them, frame by frame."""
        for decoded in images:
            self._last = item = decoded.item
            image_id = item.record.image_id
            _add_to_digest(self._digest, image_id, decoded.digest)
            self._ids.append(image_id)
            if decoded.pixels is None:
                if self._run.settings.on_error == "raise" and not item.record.left_out:
                    raise ValueError(f"{image_id}: {decoded.reason}")
                self._skipped.append((item.position, image_id, decoded.reason))
                self._run.progress(1)
            elif decoded.pixels.ndim == 3:
                yield (item, 0), decoded.pixels
            else:
                yield from self._frames(item, decoded)

    def _frames(self, item: Item, video: Decoded) -> Iterator[tuple[tuple[Item, int], np.ndarray]]:
        """The frames of a video; a quantizer that takes several to a grid is given them here, all at once."""
        model = self._run.model
        step = getattr(model.config, "temporal_downsampling", 1)
        self._times[item.position] = video.times[::step]
        if step == 1:
            pixels: Any = video.pixels
            yield from (((item, number), frame) for number, frame in enumerate(pixels))
            return
        with torch.inference_mode():
            grids = model.encode_video(torch.from_numpy(video.pixels).to(model.device, model.dtype))
        for number, grid in enumerate(grids.cpu().numpy().astype(self._dtype)):
            self._grids[item.position, number] = grid
        self._run.progress(1)

    def write(self) -> None:
        run = self._run
        info = ShardInfo(
            codebook_size=run.model.config.num_embeddings,
            quantizer=run.settings.quantizer,
            source=self._digest.hexdigest(),
            last=self._last.ends_part,
            skipped=tuple(self._skipped),
        )
        places = sorted(self._grids)
        grids = [self._grids[place] for place in places]
        path = shard_path(run.output, self._last.part, self._last.chunk, run.settings.format)
        ids = [self._row_id(self._ids[at], number) for at, number in places]
        frames = None
        if run.source.sampling is not None:
            frames = [
                Frame(self._ids[at], number, self._times[at][number]) for at, number in places
            ]
        write_shard(path, ids, grids, info, frames)
        run.summary.shards += 1
        run.summary.images += len(grids)
        run.summary.skipped += len(self._skipped)
        run.summary.cells += sum(grid.size for grid in grids)


def _add_to_digest(digest: Any, image_id: str, content: bytes) -> None:
    """Take one image, by its id and the digest of its file, into the digest of a shard's source."""
    digest.update(repr((image_id, content)).encode())


def _content_digest(record: Record) -> bytes:
    try:
        return hashlib.sha256(record.read()).digest()
    except (OSError, ValueError):
        return b""  # as it is recorded for a file that could not be read
