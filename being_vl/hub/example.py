"""an image → the drawings of a card: the image itself, and its reconstruction with its tokens drawn."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import new_file
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.token_drawing import token_drawing
from ..quantizers.image_loading import load_image

EXAMPLE = "example.png"
DRAWING = "tokens.png"


def draw_example(folder: Path, image: str | os.PathLike) -> list[str]:
    """Write `example.png` and `tokens.png` (the reconstruction, the tokens over it); the names are returned."""
    processor = BeingVLProcessor.from_pretrained(folder)
    loaded = load_image(image)
    drawn = token_drawing(
        loaded, processor.tokenizer.image_bpe, processor.vq_model, processor.image_processor
    )
    for name, panel in ((EXAMPLE, loaded), (DRAWING, drawn.drawing)):
        with new_file(folder / name) as aside:
            panel.save(aside)
    return [EXAMPLE, DRAWING]
