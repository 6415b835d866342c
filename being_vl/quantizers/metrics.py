"""reconstructions → numbers: PSNR, SSIM, use of the codebook, rFID.

Source: PSNR of 8-bit RGB; SSIM (Wang et al. 2004) and the Fréchet distance of Inception features (Heusel
et al. 2017) by torchmetrics; perplexity is the exponential of the entropy of the codes (van den Oord et
al. 2017). Images are compared as the 8-bit RGB that a user would see.
"""

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .image_processing_being_vl import BeingVLImageProcessor

_PEAK = 255.0


class ReconstructionMetrics:
    """Adds up batches; `compute` gives the numbers.

    Args:
        num_embeddings: K.
        processor: whose pixel values are compared.
        ssim: whether to compute it (torchmetrics).
        fid_network: a network that torchmetrics' FrechetInceptionDistance takes as `feature`, for rFID.
        device: where the sums live.

    Raises:
        ImportError: torchmetrics is needed and not installed.
    """

    def __init__(
        self,
        num_embeddings: int,
        processor: BeingVLImageProcessor,
        *,
        ssim: bool = True,
        fid_network: nn.Module | None = None,
        device: torch.device | str = "cpu",
    ):
        self._processor = processor
        self._counts = torch.zeros(num_embeddings, dtype=torch.long, device=device)
        # squared error per pixel, its per-image PSNR, SSIM; images
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._ssim = ssim_function() if ssim else None
        self._fid = None
        if fid_network is not None:
            from torchmetrics.image.fid import FrechetInceptionDistance

            self._fid = FrechetInceptionDistance(feature=fid_network, normalize=False).to(device)

    @torch.no_grad()
    def update(
        self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, codes: torch.Tensor
    ) -> None:
        """Take in a batch: pixels and reconstruction (B, 3, H, W), codes (B, h, w)."""
        real = self._processor.to_uint8(pixel_values)
        fake = self._processor.to_uint8(reconstruction)
        errors = (real.double() - fake.double()).square().mean((1, 2, 3))
        psnr = 20 * math.log10(_PEAK) - 10 * errors.clamp(min=1 / _PEAK**2).log10()
        self._sums[0] += errors.sum()
        self._sums[1] += psnr.sum()
        if self._ssim is not None:
            self._sums[2] += self._ssim(
                fake.float(), real.float(), data_range=_PEAK, reduction="sum"
            )
        self._sums[3] += len(real)
        self._counts += torch.bincount(codes.flatten(), minlength=len(self._counts))
        if self._fid is not None:
            self._fid.update(real, real=True)
            self._fid.update(fake, real=False)

    def compute(self) -> dict[str, float]:
        """The metrics over all batches, of all processes.

        `psnr` is that of the mean squared error over all images, which is the stricter of the two;
        `psnr_per_image` the mean over images. `code_usage` is the share of codes that occur.

        Raises:
            ValueError: no batch was taken in.
        """
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._sums)
            torch.distributed.all_reduce(self._counts)
        error, psnr, ssim, images = self._sums.tolist()
        if not images:
            raise ValueError("there is no image to evaluate on")
        share = self._counts.double() / self._counts.sum()
        entropy = torch.special.entr(share).sum()
        metrics = {
            "psnr": 10 * math.log10(_PEAK**2 / max(error / images, 1 / _PEAK**2)),
            "psnr_per_image": psnr / images,
            "code_usage": float((self._counts > 0).double().mean()),
            "perplexity": math.exp(float(entropy)),
        }
        if self._ssim is not None:
            metrics["ssim"] = ssim / images
        if self._fid is not None:
            metrics["rfid"] = float(self._fid.compute())
        return metrics


def evaluate_reconstruction(
    model: Any, batches: Iterable[torch.Tensor], metrics: ReconstructionMetrics
) -> dict[str, float]:
    """Quantize and reconstruct batches of pixels (B, 3, H, W), which lie on the model's device."""
    with torch.inference_mode():
        for pixel_values in batches:
            codes = model.encode(pixel_values)
            metrics.update(pixel_values, model.decode(codes), codes)
    return metrics.compute()


def inception_network(weights: str) -> nn.Module:
    """torch-fidelity's Inception network with the user's file of its weights, for rFID."""

    if not os.path.exists(weights):
        raise FileNotFoundError(f"rfid_weights: {weights}: no such file")
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        return NoTrainInceptionV3(
            name="inception-v3-compat",
            features_list=["2048"],
            feature_extractor_weights_path=weights,
        )
    except ImportError as error:
        raise ImportError(f"rFID needs torchmetrics and torch-fidelity: {_INSTALL}") from error


_INSTALL = "pip install being-vl[vq]"


def ssim_function():
    """torchmetrics' SSIM.

    Raises:
        ImportError: torchmetrics is not installed.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise ImportError(
            f"SSIM needs torchmetrics: {_INSTALL} (train-vq can do without it: --ssim false)"
        ) from error
    return structural_similarity_index_measure
