"""A check of latents before they are quantized: `argmin` returns a code even for NaN."""

from __future__ import annotations

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


def require_floats(pixel_values: torch.Tensor) -> None:
    """Raises ValueError for integers: bytes of an image are no pixel values, which an image processor makes."""
    if not pixel_values.is_floating_point():
        raise ValueError(f"pixel_values must be floating point, got {pixel_values.dtype}")


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
