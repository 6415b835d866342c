"""images → codes, for one image or for millions.

Read and preprocess (the image processor), gather by size, encode under autocast. The other images
of a batch change codes only through floating-point rounding.
"""

import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.image_utils import make_flat_list_of_images
from transformers.integrations import deepspeed as deepspeed_integration

from ..files import reading
from .checks import NotFiniteError
from .image_loading import MAX_IMAGE_PIXELS, ImageSource, load_image
from .image_processing_being_vl import BeingVLImageProcessor, check_cells

Key = TypeVar("Key")

_BATCH_SIZE = 8  # a 512-pixel encoder needs about 1 GB for each image


def quantize(
    images: Any,
    model: Any,
    processor: BeingVLImageProcessor,
    *,
    batch_size: int = _BATCH_SIZE,
    **options: Any,
) -> list[np.ndarray]:
    """Images → grids of codes, int32 (h, w), in order.

    Args:
        images: what the image processor takes: one, a list or nested lists.
        model: any quantizer, in evaluation mode.
        batch_size: images of one size that are encoded at once.
        options: of the image processor's call.

    Raises:
        UnreadableImageError: an image cannot be read; the message names it.
        NotFiniteError: NaN or infinite latents.
    """
    images = make_flat_list_of_images(processor.fetch_images(images))
    pixels = processor(images, **options)["pixel_values"]
    return encode_in_order(pixels, model, what="image", batch_size=batch_size)


def encode_in_order(
    pixels: Sequence[Any], model: Any, *, what: str, batch_size: int = _BATCH_SIZE
) -> list[np.ndarray]:
    """Pixel values (3, height, width) of several sizes → codes, int32 (h, w), in order; errors say `what` and where."""
    grids: dict[int, np.ndarray] = {}
    for indices, _, codes in encode_by_size(
        enumerate(pixels), model, batch_size=batch_size, name=lambda index: f"{what} {index}"
    ):
        grids.update(zip(indices, codes.cpu().numpy().astype(np.int32), strict=True))
    return [grids[index] for index in range(len(pixels))]


def read_pixels(
    source: ImageSource, processor: BeingVLImageProcessor, *, downsampling: int, name: str
) -> np.ndarray:
    """An image file → its pixel values, float32 (3, height, width).

    Args:
        source, name: as of `load_image`.
        downsampling: of the quantizer, which must divide both sides.

    Raises:
        UnreadableImageError: as of `load_image`.
        ValueError: a size after preprocessing that the quantizer cannot encode.
    """
    limit = processor.max_image_pixels or MAX_IMAGE_PIXELS
    image = load_image(source, max_pixels=limit, name=name)
    pixels = processor(image, return_tensors="np")["pixel_values"][0]
    check_cells(pixels, downsampling, name)
    return pixels


@torch.inference_mode()
def encode_by_size(
    images: Iterable[tuple[Key, Any]],
    model: Any,
    *,
    batch_size: int,
    dtype: torch.dtype = torch.float32,
    name: Callable[[Key], str] = str,
) -> Iterator[tuple[list[Key], torch.Tensor, torch.Tensor]]:
    """Pixel values as they come → batches of one size, and their codes.

    What a batch holds depends on the order of the images alone: it is full, or the images have ended.

    Args:
        images: keys with pixel values (3, height, width), of any sizes; never more than `batch_size` of
            each size wait.
        model: any quantizer, in evaluation mode.
        dtype: float32, or a type to autocast to.
        name: what errors call the image of a key.

    Yields:
        Keys, their pixels (B, 3, height, width) and codes (B, h, w) long, both on the model's device.

    Raises:
        NotFiniteError: NaN or infinite latents; the message names the images.
    """
    device, low = model.device, dtype != torch.float32

    def encode(waiting: list[tuple[Key, Any]]) -> tuple[list[Key], torch.Tensor, torch.Tensor]:
        keys = [key for key, _ in waiting]
        pixels = torch.stack([torch.as_tensor(values) for _, values in waiting])
        if device.type == "cuda":  # from pinned memory the copy runs beside the CPU's next steps
            pixels = pixels.pin_memory()
        pixels = pixels.to(device, model.dtype, non_blocking=True)
        waiting.clear()
        try:
            with torch.autocast(device.type, dtype=dtype if low else None, enabled=low):
                return keys, pixels, model.encode(pixels)
        except NotFiniteError as error:
            names = [name(keys[index]) for index in error.indices]
            raise NotFiniteError(error.indices, names) from None

    by_size: dict[tuple[int, ...], list[tuple[Key, Any]]] = {}
    for key, values in images:
        waiting = by_size.setdefault(tuple(values.shape), [])
        waiting.append((key, values))
        if len(waiting) == batch_size:
            yield encode(waiting)
    for waiting in by_size.values():
        if waiting:
            yield encode(waiting)


