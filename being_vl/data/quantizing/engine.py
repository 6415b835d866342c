"""pixels → shards of codes.

Source: our own. Shards are the unit of work: rank r of a world makes the shards of parts r, r + world, …,
each written aside, fsynced and renamed, so that whatever stops the run, another run continues it and ends
with the same bytes. Batches never cross a shard and hold images of one size, in the order of the source,
so what a shard holds does not depend on how many processes made it or how often they were stopped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...codes.shards import ShardInfo, code_type, write_shard
from ...files import locked
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
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
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    rank: int = 0,
    world: int = 1,
    progress: Callable[[int], Any] = lambda count: None,
) -> Summary:
    """Make this rank's shards, those that are not there yet; `write_manifest` follows when all ranks have.

    Args:
        source: the images.
        model: the quantizer, on `device`, in evaluation mode.
        processor: gives the `pixel_values` of one image.
        output: the folder of the shards; made if need be.
        quantizer: identity of model and preprocessing, as of `quantizer_identity`.
        shard_size: images in a shard, at most.
        batch_size: images in a batch, at most.
        num_workers: processes that decode; 0 decodes in this one.
        on_error: whether an unreadable image ends the run or is named in the manifest.
        device: where batches go.
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
        writer = _ShardWriter(
            model,
            output,
            quantizer=quantizer,
            batch_size=batch_size,
            device=torch.device(device),
            dtype=dtype,
            summary=summary,
            progress=progress,
        )
        loader = make_loader(
            tasks, processor, downsampling=model.config.downsampling, num_workers=num_workers
        )
        for decoded in loader:
            if decoded.pixels is None and on_error == "raise":
                raise ValueError(f"{decoded.task.record.image_id}: {decoded.reason}")
            writer.take(decoded)
        return summary


@dataclass
class _Shard:
    """A shard in the making; `buckets` holds pixels that wait for a full batch of their size."""

    ids: list[str] = field(default_factory=list)
    grids: list[np.ndarray | None] = field(default_factory=list)
    skipped: list[tuple[int, str, str]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    buckets: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = field(default_factory=dict)


class _ShardWriter:
    """Takes decoded images in order, encodes them in batches, writes a shard where one ends."""

    def __init__(
        self,
        model: Quantizer,
        output: Path,
        *,
        quantizer: str,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        summary: Summary,
        progress: Callable[[int], Any],
    ):
        self._model = model
        self._output = output
        self._quantizer = quantizer
        self._batch_size = batch_size
        self._device = device
        self._dtype = dtype
        self._summary = summary
        self._progress = progress
        self._shard = _Shard()
        self._codes_dtype = code_type(model.config.num_embeddings).to_pandas_dtype()

    def take(self, decoded: Decoded) -> None:
        """Account for the next image of the shard."""
        task, shard = decoded.task, self._shard
        image_id = task.record.image_id
        add_to_digest(shard.digest, image_id, decoded.digest)
        shard.ids.append(image_id)
        shard.grids.append(None)
        if decoded.pixels is None:
            shard.skipped.append((task.position, image_id, decoded.reason))
            self._progress(1)
        else:
            bucket = shard.buckets.setdefault(tuple(decoded.pixels.shape[1:]), [])
            bucket.append((task.position, decoded.pixels))
            if len(bucket) == self._batch_size:
                self._encode(bucket)
        if task.ends_chunk:
            for bucket in shard.buckets.values():
                if bucket:
                    self._encode(bucket)
            self._write(task)

    @torch.inference_mode()
    def _encode(self, bucket: list[tuple[int, np.ndarray]]) -> None:
        batch = torch.from_numpy(np.stack([pixels for _, pixels in bucket])).to(self._device)
        half = self._dtype != torch.float32
        with torch.autocast(self._device.type, dtype=self._dtype if half else None, enabled=half):
            codes = self._model.encode(batch).cpu().numpy().astype(self._codes_dtype)
        for (position, _), grid in zip(bucket, codes, strict=True):
            self._shard.grids[position] = grid
        self._progress(len(bucket))
        bucket.clear()

    def _write(self, task: Task) -> None:
        shard, summary = self._shard, self._summary
        made = [
            (i, grid) for i, grid in zip(shard.ids, shard.grids, strict=True) if grid is not None
        ]
        info = ShardInfo(
            codebook_size=self._model.config.num_embeddings,
            quantizer=self._quantizer,
            source=shard.digest.hexdigest(),
            last=task.ends_part,
            skipped=tuple(shard.skipped),
        )
        path = shard_path(self._output, task.part, task.chunk)
        write_shard(path, [image_id for image_id, _ in made], [grid for _, grid in made], info)
        summary.shards += 1
        summary.images += len(made)
        summary.skipped += len(shard.skipped)
        summary.cells += sum(grid.size for _, grid in made)
        self._shard = _Shard()
