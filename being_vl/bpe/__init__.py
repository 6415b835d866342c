"""codes ↔ tokens: the law of the image BPE, its vocabulary, its training.

`naive` is the law in plain Python; `ImageBPE` is what one uses. Loads numpy alone: numba comes with the first
grid, torch never.
"""

from .image_bpe import GridState, ImageBPE
from .repeats import decode_frames, encode_frames, mark_repeats, restore_repeats

__all__ = [
    "GridState",
    "ImageBPE",
    "decode_frames",
    "encode_frames",
    "mark_repeats",
    "restore_repeats",
]