class LazyVQ:
    """A VQ model, or where to load it from on first use: texts, and images whose codes are given, never need it.

    Args:
        model: any model with `encode`, `decode` and a config; it is put into evaluation mode.
        device: where it runs; by default where it is, and the CPU when it is loaded.
        source: path or repository, and the options of `from_pretrained`, to load it from.
    """

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        device: str | torch.device | None = None,
        source: tuple[str, dict[str, Any]] | None = None,
    ):
        self._model: Any = model
        self._device = device
        # whatever the working directory later is
        if source is not None and os.path.isdir(source[0]):
            source = (os.path.abspath(source[0]), source[1])
        self._source = source
        self._loaded_as: tuple[tuple[Any, ...], ...] | None = None
        self._config: Any = None
        if model is not None:
            self._place()

    @property
    def available(self) -> bool:
        """Whether there is a model, loaded or not."""
        return self._model is not None or self._source is not None

    @property
    def loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> Any:
        """The model, loaded on first use; a ValueError says that there is none."""
        if self._model is None:
            path, options = self._source_or_raise()
            with reading(_folder(path, options)), _in_one_piece():
                self._model = AutoModel.from_pretrained(path, **options)
            self._place()
            self._loaded_as = self._checksums()
        return self._model

    @property
    def config(self) -> Any:
        """The model's config, read without its weights where they are not loaded yet."""
        if self._model is not None:
            return self._model.config
        if self._config is None:
            path, options = self._source_or_raise()
            with reading(_folder(path, options)):
                self._config = AutoConfig.from_pretrained(path, **options)
        return self._config

    @property
    def device(self) -> torch.device:
        """Where the model runs, or will."""
        return (
            self._model.device if self._model is not None else torch.device(self._device or "cpu")
        )

    def to(self, device: str | torch.device) -> None:
        """Move the model, or choose where it will be loaded."""
        self._device = device
        if self._model is not None:
            self._place()

    def _checksums(self) -> tuple[tuple[Any, ...], ...]:
        """Of the weights themselves: `tensor._version` passes over writes through `.data` and over casts."""
        return tuple(
            (name, tensor.dtype, tensor.is_meta or _checksum(tensor))
            for name, tensor in self._model.state_dict().items()
        )

    def __getstate__(self) -> dict[str, Any]:
        """Where a model was loaded from stands for the model, unless its weights were written to since.

        So a processor travels light to workers, and its fingerprint (`datasets` hashes this state) is the same
        before and after the model has loaded.
        """
        state = {**self.__dict__, "_config": None}
        if self._loaded_as is not None and self._loaded_as == self._checksums():
            state["_model"] = state["_loaded_as"] = None
        return state

    def _place(self) -> None:
        self._model.eval().requires_grad_(False)
        if self._device is not None:
            self._model.to(self._device)

    def _source_or_raise(self) -> tuple[str, dict[str, Any]]:
        if self._source is None:
            raise ValueError(
                "this processor has no VQ model (built without vq_model, loaded with vq=False, or from a checkpoint "
                "without vq_model/): "
                "pass image_codes instead of images; nothing can be decoded to pixels"
            )
        return self._source


def _folder(path: str, options: dict[str, Any]) -> str:
    return os.path.join(path, options.get("subfolder") or "")


def _checksum(tensor: torch.Tensor) -> int:
    values: Any = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
    return zlib.crc32(values)


@contextmanager
def _in_one_piece() -> Iterator[None]:
    """While a language model trains under ZeRO-3, transformers loads every model in pieces, by all processes
    together; this one is loaded by the process that needs it, and the others would be waited for."""
    reference = deepspeed_integration._hf_deepspeed_config_weak_ref
    deepspeed_integration.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed_integration._hf_deepspeed_config_weak_ref = reference
