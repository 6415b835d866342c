"""images → codes → images: how much the quantizer keeps, and how few tokens the image BPE makes of it.

Source: PSNR, SSIM and rFID as in `quantizers.metrics`; tokens per image for growing vocabularies as in Figure 3 of
"From Pixels to Tokens".
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..bpe.image_bpe import ImageBPE
from ..files import Result
from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.metrics import ReconstructionMetrics, inception_network
from ..quantizers.quantizing import encode_by_size, read_pixels
from .results import hardware


@torch.inference_mode()
def evaluate_reconstruction(
    processor: BeingVLProcessor,
    images: Sequence[str],
    *,
    dataset: dict[str, str | None],
    task: str = "reconstruction",
    rfid_weights: str | None = None,
    batch_size: int = 32,
    progress: Callable[[int], Any] = lambda count: None,
) -> Result:
    """Quantize images, reconstruct them, and encode their codes with 0, 1, 2, 4, … and all merges.

    Returns:
        the result `task`, with `psnr` (dB), `psnr_per_image`, `ssim`, `code_usage` (share), `perplexity`, `rfid`
        where weights are given; and `tokens_per_image/N` with the first N merges.
    """
    started = time.perf_counter()
    vq, bpe = processor.vq_model, processor.tokenizer.image_bpe
    metrics = ReconstructionMetrics(
        vq.config.num_embeddings,
        processor.image_processor,
        fid_network=None if rfid_weights is None else inception_network(rfid_weights),
        device=vq.device,
    )
    grids: list[np.ndarray] = []
    side = vq.config.downsampling
    pixels = (
        (path, read_pixels(path, processor.image_processor, downsampling=side, name=path))
        for path in images
    )
    for paths, batch, codes in encode_by_size(pixels, vq, batch_size=batch_size):
        metrics.update(batch, vq.decode(codes), codes)
        grids += list(codes.cpu().numpy().astype(np.int32))
        progress(len(paths))
    curve = tokens_by_merges(bpe, grids)
    values = metrics.compute() | {f"tokens_per_image/{n}": mean for n, mean in curve.items()}
    return Result(
        task=task,
        dataset=dataset,
        metrics=values,
        num_examples=len(images),
        decoding={},
        harness={"name": "being_vl", "version": __version__},
        seconds=round(time.perf_counter() - started, 3),
        hardware=hardware(vq.device),
        images={"codes_per_image": curve[0], "tokens_per_image": curve[bpe.num_merges]},
    )


def tokens_by_merges(bpe: ImageBPE, grids: Sequence[np.ndarray]) -> dict[int, float]:
    """Number of merges → mean tokens of a grid, for none, powers of two, and all of a vocabulary."""
    counts = {0, bpe.num_merges} | {2**n for n in range(bpe.num_merges.bit_length())}
    return {
        count: float(np.mean([len(ids) for ids in bpe.first(count).encode_batch(list(grids))]))
        for count in sorted(counts)
    }
