"""an image → the pictures of a card: the image itself, and its reconstruction with its tokens drawn."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import new_file
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.token_picture import token_picture
from ..quantizers.image_loading import load_image

EXAMPLE = "example.png"
PICTURE = "tokens.png"


def draw_example(folder: Path, image: str | os.PathLike) -> list[str]:
    """Write `example.png` and `tokens.png`: an image, its reconstruction, its tokens drawn over it.

    Returns:
        the names of the files.
    """
    processor = BeingVLProcessor.from_pretrained(folder)
    picture = load_image(image)
    drawn = token_picture(
        picture, processor.tokenizer.image_bpe, processor.vq_model, processor.image_processor
    )
    for name, panel in ((EXAMPLE, picture), (PICTURE, drawn.drawing)):
        with new_file(folder / name) as aside:
            panel.save(aside)
    return [EXAMPLE, PICTURE]
