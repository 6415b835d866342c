"""Checks of what quantizers are given: pixels, codes, and latents, of which `argmin` returns a code even for NaN."""

from collections.abc import Sequence

import torch


class NotFiniteError(ValueError):
    """Images whose latents are NaN or infinite.

    Attributes:
        indices: their places in the batch.
    """

    def __init__(self, indices: Sequence[int], names: Sequence[str] = ()):
        self.indices = list(indices)
        named = list(names) or [f"image {index} of the batch" for index in self.indices]
        more = f" and {len(named) - 3} more" if len(named) > 3 else ""
        super().__init__(
            f"{', '.join(named[:3])}{more}: the quantizer's latents are NaN or infinite, so there are no "
            "codes; its weights are damaged, or the precision overflows (float32 is safe)"
        )


def require_pixels(pixel_values: torch.Tensor, channels: int, cell: int) -> None:
    """Raises ValueError for what is not pixels (B, channels, H, W) with sides that cells of `cell` pixels divide.

    Bytes of an image are no pixel values: an image processor makes them.
    """
    shape = tuple(pixel_values.shape)
    if len(shape) != 4 or shape[1] != channels:
        raise ValueError(f"pixel_values must be (batch, {channels}, height, width), got {shape}")
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}")
    if min(shape[2:]) < cell or shape[2] % cell or shape[3] % cell:
        raise ValueError(
            f"height and width of pixel_values must be multiples of {cell} (config.downsampling), "
            f"got {shape[2]}×{shape[3]}"
        )


def require_codes(codes: torch.Tensor, num_embeddings: int) -> None:
    """Raises ValueError for what is not codes (batch, h, w) in [0, K)."""
    if codes.ndim != 3 or codes.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"codes must be (batch, h, w) of int64 or int32, got {tuple(codes.shape)} of {codes.dtype}"
        )
    if torch.compiler.is_compiling() or codes.numel() == 0:
        return  # reading values would break the graph
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= num_embeddings:
        raise ValueError(f"codes must be in [0, {num_embeddings}), got {low} to {high}")


def require_finite(latents: torch.Tensor, *, first: int = 0) -> torch.Tensor:
    """Return the latents (batch, …) unchanged if all are finite.

    Args:
        first: place in the batch of the first of them.

    Raises:
        NotFiniteError: some are NaN or infinite.
    """
    if torch.compiler.is_compiling():
        return latents  # reading values would break the graph
    finite = latents.isfinite().flatten(1).all(1)
    if not finite.all():
        raise NotFiniteError([first + int(index) for index in (~finite).nonzero()[:, 0]])
    return latents
