"""pixels → codes, cached in a folder.

The key is what the codes depend on: the quantizer's identity and the image's pixels. Tasks, harnesses and
checkpoints with the same quantizer therefore share the codes.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from PIL import Image

from ..files import new_file
from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.identity import quantizer_identity
from ..quantizers.image_loading import load_image, to_rgb

BATCH_SIZE = 32  # images at a time
BATCH_PIXELS = 1 << 24  # of them in memory at once, at 3 bytes; a larger image comes alone
READERS = 4  # threads that decode them
_STRIP = 64  # rows of pixels

_Image = str | os.PathLike | Image.Image


class CodeCache:
    """Codes of images, from a folder or else from the processor's quantizer.

    A file each, `codes/QUANTIZER/xx/IMAGE.npy`, written aside and renamed, so that processes can share the
    folder, by default `$BEING_VL_CACHE`, or `being_vl` beside the caches of the Hub. A file that cannot be
    read is made again.
    """

    def __init__(self, processor: BeingVLProcessor, folder: str | os.PathLike | None = None):
        self._processor = processor
        vq_model = processor.vq_model
        identity = quantizer_identity(vq_model, processor.image_processor)
        self._codebook_size = vq_model.config.num_embeddings
        if folder is None:
            folder = os.environ.get("BEING_VL_CACHE") or Path(HF_HOME) / "being_vl"
        self.folder = Path(folder) / "codes" / identity.partition(":")[2][:32]

    def codes(
        self, images: Sequence[_Image], *, progress: Callable[[int], Any] = lambda count: None
    ) -> list[np.ndarray]:
        """The codes of images, in order, int32 (h, w)."""
        grids: list[np.ndarray] = []
        with ThreadPoolExecutor(READERS) as readers:
            for batch in _batches(images):
                grids += self._batch(list(readers.map(_open, batch)))
                progress(len(batch))
        return grids

    def _batch(self, images: list[Image.Image]) -> list[np.ndarray]:
        paths = [self._path(image) for image in images]
        found: dict[Path, Any] = {path: self._read(path) for path in dict.fromkeys(paths)}
        missing = {p: image for p, image in zip(paths, images, strict=True) if found[p] is None}
        if missing:
            made = self._processor.quantize(list(missing.values()))
            for path, grid in zip(missing, made, strict=True):
                with new_file(path) as aside, open(aside, "wb") as file:
                    np.save(file, grid.astype(np.int32), allow_pickle=False)
                found[path] = grid
        return [found[path] for path in paths]

    def _path(self, image: Image.Image) -> Path:
        digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
        for top in range(0, image.height, _STRIP):  # `tobytes` copies what it is given
            strip = image.crop((0, top, image.width, min(top + _STRIP, image.height)))
            digest.update(strip.tobytes())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name}.npy"

    def _read(self, path: Path) -> np.ndarray | None:
        """The grid of a file; None if there is no such file, or none that can be used."""
        try:
            grid = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            return None
        except (ValueError, EOFError) as error:
            warnings.warn(f"{path} is damaged and is made again: {error}", stacklevel=2)
            return None
        usable = grid.ndim == 2 and grid.dtype == np.int32 and grid.size
        if not usable or grid.min() < 0 or grid.max() >= self._codebook_size:
            warnings.warn(f"{path} holds no codes and is made again", stacklevel=2)
            return None
        return grid


def _open(image: _Image) -> Image.Image:
    return to_rgb(image) if isinstance(image, Image.Image) else load_image(image)


def _batches(images: Sequence[_Image]) -> Iterator[list[_Image]]:
    """Images in order, as many at a time as `BATCH_SIZE` and `BATCH_PIXELS` allow."""
    batch: list[_Image] = []
    pixels = 0
    for image in images:
        size = _num_pixels(image)
        if batch and (len(batch) == BATCH_SIZE or pixels + size > BATCH_PIXELS):
            yield batch
            batch, pixels = [], 0
        batch.append(image)
        pixels += size
    if batch:
        yield batch


def _num_pixels(image: _Image) -> int:
    """By the header alone; 0 where none can be read, which is an error when the image is opened."""
    if isinstance(image, Image.Image):
        return image.width * image.height
    try:
        with Image.open(image) as header:
            return header.width * header.height
    except Exception:  # Pillow's readers raise what they like; `load_image` names the file
        return 0
