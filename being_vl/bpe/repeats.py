"""frames of codes ↔ frames of codes and repeats: the time axis of the image BPE.

Source: point "Time" of the law; in the spirit of Run-Length Tokenization (arXiv 2411.05222), which drops the
repeated patches of a ViT. A cell that holds the code of the same cell in the frame before becomes the repeat
code, K, and every frame is then a grid of K + 1 codes for the two-dimensional merges. Lossless. Merges over
(time, row, column) were tried and take more tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .grids import check_codebook_size, check_codes

_BLOCK_CELLS = 1 << 18  # what is compared at once stays in the cache


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
    frames = _check_frames(codes, "codes", codebook_size)
    if key_frame_interval is not None and not (
        isinstance(key_frame_interval, (int, np.integer)) and key_frame_interval >= 1
    ):
        raise ValueError(
            f"key_frame_interval must be an integer of at least 1, got {key_frame_interval!r}"
        )
    count, height, width = frames.shape
    marked = np.empty(
        frames.shape, dtype=np.result_type(frames.dtype, np.min_scalar_type(codebook_size))
    )
    step = max(1, _BLOCK_CELLS // max(1, height * width))
    for begin in range(0, count, step):
        before = max(begin - 1, 0)  # the frame that the first of this block may repeat
        block = np.asarray(frames[before : begin + step])
        check_codes(block, codebook_size, "codes", first=before)
        out = marked[begin : begin + step]
        out[:] = block[begin - before :]
        same = np.empty(out.shape, dtype=bool)
        same[: 1 - (begin - before)] = False
        np.equal(block[1:], block[:-1], out=same[1 - (begin - before) :])
        if key_frame_interval is not None:
            same[-begin % key_frame_interval :: key_frame_interval] = False
        np.copyto(out, codebook_size, where=same)
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
    frames = _check_frames(codes, "codes", codebook_size)
    check_codes(
        frames[:1], codebook_size, "codes", rule=" in the first frame, which repeats nothing"
    )
    check_codes(frames, codebook_size + 1, "codes")
    restored = np.array(frames)
    for before, frame in zip(restored, restored[1:], strict=False):
        np.copyto(frame, before, where=frame == codebook_size)
    return restored


def _check_frames(codes: Any, name: str, codebook_size: int) -> np.ndarray:
    check_codebook_size(codebook_size)
    frames = codes if isinstance(codes, np.ndarray) else np.asarray(codes)
    if frames.ndim != 3:
        raise ValueError(f"{name} must have shape (frames, height, width), got {frames.shape}")
    return frames
