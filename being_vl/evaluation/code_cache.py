"""pixels → codes, once: a folder that remembers the codes of every picture it has seen.

Source: our own. The key is what the codes depend on and nothing else: the quantizer's identity and the
picture's pixels. So tasks, harnesses and checkpoints that share a quantizer share the codes.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.constants import HF_HOME
from PIL import Image

from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.identity import quantizer_identity
from ..quantizers.image_loading import load_image, to_rgb

BATCH_SIZE = 32  # pictures that are in memory at once
READERS = 4  # threads that decode them


def default_cache_folder() -> Path:
    """`$BEING_VL_CACHE`, or `being_vl` beside the caches of the Hub."""
    return Path(os.environ.get("BEING_VL_CACHE") or Path(HF_HOME) / "being_vl")


class CodeCache:
    """Codes of pictures, from the folder or else from the processor's quantizer.

    A file each, `codes/QUANTIZER/xx/PICTURE.npy`, written aside and renamed, so that processes can share the
    folder and one that is killed leaves no half file. A file that cannot be read is made again.

    Args:
        processor: quantizes what the folder lacks.
        folder: by default [`default_cache_folder`].
    """

    def __init__(self, processor: BeingVLProcessor, folder: str | os.PathLike | None = None):
        self._processor = processor
        vq_model = processor.vq_model
        identity = quantizer_identity(vq_model, processor.image_processor)
        self._codebook_size = vq_model.config.num_embeddings
        root = default_cache_folder() if folder is None else Path(folder)
        self.folder = root / "codes" / identity.partition(":")[2][:32]

    def codes(
        self,
        pictures: Sequence[str | os.PathLike | Image.Image],
        *,
        progress: Callable[[int], Any] = lambda count: None,
    ) -> list[np.ndarray]:
        """The codes of pictures, in order, int32 (h, w).

        Args:
            pictures: paths, or pictures of any mode.
            progress: called with the number of pictures just done.

        Raises:
            UnreadableImageError: a picture cannot be read; the message names it.
            OSError: the folder cannot be written.
        """
        grids: list[np.ndarray] = []
        with ThreadPoolExecutor(READERS) as readers:
            for start in range(0, len(pictures), BATCH_SIZE):
                batch = list(readers.map(_open, pictures[start : start + BATCH_SIZE]))
                grids += self._batch(batch)
                progress(len(batch))
        return grids

    def _batch(self, images: list[Image.Image]) -> list[np.ndarray]:
        paths = [self._path(image) for image in images]
        found = {
            path: grid for path in dict.fromkeys(paths) if (grid := self._read(path)) is not None
        }
        missing = {
            path: image for path, image in zip(paths, images, strict=True) if path not in found
        }
        if missing:
            made = self._processor.quantize(list(missing.values()))
            for path, grid in zip(missing, made, strict=True):
                self._write(path, grid)
                found[path] = grid
        return [found[path] for path in paths]

    def _path(self, image: Image.Image) -> Path:
        digest = hashlib.sha256(f"{image.width}x{image.height} ".encode())
        digest.update(image.tobytes())
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

    def _write(self, path: Path, grid: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        try:
            with open(aside, "xb") as file:
                np.save(file, grid.astype(np.int32), allow_pickle=False)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _open(picture: str | os.PathLike | Image.Image) -> Image.Image:
    return to_rgb(picture) if isinstance(picture, Image.Image) else load_image(picture)
