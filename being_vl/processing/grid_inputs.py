"""what a user passes as grids, or clips, of codes → a list of them, or a list of lists.

Source: the forms that transformers' processors accept for images (one, a list, a list for each text). It
differs in that nested lists of integers are grids too, since that is how a parquet row comes back.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..bpe.grids import check_integers

_FORMS = {2: ("image_codes", "grids (h, w)"), 3: ("video_codes", "clips (T, h, w)")}


def nested_codes(value: Any, ndim: int = 2) -> list[Any]:
    """Arrays, tensors and nested lists of codes → a list of grids (ndim 2) or clips (3), or of lists of them.

    Raises:
        ValueError: it is none of these.
    """
    name, form = _FORMS[ndim]
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        if not ndim <= value.ndim <= ndim + 2:
            raise ValueError(f"{name} must be {form}, got an array of shape {value.shape}")
        if value.ndim == ndim + 2:
            return [list(sample) for sample in value]
        return [value] if value.ndim == ndim else list(value)
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"{name} must be {form}, got {type(value).__name__}")
    if _depth(value, ndim) == ndim:
        return [np.asarray(value)]
    nested = [(nested_codes(item, ndim), _depth(item, ndim) == ndim) for item in value]
    return [codes[0] if is_one else codes for codes, is_one in nested]


def flatten(images: Any) -> list[Any]:
    """The images or grids of a nested list, in order; an array (n, h, w, channels) holds n."""
    if isinstance(images, (list, tuple)) or getattr(images, "ndim", 0) == 4:
        return [image for item in images for image in flatten(item)]
    return [images]


def integers(values: Any, name: str) -> np.ndarray:
    """int64 of whatever holds integers; a cast of anything else would round without a word."""
    array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values)
    if array.size:
        check_integers(array, name)
    return array.astype(np.int64)


def is_nested(images: Sequence[Any]) -> bool:
    """Whether there is a list for each text."""
    return all(isinstance(sample, (list, tuple)) for sample in images)


def _depth(value: Any, ndim: int) -> int:
    """Levels above the numbers, however they are stored; an empty list is one of grids or clips, not one of them."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.dtype != object:
        return value.ndim
    if isinstance(value, (list, tuple, np.ndarray)):
        return 1 + (_depth(value[0], ndim) if len(value) else ndim)
    return 0
