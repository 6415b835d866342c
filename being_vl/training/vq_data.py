"""image files → pixels for the training of a quantizer.

Source: the image processor, which does here what it will do when the trained model quantizes; training
adds random flips and crops.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ..image_loading import MAX_IMAGE_PIXELS, load_image
from ..image_processing_being_vl import BeingVLImageProcessor
from ..quantizing import DatasetSource, FolderSource


class SourceImages(Dataset):
    """Encoded images, decoded and preprocessed when asked for.

    Items are `{"pixel_values": (3, H, W) float32}`.

    Args:
        source: the images.
        processor: gives their pixels.
        indices: which images of the source; all by default.
        random_flip: mirror left and right at random.
        random_crop: side in pixels of a random square that is cut out; None keeps all.

    Raises:
        ValueError: (on access) an image cannot be read, or is smaller than the crop; it is named.
    """

    def __init__(
        self,
        source: FolderSource | DatasetSource,
        processor: BeingVLImageProcessor,
        *,
        indices: Sequence[int] | None = None,
        random_flip: bool = False,
        random_crop: int | None = None,
    ):
        self._source = source
        self._indices = range(source.num_images) if indices is None else indices
        self._processor = processor
        self._random_flip = random_flip
        self._random_crop = random_crop

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        record = self._source.record(self._indices[index])
        limit = self._processor.max_image_pixels or MAX_IMAGE_PIXELS
        image = load_image(record.read(), max_pixels=limit, name=record.image_id)
        pixels = self._processor(image, return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": self._augment(pixels, record.image_id)}

    def cached(self) -> CachedImages:
        """The same images, preprocessed once and kept in memory as floats (all of one size)."""
        plain = SourceImages(self._source, self._processor, indices=self._indices)
        pixels = [
            plain[i]["pixel_values"]
            for i in tqdm(range(len(plain)), desc="reading images", unit="image", mininterval=1)
        ]
        sizes = {tuple(item.shape) for item in pixels}
        if len(sizes) > 1:
            raise ValueError(f"cached images must be of one size, got {sorted(sizes)[:4]}")
        return CachedImages(
            torch.stack(pixels), random_flip=self._random_flip, random_crop=self._random_crop
        )

    def _augment(self, pixels: torch.Tensor, name: str) -> torch.Tensor:
        return augment(pixels, flip=self._random_flip, crop=self._random_crop, name=name)


class CachedImages(Dataset):
    """Pixels in memory, (N, 3, H, W) float32; items as those of `SourceImages`."""

    def __init__(
        self,
        pixel_values: torch.Tensor,
        *,
        random_flip: bool = False,
        random_crop: int | None = None,
    ):
        self._pixel_values = pixel_values
        self._random_flip = random_flip
        self._random_crop = random_crop

    def __len__(self) -> int:
        return len(self._pixel_values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        pixels = self._pixel_values[index]
        flip, crop = self._random_flip, self._random_crop
        return {"pixel_values": augment(pixels, flip=flip, crop=crop, name=f"image {index}")}


def augment(pixels: torch.Tensor, *, flip: bool, crop: int | None, name: str) -> torch.Tensor:
    """A random square and a random mirror image of pixels (3, H, W), from torch's global generator.

    Raises:
        ValueError: the image is smaller than the square.
    """
    if crop is not None:
        height, width = pixels.shape[1:]
        if min(height, width) < crop:
            raise ValueError(f"{name}: random_crop is {crop}, but the image is {height} × {width}")
        top = int(torch.randint(height - crop + 1, ()))
        left = int(torch.randint(width - crop + 1, ()))
        pixels = pixels[:, top : top + crop, left : left + crop]
    if flip and bool(torch.rand(()) < 0.5):
        pixels = pixels.flip(2)
    return pixels


def pixels_from_uint8(images: np.ndarray, processor: BeingVLImageProcessor) -> torch.Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in the processor's scale, neither resized nor cropped.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std)
    )
    return ((pixels * processor.rescale_factor - mean) / std).contiguous()


__all__ = ["CachedImages", "SourceImages", "augment", "pixels_from_uint8"]
