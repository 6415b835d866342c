"""pixels → shards of codes.

Shards are the unit of work: rank r of a world makes the shards of parts r, r + world, …,
each written to a temporary file, fsynced and renamed. A run that was stopped at any point can therefore be
continued, and ends with the same bytes. Batches never cross a shard and hold images of one size, in the order of the source,
so what a shard holds does not depend on how many processes made it or how often they were stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...codes.shards import ShardInfo, code_type, write_shard
from ...files import locked
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.quantizing import encode_by_size
from .decoding import Decoded, Task, make_loader
from .manifest import claim, shard_path
from .sources import Source
from .tasks import Summary, Tasks, add_to_digest


class Quantizer(Protocol):
    """What `quantize_source` asks of a model: `config.num_embeddings`, `config.downsampling`, `encode`."""

    config: Any

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, H, W) → codes (B, h, w)."""
        ...


def quantize_source(
    source: Source,
    model: Quantizer,
    processor: BeingVLImageProcessor,
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
    progress: Callable[[int], Any] = lambda count: None,
) -> Summary:
    """Make this rank's shards, those that are not there yet; `write_manifest` follows when all ranks have.

    Args:
        source: the images.
        model: the quantizer, on its device, in evaluation mode.
        processor: gives the `pixel_values` of one image.
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
    busy = f"another process is encoding into it as rank {rank}"
    with locked(output, busy, name=f".rank-{rank:05d}.lock"):
        claim(
            output,
            source,
            quantizer=quantizer,
            codebook_size=model.config.num_embeddings,
            shard_size=shard_size,
        )
        summary = Summary()
        tasks = Tasks(
            source,
            output,
            quantizer=quantizer,
            shard_size=shard_size,
            parts=range(rank, source.num_parts, world),
            summary=summary,
            progress=progress,
        )
        loader = make_loader(
            tasks, processor, downsampling=model.config.downsampling, num_workers=num_workers
        )
        for _, images in groupby(
            loader, key=lambda decoded: (decoded.task.part, decoded.task.chunk)
        ):
            shard = _Shard(model, quantizer, batch_size, dtype, on_error, progress)
            shard.encode(images)
            shard.write(output, summary)
        return summary


class _Shard:
    """A shard in the making: takes its images in order, encodes them, and is written when they have ended."""

    def __init__(
        self,
        model: Quantizer,
        quantizer: str,
        batch_size: int,
        dtype: torch.dtype,
        on_error: str,
        progress: Callable[[int], Any],
    ):
        self._model = model
        self._quantizer = quantizer
        self._batch_size = batch_size
        self._dtype = dtype
        self._on_error = on_error
        self._progress = progress
        self._ids: list[str] = []
        self._grids: dict[int, np.ndarray] = {}  # by the image's place in the shard
        self._skipped: list[tuple[int, str, str]] = []
        self._digest = hashlib.sha256()

    def encode(self, images: Iterable[Decoded]) -> None:
        """Encode the images of the shard; never more of them are in memory than wait for a batch."""
        codes_dtype = code_type(self._model.config.num_embeddings).to_pandas_dtype()
        for tasks, _, codes in encode_by_size(
            self._readable(images),
            self._model,
            batch_size=self._batch_size,
            dtype=self._dtype,
            name=lambda task: task.record.image_id,
        ):
            for task, grid in zip(tasks, codes.cpu().numpy().astype(codes_dtype), strict=True):
                self._grids[task.position] = grid
            self._progress(len(tasks))

    def _readable(self, images: Iterable[Decoded]) -> Iterator[tuple[Task, np.ndarray]]:
        """Account for every image, and pass on those that have pixels."""
        for decoded in images:
            self._task = task = decoded.task
            image_id = task.record.image_id
            add_to_digest(self._digest, image_id, decoded.digest)
            self._ids.append(image_id)
            if decoded.pixels is not None:
                yield task, decoded.pixels
            elif self._on_error == "raise":
                raise ValueError(f"{image_id}: {decoded.reason}")
            else:
                self._skipped.append((task.position, image_id, decoded.reason))
                self._progress(1)

    def write(self, output: Path, summary: Summary) -> None:
        info = ShardInfo(
            codebook_size=self._model.config.num_embeddings,
            quantizer=self._quantizer,
            source=self._digest.hexdigest(),
            last=self._task.ends_part,
            skipped=tuple(self._skipped),
        )
        places = sorted(self._grids)
        grids = [self._grids[place] for place in places]
        path = shard_path(output, self._task.part, self._task.chunk)
        write_shard(path, [self._ids[place] for place in places], grids, info)
        summary.shards += 1
        summary.images += len(grids)
        summary.skipped += len(self._skipped)
        summary.cells += sum(grid.size for grid in grids)
