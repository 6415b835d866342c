"""what a user passes as grids of codes → a list of grids, or a list of lists of grids.

Source: the forms that transformers' processors accept for images (one, a list, a list for each text). It
differs in that nested lists of integers are grids too, since that is how a parquet row comes back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..bpe.grids import check_integers


def nested_grids(value: Any) -> list[Any]:
    """Arrays, tensors and nested lists of codes → a list of grids, or of lists of grids.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, torch.Tensor):
        value = value.cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        if value.ndim == 2:
            return [value]
        if value.ndim in (3, 4):
            return list(value) if value.ndim == 3 else [list(sample) for sample in value]
        raise ValueError(f"image_codes must be grids (h, w), got an array of shape {value.shape}")
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise ValueError(f"image_codes must be grids (h, w), got {type(value).__name__}")
    if _depth(value) == 2:
        return [np.asarray(value)]
    return [_grid_or_list(item) for item in value]


def flatten(images: Any) -> list[Any]:
    """The images or grids of a nested list, in order."""
    if isinstance(images, (list, tuple)):
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


def _grid_or_list(item: Any) -> Any:
    grids = nested_grids(item)
    return grids[0] if _depth(item) == 2 else grids


def _depth(value: Any) -> int:
    """Levels above the numbers: 2 for a grid, however it is stored."""
    if isinstance(value, (np.ndarray, torch.Tensor)) and value.dtype != object:
        return value.ndim
    if isinstance(value, (list, tuple, np.ndarray)):
        return 1 + (_depth(value[0]) if len(value) else 2)
    return 0
