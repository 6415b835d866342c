"""frames of codes ↔ frames of codes and repeats: the time axis of the image BPE.

Source: point "Time" of the law; in the spirit of Run-Length Tokenization (arXiv 2411.05222), which drops the
repeated patches of a ViT. A cell that holds the code of the same cell in the frame before becomes the repeat
code, K, and every frame is then a grid of K + 1 codes for the two-dimensional merges. Lossless. Merges over
(time, row, column) were tried and take more tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from .grids import check_codebook_size, check_codes, check_integer, check_integers

if TYPE_CHECKING:
    from .image_bpe import ImageBPE


def mark_repeats(
    codes: Any,
    codebook_size: int,
    *,
    key_frame_interval: int | None = None,
    before: Any = None,
    num_before: int = 0,
) -> np.ndarray:
    """Replace what a frame repeats of the frame before by the repeat code, `codebook_size`.

    A stream is marked in pieces: each call is given the frame that precedes its own, and gives what one call
    for all frames would.

    Args:
        codes: integers (T, h, w) in [0, codebook_size), memory-mapped or not: frames of one video.
        key_frame_interval: every so many frames, one holds no repeat code, so that reading can begin
            there; by default the first alone.
        before: codes (h, w), the frame before codes[0]; None where codes[0] is the first of the video.
        num_before: how many frames precede codes[0]; key frames are counted with them.

    Returns:
        (T, h, w), codes in [0, K]; of the dtype of `codes`, or of a wider one where that cannot hold K.

    Raises:
        ValueError: shape, dtype, a code, or key_frame_interval; the message has the place and the value.
    """
    frames = _check_frames(codes, codebook_size)
    if key_frame_interval is not None:
        check_integer(key_frame_interval, "key_frame_interval")
    previous = None if before is None else _check_before(before, frames, codebook_size)
    dtype = np.result_type(frames.dtype, np.min_scalar_type(codebook_size))
    marked = np.empty(frames.shape, dtype=dtype)
    if not frames.size:
        return marked
    interval, kernels = key_frame_interval or 0, _kernels()
    if kernels is None:
        check_codes(frames, codebook_size, "codes")
        marked[:] = frames
        same = frames[1:] == frames[:-1]
        if interval:
            same[(np.arange(1, len(frames)) + num_before) % interval == 0] = False
        np.copyto(marked[1:], codebook_size, where=same)
    else:
        found = kernels[0](
            _flat(frames), dtype.type(codebook_size), interval, num_before, _flat(marked)
        )
        if found[0] < 0 or found[1] >= codebook_size:
            check_codes(frames, codebook_size, "codes")
    if previous is not None and not (interval and num_before % interval == 0):
        np.copyto(marked[0], codebook_size, where=frames[0] == previous)
    return marked


def restore_repeats(codes: Any, codebook_size: int, *, before: Any = None) -> np.ndarray:
    """Undo `mark_repeats`: the exact inverse, whatever the interval of key frames was.

    Args:
        codes: integers (T, h, w) in [0, codebook_size], where codebook_size is the repeat code.
        before: codes (h, w), the restored frame before codes[0], which then may hold repeat codes; None where
            codes[0] is the first frame of a video, or a key frame.

    Returns:
        (T, h, w), of the dtype of `codes`.

    Raises:
        ValueError: shape, dtype, a code, or a repeat code in the first frame; the message has the place.
    """
    frames = _check_frames(codes, codebook_size)
    if not frames.size:
        return np.array(frames)
    if before is not None:
        previous = _check_before(before, frames, codebook_size).astype(frames.dtype)
        return restore_repeats(np.concatenate([previous[None], frames]), codebook_size)[1:]
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


def encode_frames(
    bpe: ImageBPE, codes: Any, *, key_frame_interval: int | None = None
) -> list[np.ndarray]:
    """The frames of a video → visual ids of each, int32 (n,).

    Args:
        bpe: of marked frames (with a `repeat_code`); with another one each frame is encoded as an image.
        codes: integers (T, h, w), as the quantizer gave them.
        key_frame_interval: see `mark_repeats`, for errors too.
    """
    if bpe.repeat_code is not None:
        codes = mark_repeats(codes, bpe.repeat_code, key_frame_interval=key_frame_interval)
    return bpe.encode_batch(codes, num_threads=1)


def decode_frames(bpe: ImageBPE, ids: Sequence[Any], height: int, width: int) -> np.ndarray:
    """Visual ids of each frame → codes int32 (T, height, width): the inverse of `encode_frames`.

    Raises:
        ValueError: ids that do not cover a frame exactly, or a repeat code in the first frame.
    """
    frames = bpe.decode_batch(ids, height, width, num_threads=1)
    stacked = np.stack(frames) if frames else np.empty((0, height, width), np.int32)
    return stacked if bpe.repeat_code is None else restore_repeats(stacked, bpe.repeat_code)


class MarkedFrames(Sequence):
    """The frames of many videos, each marked when it is asked for: what a vocabulary is trained on.

    Args:
        frames: codes (h, w), those of a video one after another, all of one size.
        starts: index of the first frame of each video, ascending, the first of them 0.
        codebook_size: K, which is the repeat code.
        key_frame_interval: see `mark_repeats`.
    """

    def __init__(
        self,
        frames: Sequence[np.ndarray],
        starts: Any,
        codebook_size: int,
        *,
        key_frame_interval: int | None = None,
    ):
        if key_frame_interval is not None:
            check_integer(key_frame_interval, "key_frame_interval")
        self._frames = frames
        self._starts = np.asarray(starts, dtype=np.int64)
        self._codebook_size = check_codebook_size(codebook_size)
        self._interval = key_frame_interval
        self._lock = Lock()  # shards in memory are shared by all threads

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: Any) -> Any:
        """Frame `index`, (h, w); a slice gives a list."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"frame {index} of {len(self)}")
        video = int(np.searchsorted(self._starts, index, side="right")) - 1
        number = index - int(self._starts[video])
        with self._lock:
            frame = self._frames[index]
            before = self._frames[index - 1] if number else None
        return mark_repeats(
            frame[None],
            self._codebook_size,
            key_frame_interval=self._interval,
            before=before,
            num_before=number,
        )[0]


def _check_before(before: Any, frames: np.ndarray, codebook_size: int) -> np.ndarray:
    previous = np.asarray(before)
    check_integers(previous, "before")
    if previous.shape != frames.shape[1:]:
        raise ValueError(f"before must have shape {frames.shape[1:]}, got {previous.shape}")
    check_codes(previous, codebook_size, "before")
    return previous


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
