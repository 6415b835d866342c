"""frames of codes ↔ frames of codes and repeats: the time axis of the image BPE.

Source: point "Time" of the law; in the spirit of Run-Length Tokenization (arXiv 2411.05222), which drops the
repeated patches of a ViT. A cell that holds the code of the same cell in the frame before becomes the repeat
code, K, and every frame is then a grid of K + 1 codes for the two-dimensional merges. Lossless. Merges over
(time, row, column) were tried and take more tokens.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from .grids import check_codebook_size, check_codes, check_integers


def mark_repeats(
    codes: Any, codebook_size: int, *, key_frame_interval: int | None = None
) -> np.ndarray:
    """Replace what a frame repeats of the frame before by the repeat code, `codebook_size`.

    Args:
        codes: integers (T, h, w) in [0, codebook_size), memory-mapped or not: the frames of one video.
        codebook_size: K.
        key_frame_interval: every so many frames, one holds no repeat code, so that reading can begin
            there; by default the first alone.

    Returns:
        (T, h, w), codes in [0, K]; of the dtype of `codes`, or of a wider one where that cannot hold K.

    Raises:
        ValueError: shape, dtype, a code, or key_frame_interval; the message has the place and the value.
    """
    frames = _check_frames(codes, codebook_size)
    if key_frame_interval is not None and not (
        isinstance(key_frame_interval, (int, np.integer)) and key_frame_interval >= 1
    ):
        raise ValueError(
            f"key_frame_interval must be an integer of at least 1, got {key_frame_interval!r}"
        )
    dtype = np.result_type(frames.dtype, np.min_scalar_type(codebook_size))
    marked = np.empty(frames.shape, dtype=dtype)
    if not frames.size:
        return marked
    kernels = _kernels()
    if kernels is None:
        check_codes(frames, codebook_size, "codes")
        marked[:] = frames
        same = frames[1:] == frames[:-1]
        if key_frame_interval is not None:
            same[key_frame_interval - 1 :: key_frame_interval] = False
        np.copyto(marked[1:], codebook_size, where=same)
        return marked
    found = kernels[0](
        _flat(frames), dtype.type(codebook_size), key_frame_interval or 0, _flat(marked)
    )
    if found[0] < 0 or found[1] >= codebook_size:
        check_codes(frames, codebook_size, "codes")
    return marked


def restore_repeats(codes: Any, codebook_size: int) -> np.ndarray:
    """Undo `mark_repeats`: the exact inverse, whatever the interval of key frames was.

    Args:
        codes: integers (T, h, w) in [0, codebook_size], the first frame without repeat codes.
        codebook_size: K, which is the repeat code.

    Returns:
        (T, h, w), of the dtype of `codes`.

    Raises:
        ValueError: shape, dtype, a code, or a repeat code in the first frame; the message has the place.
    """
    frames = _check_frames(codes, codebook_size)
    if not frames.size:
        return np.array(frames)
    check_codes(
        frames[:1], codebook_size, "codes", rule=" in the first frame, which repeats nothing"
    )
    kernels = _kernels()
    if kernels is None:
        check_codes(frames, codebook_size + 1, "codes")
        restored = np.array(frames)
        for before, frame in itertools.pairwise(restored):
            np.copyto(frame, before, where=frame == codebook_size)
        return restored
    if np.iinfo(frames.dtype).max < codebook_size:
        check_codes(frames, codebook_size, "codes")
        return np.array(frames)  # such numbers hold no repeat code
    restored = np.empty(frames.shape, dtype=frames.dtype)
    found = kernels[1](_flat(frames), frames.dtype.type(codebook_size), _flat(restored))
    if found[0] < 0 or found[1] > codebook_size:
        check_codes(frames, codebook_size + 1, "codes")
    return restored


def _check_frames(codes: Any, codebook_size: int) -> np.ndarray:
    check_codebook_size(codebook_size)
    frames = np.asanyarray(codes)
    check_integers(frames, "codes")
    if frames.ndim != 3:
        raise ValueError(f"codes must have shape (frames, height, width), got {frames.shape}")
    return frames


def _flat(frames: np.ndarray) -> np.ndarray:
    """(T, h, w) → (T, h · w) in memory order; a copy where the frames are not contiguous."""
    return np.ascontiguousarray(frames).reshape(len(frames), -1)


def _kernels() -> tuple[Any, Any] | None:
    """mark and restore, compiled; None without numba. Imported late because numba takes half a second."""
    from ._jit import HAS_NUMBA

    if not HAS_NUMBA:
        return None
    from .codec.repeats import mark, restore

    return mark, restore
