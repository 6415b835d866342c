"""files → RGB images: what the image processor and the commands share.

Source: Pillow's conventions, and transformers' `convert_to_rgb` for transparency (laid over white). It
differs in that 16-bit images are scaled rather than saturated, the size is checked from the header
before a pixel is decoded, and whatever goes wrong becomes one error that names the file.
"""

import importlib
import importlib.util
import io
import os
from functools import lru_cache
from http.client import HTTPException
from typing import Any, BinaryIO
from urllib.request import Request, urlopen

import numpy as np
import PIL.Image
from PIL import ImageCms, ImageOps

from ..files import check_regular

MAX_IMAGE_PIXELS = 2**26  # 8192 × 8192; an image of that size decodes to 200 MB

_PHOTOMETRIC = 262  # the TIFF tag; 0 says that white is zero
_TIMEOUT = 60.0  # seconds that a server may be silent
_NAME_LENGTH = 80  # a path that is none may be an image in base64, which no message should print

# package, its module, extensions that Pillow alone cannot read
_PLUGINS = (
    ("pillow-heif", "pillow_heif", (".heic", ".heif", ".hif")),
    ("pillow-jxl-plugin", "pillow_jxl", (".jxl",)),
)

ImageSource = str | os.PathLike | bytes | BinaryIO


class UnreadableImageError(ValueError):
    """An image that cannot be turned into RGB; the message names it and says why."""


def load_image(
    source: ImageSource, *, max_pixels: int = MAX_IMAGE_PIXELS, name: str | None = None
) -> PIL.Image.Image:
    """Read the first frame of an image as upright RGB.

    Args:
        source: a path, the bytes of a file, or an open binary file.
        max_pixels: images of more pixels than this are refused before anything is decoded.
        name: what errors call the image; by default its path.

    Raises:
        UnreadableImageError: missing, not an image, truncated, corrupt, too large, or of an unknown
            range of values.
    """
    if isinstance(source, bytes):
        name = name or f"<{len(source)} bytes>"
        source = io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        name = name or short_name(os.fspath(source))
    else:
        name = name or str(getattr(source, "name", "<file>"))
    _register_plugins()
    try:
        if isinstance(source, (str, os.PathLike)):
            check_regular(source)
        image = PIL.Image.open(source)
    except Exception as error:  # corrupt files make Pillow raise nearly any type
        raise _unreadable(name, error) from error
    with image:
        return to_rgb(image, max_pixels=max_pixels, name=name)


def download(url: str, *, max_bytes: int, option: str | None = None) -> bytes:
    """The file at an http or https URL, read to a limit, which follows from an `option` of the caller's.

    Raises:
        UnreadableImageError: silence for a minute, a status of failure, or more than `max_bytes`.
    """
    # some servers refuse Python's own name
    request = Request(url, headers={"User-Agent": "being_vl"})
    try:
        with urlopen(request, timeout=_TIMEOUT) as response:
            content = response.read(max_bytes + 1)
    except (OSError, HTTPException, ValueError) as error:
        raise UnreadableImageError(f"{short_name(url)}: cannot be fetched: {error}") from error
    if len(content) > max_bytes:
        raise UnreadableImageError(
            f"{short_name(url)}: more than {max_bytes} bytes" + (f" ({option})" if option else "")
        )
    return content


def plugin_of(extension: str) -> str | None:
    """The package that Pillow needs for an extension, such as ".heic", and has not; None where it can read it."""
    for package, module, extensions in _PLUGINS:
        if extension in extensions:
            return None if importlib.util.find_spec(module) else package
    return None


@lru_cache(maxsize=1)
def _register_plugins() -> None:
    for _, module, _ in _PLUGINS:
        if importlib.util.find_spec(module):
            plugin = importlib.import_module(module)
            if hasattr(plugin, "register_heif_opener"):  # pillow_jxl registers itself
                plugin.register_heif_opener()


