"""A tiny checkpoint whose vocabulary knows videos, and clips to give it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from checkpoint_fixtures import CODEBOOK_SIZE, GRID, llama_3_tokenizer, patch_vq, text_model
from PIL import Image

from being_vl import BeingVLForCausalLM, BeingVLProcessor, ImageBPE, mark_repeats
from being_vl.hub.checkpoint import init_checkpoint


def smooth_clips(count: int, *, frames: int = 5, seed: int = 0) -> list[np.ndarray]:
    """Codes (T, h, w) of which about half repeat the frame before."""
    rng = np.random.default_rng(seed)
    clips = []
    for _ in range(count):
        clip = np.sort(rng.integers(0, 4, (frames, GRID, GRID)), axis=2).astype(np.int32)
        for t in range(1, frames):
            keep = rng.random((GRID, GRID)) < 0.6
            clip[t][keep] = clip[t - 1][keep]
        clips.append(clip)
    return clips


def video_bpe(num_merges: int = 20) -> ImageBPE:
    marked = [frame for clip in smooth_clips(60) for frame in mark_repeats(clip, CODEBOOK_SIZE)]
    return ImageBPE.train(marked, num_merges, CODEBOOK_SIZE + 1, repeat_code=CODEBOOK_SIZE)


def video_checkpoint() -> tuple[BeingVLForCausalLM, BeingVLProcessor]:
    tokenizer = llama_3_tokenizer()
    return init_checkpoint(
        text_model(tokenizer),
        tokenizer,
        patch_vq(),
        video_bpe(),
        generator=torch.Generator().manual_seed(0),
    )


def moving_square(frames: int = 6, side: int = 16, *, seed: int = 0) -> np.ndarray:
    """uint8 (T, side, side, 3): a square that moves to the right on a plain ground."""
    colour = np.random.default_rng(seed).integers(0, 200, 3)
    clip = np.full((frames, side, side, 3), 230, np.uint8)
    for t in range(frames):
        clip[t, 4:10, t : t + 6] = colour
    return clip


def write_webp(path: Path, frames: np.ndarray, milliseconds: int = 250) -> Path:
    """A video file that Pillow reads, losslessly."""
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(
        path, save_all=True, append_images=images[1:], duration=milliseconds, lossless=True
    )
    return path
