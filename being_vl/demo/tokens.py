"""The tokens of an image after the first merges, drawn and counted for the demo's page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ..bpe.drawing import draw_tokens, enlarged, token_map
from ..bpe.image_bpe import ImageBPE

# Tokens are coloured by their number of cells: (the most cells, label).
_CLASSES = ((1, "1 code"), (2, "2"), (4, "3–4"), (8, "5–8"), (16, "9–16"), (32, "17–32"))
_LARGEST = "33 and more"
LABELS = (*(label for _, label in _CLASSES), _LARGEST)
MIN_SIDE = 384


@dataclass(frozen=True)
class TokenView:
    """An image with its tokens drawn over it."""

    image: Image.Image  # with the borders of the tokens
    # (bool mask (height, width) over the image, label), for each size of tokens that occurs
    areas: list[tuple[np.ndarray, str]]
    num_tokens: int
    num_codes: int


first_merges = lru_cache(maxsize=8)(ImageBPE.first)


def view_tokens(
    bpe: ImageBPE, codes: np.ndarray, num_merges: int, reconstruction: Image.Image
) -> TokenView:
    """The tokens of an image's codes (h, w) by the first merges of a vocabulary, over its reconstruction."""
    part = first_merges(bpe, num_merges)
    ids = part.encode(codes)
    owner = token_map(part, ids.tolist(), *codes.shape)  # (h, w): which token covers a cell
    cells = np.bincount(owner.reshape(-1), minlength=len(ids))[owner]  # (h, w): its number of cells
    image = enlarged(reconstruction, MIN_SIDE)
    kinds = np.searchsorted([most for most, _ in _CLASSES], cells)
    rows = np.arange(image.height) * codes.shape[0] // image.height
    cols = np.arange(image.width) * codes.shape[1] // image.width
    areas = [((kinds == kind)[rows][:, cols], LABELS[kind]) for kind in np.unique(kinds).tolist()]
    return TokenView(draw_tokens(image, owner), areas, len(ids), codes.size)