def to_rgb(
    image: PIL.Image.Image, *, max_pixels: int = MAX_IMAGE_PIXELS, name: str | None = None
) -> PIL.Image.Image:
    """Make an image of any mode upright RGB, decoding it if that has not happened yet; arguments as of `load_image`.

    Transparency is laid over white. 16-bit values are divided by 257; for the modes I and F, [`eight_bits`] has the
    table of ranges. TIFFs whose zero is white are inverted. Of several frames it takes the current one.

    Raises:
        UnreadableImageError: as for `load_image`.
    """
    name = name or image_name(image)
    width, height = image.size
    if width < 1 or height < 1:
        raise UnreadableImageError(f"{name}: the image is empty, {width}×{height} pixels")
    if width * height > max_pixels:
        raise UnreadableImageError(
            f"{name}: {width}×{height} pixels, more than the limit of {max_pixels} (max_image_pixels)"
        )
    if getattr(image, "format", None) == "EPS":
        raise UnreadableImageError(f"{name}: EPS is a program, not an image; it is not run")
    # Pillow inverts such TIFFs of up to 8 bits by itself, and leaves those of 16 bits and more as they are.
    white_is_zero = getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0
    try:
        rgb = _convert(ImageOps.exif_transpose(image), name, white_is_zero)
    except UnreadableImageError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from error
    rgb.filename = name  # for the errors of later steps
    return rgb


def short_name(text: str) -> str:
    """A name as messages print it: its beginning, where it is a payload rather than a name."""
    is_name = len(text) <= _NAME_LENGTH * 4 and "\n" not in text
    return text if is_name else f"{text[:_NAME_LENGTH].strip()}…"


def image_name(image: PIL.Image.Image) -> str:
    """What errors call an image: its path where it has one."""
    return str(getattr(image, "filename", "")) or f"<{image.mode} image>"


def _unreadable(name: str, error: Exception) -> UnreadableImageError:
    # An OSError's text has the whole path once more, and Pillow's has the address of a file object.
    text = str(getattr(error, "strerror", None) or error)
    if isinstance(error, PIL.UnidentifiedImageError):
        text = "its format is not known"
    reason = " ".join(text.split())[:200] or type(error).__name__
    return UnreadableImageError(f"{name}: not a readable image: {reason}")


def _convert(image: PIL.Image.Image, name: str, white_is_zero: bool) -> PIL.Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        if image.mode.startswith("I;16"):
            values = values.astype(np.uint16)  # of either byte order
        grey = eight_bits(values, name)
        return PIL.Image.fromarray(255 - grey if white_is_zero else grey).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted: Any = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return converted  # None only where it works in place
    if image.has_transparency_data:
        if image.mode == "La":
            image = image.convert("LA")
        rgba = image.convert("RGBA")
        white = PIL.Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def eight_bits(values: Any, name: str = "<array>") -> np.ndarray:
    """Brightness in any numeric type → uint8 of the same shape: the one table of types and ranges.

    | type | range | is |
    |---|---|---|
    | bool | | 0 or 255 |
    | uint8 | | itself |
    | uint16 | | divided by 257 |
    | other integers | 0 … 255 | itself |
    | | 0 … 65,535 | divided by 257 |
    | floats | 0 … 1 | times 255 |
    | | 0 … 255 | rounded |
    | | 0 … 65,535 | divided by 257 |

    Args:
        values: numpy or torch, or what numpy makes an array of.
        name: what errors call it.

    Raises:
        UnreadableImageError: any other type or range, or a masked value; the message names both.
    """
    if hasattr(values, "detach"):  # a torch tensor; numpy has no bfloat16
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    if np.ma.is_masked(values):
        count = int(np.ma.count_masked(values))
        raise UnreadableImageError(f"{name}: {count} values are masked; fill them (array.filled)")
    values = np.asarray(values)
    if values.dtype == np.uint8 or not values.size:
        return values.astype(np.uint8)
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint16:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if values.dtype.kind not in "iuf":
        raise UnreadableImageError(f"{name}: values of type {values.dtype} are no brightness")
    low, high = values.min().item(), values.max().item()  # no float16 holds 65535
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 65535:
        raise UnreadableImageError(
            f"{name}: {values.dtype} values run from {low} to {high}, no known range of brightness (0 … 1 for "
            "floats, 0 … 255, 0 … 65535)"
        )
    if values.dtype.kind == "f" and high <= 1:
        return np.rint(values * 255).astype(np.uint8)
    return np.rint(values if high <= 255 else values / 257).astype(np.uint8)
