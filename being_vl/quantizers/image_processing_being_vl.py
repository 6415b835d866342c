"""images → pixel values, and pixel values → images.

Source: transformers' `ChameleonImageProcessorPil`, whose defaults and results it keeps exactly (shortest
edge 512, centre crop, LANCZOS, rescale by 0.0078, mean and std 1). It differs in what it accepts
(`image_loading.py`), in options for other sizes (no crop, padding, aspect-ratio buckets), and in
`postprocess`, its inverse. It never needs torchvision.
"""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import PIL.Image
import torch
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import ImageInput, PILImageResampling, SizeDict, is_valid_image
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

from ..files import is_of, reading, shown
from ..hub.part import CheckpointPart, Origin, commit_named, pinned
from .image_loading import (
    MAX_IMAGE_PIXELS,
    UnreadableImageError,
    download,
    eight_bits,
    image_name,
    load_image,
    short_name,
    to_rgb,
)

_BYTES_PER_PIXEL = 8  # more than any file needs: RGBA of 16 bits, not compressed
_MAX_SIDE = 1 << 14  # pixels; more is no size to quantize at


class BeingVLImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond those of every image processor.

    Args:
        max_image_pixels: images of more pixels are refused before they are decoded.
        size_divisor: without a crop, both sides of an image resized by `shortest_edge` or `longest_edge` are
            rounded to multiples of this; padding rounds up to them. The VQ model's `config.downsampling`.
        aspect_ratio_buckets: (height, width) pairs. Each image is resized to cover the one with the
            nearest aspect ratio, and centre-cropped to it, in place of `size` and `crop_size`.
    """

    max_image_pixels: int | None
    size_divisor: int | None
    aspect_ratio_buckets: list[list[int]] | list[tuple[int, int]] | None


class ChameleonPreprocessing:
    """The defaults of images and of frames: Chameleon's."""

    resample = PILImageResampling.LANCZOS
    image_mean = [1.0, 1.0, 1.0]  # noqa: RUF012
    image_std = [1.0, 1.0, 1.0]  # noqa: RUF012
    size = {"shortest_edge": 512}  # noqa: RUF012
    default_to_square = False
    crop_size = {"height": 512, "width": 512}  # noqa: RUF012
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 0.0078
    do_normalize = True
    do_convert_rgb = True
    do_pad = False
    max_image_pixels = MAX_IMAGE_PIXELS
    size_divisor = 16
    aspect_ratio_buckets = None


