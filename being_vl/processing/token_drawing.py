"""an image → one drawing: as the quantizer sees it, its reconstruction, and its tokens over that."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..bpe.drawing import draw_tokens, enlarged, side_by_side, token_map
from ..bpe.image_bpe import ImageBPE
from ..quantizers.quantizing import quantize
from .processing_being_vl import reconstruct

_LEAST_SIDE = 320  # pixels of a panel; smaller images are enlarged without smoothing


@dataclass(frozen=True)
class TokenDrawing:
    """Three panels with titles, the codes int32 (height, width) of an image, and its visual ids int32 (n,)."""

    drawing: Image.Image
    codes: np.ndarray
    ids: np.ndarray


def token_drawing(
    image: Image.Image, bpe: ImageBPE, vq_model: Any, image_processor: Any
) -> TokenDrawing:
    """Quantize, encode and reconstruct an image of any size, and draw all three.

    Raises:
        ValueError: a code outside the vocabulary, or one whose tokens have no shape.
    """
    (codes,) = quantize([image], vq_model, image_processor)
    ids = bpe.encode(codes)
    height, width = codes.shape
    (seen,) = image_processor.postprocess(np.asarray(image_processor([image])["pixel_values"][0]))
    panels = [
        enlarged(panel, _LEAST_SIDE)
        for panel in (seen, reconstruct(codes, vq_model, image_processor))
    ]
    panels.append(draw_tokens(panels[1], token_map(bpe, ids.tolist(), height, width)))
    titles = ("pixels", f"{codes.size:,} codes", f"{len(ids):,} tokens")
    return TokenDrawing(side_by_side(panels, titles), codes, ids)
