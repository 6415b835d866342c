"""The parts of easy-VQA's studies that no command makes: a k-means quantizer and a small text model.

If you have a quantizer and a Llama, start with `being-vl encode`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

CODEBOOK_SIZE = 256
_TEXT_STEPS = 80
_FIT_IMAGES = 1000


def fit_patch_quantizer(images: Path, target: Path, *, seed: int) -> None:
    """Fit `BeingVLPatchVQModel` on PNGs and save it with its image processor."""
    from ..quantizers.image_loading import load_image
    from ..quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
    from ..quantizers.quantizer import default_image_processor

    paths = sorted(images.iterdir(), key=lambda path: int(path.stem))
    chosen = paths[:: max(1, len(paths) // _FIT_IMAGES)]
    pixels = [np.asarray(load_image(path).convert("RGB")) for path in chosen]
    config = BeingVLPatchVQConfig(num_embeddings=CODEBOOK_SIZE, patch_size=4, resolution=64)
    processor = default_image_processor(config)
    model = BeingVLPatchVQModel(config)
    model.fit(processor(pixels, return_tensors="pt")["pixel_values"], seed=seed)
    model.save_pretrained(target)
    processor.save_pretrained(target)


def make_text_model(
    texts: Sequence[str], target: Path, *, seed: int, tokenizer_texts: Sequence[str] = ()
) -> None:
    """Train a small Llama and its tokenizer, a stand-in for a pretrained base."""
    from .quickstart.text_model import train_text_model, train_text_tokenizer

    tokenizer = train_text_tokenizer([*texts, *tokenizer_texts])
    model = train_text_model(tokenizer, texts, seed=seed, steps=_TEXT_STEPS)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def read_turns(path: Path) -> tuple[list[str], list[str]]:
    """All questions and all answers of a file of `write_easyvqa`, without the images."""
    turns = [turn for row in json.loads(path.read_text("utf-8")) for turn in row["conversations"]]
    said = [[t["value"] for t in turns if t["from"] == speaker] for speaker in ("human", "gpt")]
    return [text.removeprefix("<image>\n") for text in said[0]], said[1]