class BeingVLImageProcessor(ChameleonPreprocessing, CheckpointPart, PilBackend):
    """Chameleon's preprocessing by default, and its inverse.

    Images come as PIL images, numpy or torch arrays (see `image_loading.eight_bits` for types and ranges), paths,
    URLs, data URIs, base64, bytes, open files, rows of an `Image` column, or (nested) lists of these. Returns a
    `BatchFeature` with `pixel_values`, float32 (batch, 3, height, width).

    Raises:
        UnreadableImageError: (a ValueError) an image cannot be read; the message names it.
        ValueError: an option is out of range, or tensors are asked for and the sizes differ.
    """

    valid_kwargs = BeingVLImageProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012

    _source: Origin | None = None

    def __init__(self, **kwargs: Unpack[BeingVLImageProcessorKwargs]) -> None:
        super().__init__(**kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> BeingVLImageProcessor:
        """As every image processor; remembers where from, for `push_to_hub`."""
        kwargs |= pinned(pretrained_model_name_or_path, kwargs)
        with reading(pretrained_model_name_or_path):
            loaded = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = loaded[0] if isinstance(loaded, tuple) else loaded  # return_unused_kwargs=True
        _check_options(processor, f"{pretrained_model_name_or_path}: the image processor's")
        commit = commit_named(kwargs.get("revision"))
        processor._source = Origin.of(
            pretrained_model_name_or_path, commit, kwargs.get("subfolder")
        )
        return loaded

    def to_dict(self) -> dict[str, Any]:
        """The options; where they were loaded from is none."""
        options = super().to_dict()
        options.pop("_source", None)
        return options

    def _checkpoint_source(self) -> Origin | None:
        return self._source

    def _validate_preprocess_kwargs(self, **kwargs: Any) -> None:
        super()._validate_preprocess_kwargs(**kwargs)
        _check_own_options(kwargs)

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load what is named by a path, a URL, a data URI or base64; pass images through."""
        return self._fetch(image_url_or_urls, self.max_image_pixels or MAX_IMAGE_PIXELS)

    def _fetch(self, source: Any, max_pixels: int, place: str = "images") -> Any:
        if isinstance(source, (list, tuple)):
            _check_nesting(source, place)
            entries = enumerate(source)
            return [self._fetch(entry, max_pixels, f"{place}[{i}]") for i, entry in entries]
        # a row of an Image column
        if isinstance(source, Mapping) and {"bytes", "path"} & set(source):
            found = source.get("bytes")
            source = source.get("path") if found is None else found
            if source is None:
                raise UnreadableImageError("a row with neither bytes nor path has no image")
        if isinstance(source, (bytes, bytearray, memoryview)):
            return load_image(bytes(source), max_pixels=max_pixels)
        if isinstance(source, os.PathLike) or hasattr(source, "read"):
            return load_image(source, max_pixels=max_pixels)
        if not isinstance(source, str):
            if not is_valid_image(source):
                raise TypeError(
                    f"{place} must be an image, an array, a path, a URL or bytes, got {type(source).__name__}"
                )
            return source
        if source.startswith(("http://", "https://")):
            # transformers would decode it whatever its size, and lay its transparency over black.
            content = download(
                source, max_bytes=_BYTES_PER_PIXEL * max_pixels, option="max_image_pixels"
            )
            return load_image(content, max_pixels=max_pixels, name=source)
        if source.startswith("file://"):
            return load_image(url2pathname(urlsplit(source).path), max_pixels=max_pixels)
        encoded = _base64_bytes(source)
        if encoded is None:
            return load_image(source, max_pixels=max_pixels)
        name = short_name(source)
        if not source.startswith("data:"):
            name += " (no such file, read as base64)"
        return load_image(encoded, max_pixels=max_pixels, name=name)

    def _preprocess_image_like_inputs(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        images = self._fetch(images, kwargs["max_image_pixels"] or MAX_IMAGE_PIXELS)
        dimensions = getattr(images, "ndim", None)
        if dimensions == 2:  # one grey image; transformers would look for images in it
            images = images[None]
            kwargs["input_data_format"] = "channels_first"
        elif dimensions == 4 and (kwargs.get("do_rescale", True) or not _is_float(images)):
            # one array has one range, however dark one of its images is
            images = eight_bits(images)
        return super()._preprocess_image_like_inputs(images, *args, **kwargs)

    def process_image(self, image: ImageInput, **kwargs: Any) -> np.ndarray:
        """One image as an array (channels, height, width), RGB unless `do_convert_rgb` is False."""
        limit = kwargs.get("max_image_pixels") or MAX_IMAGE_PIXELS
        is_pil = isinstance(image, PIL.Image.Image)
        given: Any = image
        name = image_name(given) if is_pil else "<array>"
        if 0 in (shape := given.size if is_pil else np.shape(given)):
            raise UnreadableImageError(f"{name}: an image of shape {tuple(shape)} has no pixels")
        if is_pil:
            if kwargs.get("do_convert_rgb"):
                image = to_rgb(given, max_pixels=limit)
        # Floats are pixel values already, in a range of their own, where rescaling is off.
        elif kwargs.get("do_rescale", True) or not _is_float(image):
            image = eight_bits(image, name)
        processed = super().process_image(image, **kwargs)
        _check_resized(processed.shape[-2:], kwargs, limit, name)
        return processed

    def resize(
        self,
        image: np.ndarray,
        size: SizeDict,
        resample: PILImageResampling | None = None,
        *,
        size_divisor: int | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Resize as every image processor does, then to multiples of `size_divisor` where it is given."""
        if size_divisor is not None and not (size.height and size.width):
            size = _round_size(image.shape[-2:], size, size_divisor)
        return super().resize(image, size, resample, **kwargs)

    def _fit(self, image: np.ndarray, options: dict[str, Any]) -> np.ndarray:
        """Resize and crop one image (channels, height, width)."""
        if options["aspect_ratio_buckets"]:
            bucket = _nearest_bucket(image.shape[-2:], options["aspect_ratio_buckets"])
            image = self.resize(image, _cover(image.shape[-2:], bucket), options["resample"])
            return self.center_crop(image, bucket)
        if options["do_resize"]:
            divisor = None if options["do_center_crop"] else options["size_divisor"]
            image = self.resize(image, options["size"], options["resample"], size_divisor=divisor)
        return self.center_crop(image, options["crop_size"]) if options["do_center_crop"] else image

    def _preprocess(
        self,
        images: list[np.ndarray],
        *,
        return_tensors: str | TensorType | None = None,
        **options: Any,
    ) -> BatchFeature:
        processed = []
        for image in images:
            image = self._fit(image, options)
            if options["do_rescale"]:
                image = self.rescale(image, options["rescale_factor"])
            if options["do_normalize"]:
                image = self.normalize(image, options["image_mean"], options["image_std"])
            processed.append(image)
        if options["do_pad"]:
            pad_size = options["pad_size"] or _common_size(processed, options["size_divisor"] or 1)
            padded: Any = self.pad(processed, pad_size=pad_size)
            processed = padded
        sizes = {image.shape[-2:] for image in processed}
        if return_tensors is not None and len(sizes) > 1:
            listed = ", ".join(f"{height}×{width}" for height, width in sorted(sizes))
            raise ValueError(
                f"images of different sizes do not fit one tensor, got {listed}: crop or pad them, or "
                "process each size by itself"
            )
        return BatchFeature(data={"pixel_values": processed}, tensor_type=return_tensors)

    def postprocess(self, pixel_values: Any) -> list[PIL.Image.Image]:
        """Pixel values (batch, 3, height, width) or (3, height, width), torch or numpy, or a list of them → RGB images.

        Raises:
            ValueError: another shape.
        """
        if isinstance(pixel_values, (list, tuple)):
            return [image for entry in pixel_values for image in self.postprocess(entry)]
        values = torch.as_tensor(pixel_values)
        pixels = self.to_uint8(values[None] if values.ndim == 3 else values)
        arrays = pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy()
        return [PIL.Image.fromarray(array) for array in arrays]

    def to_uint8(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixel values (B, 3, H, W) → uint8 of the same shape: rescaling and normalizing undone, rounded, clipped."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values must be (batch, 3, height, width), got {shape}")
        values = pixel_values.detach().float()
        if self.do_normalize:
            mean, std = (
                values.new_tensor(value).expand(3).view(3, 1, 1)
                for value in (self.image_mean, self.image_std)
            )
            values = values * std + mean
        if self.do_rescale:
            values = values / self.rescale_factor
        return values.round().clamp(0, 255).to(torch.uint8)


def _check_nesting(images: list[Any] | tuple[Any, ...], place: str) -> None:
    """Raises ValueError for a list of which only some entries are lists, or for lists too deep."""
    kinds = [isinstance(entry, (list, tuple)) for entry in images]
    if all(kinds) and images and "[" in place:
        raise ValueError(f"{place} must be a list of images, got a list of lists")
    if any(kinds) and not all(kinds):
        odd, of_list = kinds.index(False), kinds.index(True)
        raise ValueError(
            f"{place}[{odd}] must be a list of images, as {place}[{of_list}] is, got {type(images[odd]).__name__}; "
            "an empty list stands for none"
        )


def _is_float(values: Any) -> bool:
    return "float" in str(getattr(values, "dtype", ""))


# What PilBackend.resize takes.
_SIZES = (
    ("height", "width"),
    ("shortest_edge",),
    ("shortest_edge", "longest_edge"),
    ("max_height", "max_width"),
)


def _check_options(processor: BeingVLImageProcessor, whose: str) -> None:
    """Raises ValueError for an option of a file that is of another type, or a size beyond any image's."""
    sizes = {"size": "do_resize", "crop_size": "do_center_crop", "pad_size": "do_pad"}
    for name in (*sizes.values(), "do_rescale", "do_normalize", "do_convert_rgb"):
        if not is_of(value := getattr(processor, name), bool | None):
            raise ValueError(f"{whose} {name} must be true or false, got {shown(value)}")
    for name, step in sizes.items():
        sides = {k: v for k, v in vars(getattr(processor, name, None) or SizeDict()).items() if v is not None}  # fmt: skip
        for side, value in sides.items():
            if not _is_side(value):
                raise ValueError(
                    f"{whose} {name}.{side} must be 1 … {_MAX_SIDE}, got {shown(str(value))}"
                )
        allowed = _SIZES if name == "size" else _SIZES[:1]
        if (sides or getattr(processor, step)) and set(sides) not in map(set, allowed):
            must = ", or ".join(map(" and ".join, allowed))
            raise ValueError(
                f"{whose} {name} must have {must}, got {' and '.join(sides) or 'none'}"
            )
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = getattr(processor, name)
        numbers = (
            value if isinstance(value, (list, tuple)) and name != "rescale_factor" else [value]
        )
        fits = all(type(n) in (int, float) and abs(n) < 1e6 for n in numbers)
        if not fits or len(numbers) not in (1, 3) or (name != "image_mean" and not all(numbers)):
            raise ValueError(f"{whose} {name} must be a number, or three, got {shown(str(value))}")
    _check_own_options(vars(processor), f"{whose} ")


def _check_own_options(options: Mapping[str, Any], whose: str = "") -> None:
    """Raises ValueError for an option of `BeingVLImageProcessorKwargs`, of a file or of a call, that is out of range."""
    for name in ("max_image_pixels", "size_divisor"):
        value = options[name]
        if value is not None and (type(value) is not int or value < 1):
            raise ValueError(f"{whose}{name} must be a positive integer, got {shown(value)}")
    buckets = options["aspect_ratio_buckets"]
    if buckets is not None and not (
        isinstance(buckets, (list, tuple))
        and all(
            isinstance(b, (list, tuple)) and len(b) == 2 and all(map(_is_side, b)) for b in buckets
        )
    ):
        raise ValueError(
            f"{whose}aspect_ratio_buckets must be (height, width) pairs of 1 … {_MAX_SIDE}, got "
            f"{shown(buckets)}"
        )


def _is_side(value: Any) -> bool:
    return type(value) is int and 1 <= value <= _MAX_SIDE


def _base64_bytes(text: str) -> bytes | None:
    """The bytes of a data URI or of base64 text, or None for anything else, such as a path."""
    is_uri = text.startswith("data:")
    if not text or (not is_uri and os.path.exists(text)):
        return None
    try:
        data = text.partition(",")[2] if is_uri else text
        return base64.b64decode("".join(data.split()), validate=not is_uri)
    except (binascii.Error, ValueError) as error:
        if is_uri:
            raise UnreadableImageError(
                f"{short_name(text)}: not a readable image: {error}"
            ) from None
        return None


def _check_resized(shape: tuple[int, int], options: dict[str, Any], limit: int, name: str) -> None:
    """An image one pixel high is small until its shortest edge is resized."""
    size: Any = options.get("size")
    if options.get("aspect_ratio_buckets"):
        size = _cover(shape, _nearest_bucket(shape, options["aspect_ratio_buckets"]))
    elif not options.get("do_resize") or size is None or size.longest_edge or size.max_height:
        return
    pixels = (
        size.shortest_edge**2 * max(shape) // min(shape)
        if size.shortest_edge
        else size.height * size.width
    )
    if pixels > limit:
        raise UnreadableImageError(
            f"{name}: {shape[1]}×{shape[0]} pixels would be resized to {pixels} pixels, more than the "
            f"limit of {limit} (max_image_pixels)"
        )


def _round_size(shape: tuple[int, int], size: Any, divisor: int) -> SizeDict:
    height, width = shape
    if size.shortest_edge:
        scale = size.shortest_edge / min(shape)
        if size.longest_edge:
            scale = min(scale, size.longest_edge / max(shape))
    elif size.longest_edge:
        scale = size.longest_edge / max(shape)
    elif size.max_height and size.max_width:
        scale = min(size.max_height / height, size.max_width / width)
    else:
        return size
    rounded = (max(1, round(side * scale / divisor)) * divisor for side in shape)
    return SizeDict(**dict(zip(("height", "width"), rounded, strict=True)))


def _nearest_bucket(shape: tuple[int, int], buckets: Any) -> SizeDict:
    aspect = math.log(shape[0] / shape[1])
    height, width = min(buckets, key=lambda bucket: abs(math.log(bucket[0] / bucket[1]) - aspect))
    return SizeDict(height=height, width=width)


def _cover(shape: tuple[int, int], bucket: Any) -> SizeDict:
    """The smallest size of the image's aspect ratio that is nowhere smaller than the bucket."""
    scale = max(bucket.height / shape[0], bucket.width / shape[1])
    return SizeDict(
        height=max(bucket.height, round(shape[0] * scale)),
        width=max(bucket.width, round(shape[1] * scale)),
    )


def _common_size(images: list[np.ndarray], divisor: int) -> SizeDict:
    height, width = (max(image.shape[axis] for image in images) for axis in (-2, -1))
    return SizeDict(height=-(-height // divisor) * divisor, width=-(-width // divisor) * divisor)


def check_cells(pixels: np.ndarray, downsampling: int, name: str) -> None:
    """Fails where a quantizer cannot divide pixel values (…, height, width) into cells."""
    height, width = pixels.shape[-2:]
    if height % downsampling or width % downsampling:
        raise ValueError(
            f"{name}: height × width must be multiples of {downsampling} after preprocessing, got "
            f"{height} × {width}"
        )
