"""an image → the pictures of a card: the image itself, and its reconstruction with its tokens drawn."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from ..bpe.drawing import draw_tokens, side_by_side, token_map
from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.image_loading import load_image

EXAMPLE = "example.png"
PICTURE = "tokens.png"


def draw_example(folder: Path, image: str | os.PathLike, zoom: int = 320) -> list[str]:
    """Write `example.png` and `tokens.png`: an image, its reconstruction, its tokens drawn over it.

    Args:
        folder: a checkpoint.
        image: path of a picture.
        zoom: the least side in pixels of a panel.

    Returns:
        the names of the files.

    Raises:
        ValueError: the picture is unreadable, or the folder has no VQ model.
    """
    processor = BeingVLProcessor.from_pretrained(folder)
    picture = load_image(image)
    (grid,) = processor.quantize([picture])
    bpe = processor.tokenizer.image_bpe
    ids = bpe.encode(grid)
    pixels = processor.image_processor([picture])["pixel_values"]
    seen = processor.image_processor.postprocess(np.asarray(pixels))[0]
    scale = max(1, -(-zoom // min(seen.size)))
    size = (seen.width * scale, seen.height * scale)
    reconstruction = processor.reconstruct(grid).resize(size, Image.Resampling.NEAREST)
    tokens = draw_tokens(reconstruction, token_map(bpe, ids, *grid.shape))
    panels = [seen.resize(size, Image.Resampling.NEAREST), reconstruction, tokens]
    titles = ("the image, as it is quantized", f"{grid.size} codes", f"{len(ids)} tokens")
    for name, panel in ((EXAMPLE, picture), (PICTURE, side_by_side(panels, titles))):
        partial = folder / f".{name}"
        panel.save(partial, format="PNG")
        os.replace(partial, folder / name)
    return [EXAMPLE, PICTURE]
