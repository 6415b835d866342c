"""image files → pixels for the training of a quantizer.

Source: the image processor, which does here what it will do when the trained model quantizes; training
adds random flips and crops, batch by batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from ...data.quantizing import DatasetSource, FolderSource
from ...quantizers.image_loading import MAX_IMAGE_PIXELS, load_image
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor


class SourceImages(Dataset):
    """Encoded images, decoded and preprocessed when asked for: `{"pixel_values": (3, H, W) float32}`.

    `indices` says which images of the source; all by default.
    """

    def __init__(
        self,
        source: FolderSource | DatasetSource,
        processor: BeingVLImageProcessor,
        *,
        indices: Sequence[int] | None = None,
    ):
        self._source = source
        self._indices = range(source.num_images) if indices is None else indices
        self._processor = processor

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        record = self._source.record(self._indices[index])
        limit = self._processor.max_image_pixels or MAX_IMAGE_PIXELS
        image = load_image(record.read(), max_pixels=limit, name=record.image_id)
        return {"pixel_values": self._processor(image, return_tensors="pt")["pixel_values"][0]}

    def cached(self) -> CachedImages:
        """The same images, preprocessed once and kept in memory as floats (all of one size)."""
        indices = tqdm(range(len(self)), desc="reading images", unit="image", mininterval=1)
        pixels = [self[i]["pixel_values"] for i in indices]
        sizes = {tuple(item.shape) for item in pixels}
        if len(sizes) > 1:
            raise ValueError(f"cached images must be of one size, got {sorted(sizes)[:4]}")
        return CachedImages(torch.stack(pixels))


class CachedImages(Dataset):
    """Pixels in memory, (N, 3, H, W) float32; items as those of `SourceImages`."""

    def __init__(self, pixel_values: torch.Tensor):
        self._pixel_values = pixel_values

    def __len__(self) -> int:
        return len(self._pixel_values)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"pixel_values": self._pixel_values[index]}


def augment(
    pixel_values: torch.Tensor, *, flip: bool, crop: int | None, seed: Sequence[int]
) -> torch.Tensor:
    """Cut a random square out of each image of a batch, and mirror it left and right at random.

    The choice follows from the seed alone, so that a resumed run sees what it would have seen.

    Args:
        pixel_values: (B, 3, H, W).
        crop: side of the square in pixels; None keeps all.
        seed: integers, such as seed, step and rank.
    """
    random = np.random.default_rng(seed)
    height, width = pixel_values.shape[2:]
    if crop is not None and min(height, width) < crop:
        raise ValueError(f"random_crop is {crop}, but images are {height} × {width}")
    images = []
    for image in pixel_values:
        if crop is not None:
            top, left = random.integers(height - crop + 1), random.integers(width - crop + 1)
            image = image[:, top : top + crop, left : left + crop]
        images.append(image.flip(2) if flip and random.random() < 0.5 else image)
    return torch.stack(images)


def pixels_from_uint8(images: np.ndarray, processor: BeingVLImageProcessor) -> torch.Tensor:
    """(N, H, W, 3) uint8 → (N, 3, H, W) float32 in the processor's scale, neither resized nor cropped."""
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
    pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in (processor.image_mean, processor.image_std)
    )
    return ((pixels * processor.rescale_factor - mean) / std).contiguous()
