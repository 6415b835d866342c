"""A tiny checkpoint with a result file, as somebody would publish it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from checkpoint_fixtures import tiny_checkpoint
from PIL import Image

from being_vl.hub.checkpoint import save_checkpoint

RESULT = {
    "version": 1,
    "task": "easyvqa",
    "dataset": {"name": "easy-VQA", "id": "tester/easy-vqa", "split": "test"},
    "metrics": {"accuracy": 99.28, "accuracy/yes/no": 99.4},
    "num_examples": 9673,
    "decoding": {"do_sample": False, "max_new_tokens": 8},
    "harness": {"name": "being_vl", "version": "0.1.0"},
    "seconds": 12.5,
    "hardware": "CPU, 1 threads (Linux x86_64)",
    "images": {"codes_per_image": 16.0, "tokens_per_image": 5.5},
}


def write_result(folder: Path, **changes) -> Path:
    """`evaluation/easyvqa.json` below a folder, with some fields changed."""
    path = folder / "evaluation" / "easyvqa.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**RESULT, **changes}))
    return path


def published_checkpoint(folder: Path, *, shard: str = "5GB") -> Path:
    """A checkpoint with results, and an image beside it to look at; `shard` is the size of its files."""
    torch.manual_seed(0)
    model, processor = tiny_checkpoint("llama-3")
    save_checkpoint(model, processor, folder)
    if shard != "5GB":
        (folder / "model.safetensors").unlink()
        model.save_pretrained(folder, max_shard_size=shard)
    write_result(folder)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder.parent / "image.png")
    return folder
