"""encoded image and video files → pixels, in worker processes.

An item travels to a worker with its bytes or path, and comes back, in order, as pixels or as the reason why
there are none. Pixels come through a pipe as numpy arrays: torch's way, shared memory, loses an item for
ever where that memory is short (64 MB in a container), and the run would hang.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
from dataclasses import asdict, dataclass

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.quantizing import read_pixels
from ...quantizers.video_processing_being_vl import BeingVLVideoProcessor, read_frames
from .sources import LEFT_OUT, Record, Sampling

_PREFETCH = 8  # decoded images that wait, for each worker


@dataclass(frozen=True)
class Item:
    """An image to quantize and its place: the shard (part, chunk), the position in it, whether it ends the part."""

    record: Record
    part: int
    chunk: int
    position: int
    ends_part: bool


@dataclass(frozen=True)
class Decoded:
    """The outcome of an item: pixels float32, or None and the reason.

    Pixels are (3, height, width) of an image, (T, 3, height, width) of a video, with the time of each frame.
    """

    item: Item
    digest: bytes  # of the encoded file; empty if it could not be read
    pixels: np.ndarray | None
    reason: str = ""
    times: tuple[float, ...] = ()


def make_loader(
    items: Sampler[Item],
    processor: BeingVLImageProcessor,
    *,
    downsampling: int,
    num_workers: int,
    sampling: Sampling | None = None,
) -> DataLoader:
    """A loader whose "indices" are the items themselves, so that their order and any source will do.

    With `sampling` the records are videos, of which these frames are read.
    """
    decoder = (
        _Decoder(processor, downsampling)
        if sampling is None
        else _VideoDecoder(processor, downsampling, sampling)
    )
    waiting = _PREFETCH if sampling is None else 1  # a video is many images
    return DataLoader(
        decoder,
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        collate_fn=_as_it_is,  # type: ignore[arg-type]
        worker_init_fn=end_with_parent,
        prefetch_factor=waiting if num_workers else None,
    )


class _Decoder(Dataset):
    def __init__(self, processor: BeingVLImageProcessor, downsampling: int):
        self._processor = processor
        self._downsampling = downsampling

    def __getitem__(self, item: Item) -> Decoded:
        image_id = item.record.image_id
        digest = b""
        if item.record.left_out:
            return Decoded(item, digest, None, f"{LEFT_OUT}{item.record.left_out}")
        try:
            data = item.record.read()
            digest = hashlib.sha256(data).digest()
            pixels, times = self._read(data, image_id)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            return Decoded(item, digest, None, reason.removeprefix(f"{image_id}: "))
        return Decoded(item, digest, pixels, times=times)

    def _read(self, data: bytes, name: str) -> tuple[np.ndarray, tuple[float, ...]]:
        return read_pixels(data, self._processor, downsampling=self._downsampling, name=name), ()


class _VideoDecoder(_Decoder):
    def __init__(self, processor: BeingVLImageProcessor, downsampling: int, sampling: Sampling):
        super().__init__(processor, downsampling)
        self._videos = BeingVLVideoProcessor.like(processor, **asdict(sampling))

    def _read(self, data: bytes, name: str) -> tuple[np.ndarray, tuple[float, ...]]:
        return read_frames(data, self._videos, downsampling=self._downsampling, name=name)


def end_with_parent(worker_id: int = 0) -> None:
    """Called in a worker: it ends when the main process is killed, instead of waiting on a full pipe for ever."""
    # The parent of the operating system may be a fork server. With `fork`, other children that the main process
    # starts later hold the other end of this one's pipe too, so that it ends with the last of them.
    main = multiprocessing.parent_process()

    def watch() -> None:
        main.join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_it_is(decoded: Decoded) -> Decoded:
    return decoded
