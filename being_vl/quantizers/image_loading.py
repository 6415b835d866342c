"""files → RGB pictures: what the image processor and the commands share.

Source: Pillow's conventions, and transformers' `convert_to_rgb` for transparency (laid over white). It
differs in that 16-bit pictures are scaled rather than saturated, the size is checked from the header
before a pixel is decoded, and whatever goes wrong becomes one error that names the file.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
import PIL.Image
from PIL import ImageCms, ImageOps

MAX_IMAGE_PIXELS = 2**26  # 8192 × 8192; a picture of that size decodes to 200 MB

ImageSource = str | os.PathLike | bytes | BinaryIO


class UnreadableImageError(ValueError):
    """A picture that cannot be turned into RGB; the message names it and says why."""


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_IMAGE_PIXELS, name: str | None = None
) -> PIL.Image.Image:
    """Read the first frame of a picture as upright RGB.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        max_pixels: pictures of more pixels than this are refused before anything is decoded.
        name: what errors call the picture; by default its path.

    Raises:
        UnreadableImageError: missing, not a picture, truncated, corrupt, too large, or of an unknown
            range of values.
    """
    if isinstance(source, bytes):
        name = name or f"<{len(source)} bytes>"
        source = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name = name or os.fspath(source)
    else:
        name = name or str(getattr(source, "name", "<file>"))
    try:
        image = PIL.Image.open(source)
    except Exception as error:  # corrupt files make Pillow raise nearly any type
        raise _unreadable(name, error) from error
    with image:
        return to_rgb(image, max_pixels=max_pixels, name=name)


def to_rgb(
    image: PIL.Image.Image, *, max_pixels: int = MAX_IMAGE_PIXELS, name: str | None = None
) -> PIL.Image.Image:
    """Make a picture of any mode upright RGB, decoding it if that has not happened yet.

    Transparency is laid over white. 16-bit values are divided by 257. The range of the modes I and F is
    not written in them: F up to 1 is a fraction; I and F up to 255 are 8-bit and up to 65,535 16-bit.

    Args:
        image: the picture; a multi-frame one gives its current frame.
        max_pixels, name: as for `load_image`.

    Raises:
        UnreadableImageError: as for `load_image`.
    """
    name = name or picture_name(image)
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name}: the picture is empty, {width}×{height} pixels")
    if width * height > max_pixels:
        raise UnreadableImageError(
            f"{name}: {width}×{height} pixels, more than the limit of {max_pixels} (max_image_pixels)"
        )
    if getattr(image, "format", None) == "EPS":
        raise UnreadableImageError(f"{name}: EPS is a program, not a picture; it is not run")
    try:
        rgb = _convert(ImageOps.exif_transpose(image))
    except Exception as error:
        raise _unreadable(name, error) from error
    rgb.filename = name  # for the errors of later steps
    return rgb


def picture_name(image: PIL.Image.Image) -> str:
    """What errors call a picture: its path where it has one."""
    return str(getattr(image, "filename", "")) or f"<{image.mode} picture>"


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UnreadableImageError(f"{name}: not a readable picture: {reason}")


def _convert(image: PIL.Image.Image) -> PIL.Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = _grey_uint8(np.asarray(image), sixteen_bit=image.mode.startswith("I;16"))
        return PIL.Image.fromarray(grey).convert("RGB")
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def scale_uint16(values: np.ndarray) -> np.ndarray:
    """16-bit values to 8-bit, rounded: 65,535 becomes 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _grey_uint8(values: np.ndarray, *, sixteen_bit: bool) -> np.ndarray:
    if sixteen_bit:
        return scale_uint16(values)
    low, high = values.min(), values.max()
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise ValueError(f"its values run from {low} to {high}, no known range of brightness")
    if values.dtype.kind == "f" and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    if high <= 255:
        return np.rint(values).astype(np.uint8)
    return np.rint(values / 257).astype(np.uint8)
