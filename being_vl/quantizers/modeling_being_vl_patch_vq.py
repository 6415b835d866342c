"""pixels → codes, by k-means of patches.

Source: vector quantization of image patches (Gersho and Gray 1992), fitted by Lloyd's algorithm to
the distinct patches. Unlike the VQ-GAN of `modeling_being_vl_vq`, a code depends on its own patch alone, so
equal patches get equal codes wherever they stand, and merges find more to merge. It fits in seconds and
weighs kilobytes; it suits drawings, charts and small experiments rather than photographs.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..hub.part import QuantizerModelPart, QuantizerPart
from .checks import require_codes, require_finite, require_pixels
from .configuration_being_vl_vq import require_sizes

_MAX_PATCHES = 100_000  # that the codebook is fitted to
# Patches whose values agree when rounded to multiples of this are one patch.
_DISTINCT_STEP = 1 / 16
_ITERATIONS = 25


class BeingVLPatchVQConfig(QuantizerPart, PreTrainedConfig):
    """Configuration of [`BeingVLPatchVQModel`].

    Args:
        num_embeddings: size of the codebook, K.
        patch_size: side of a patch in pixels, which is also the downsampling of the grid.
        in_channels: channels of the pixels.
        resolution: side in pixels of the images that it was fitted on; others are accepted.
    """

    model_type = "being_vl_patch_vq"

    num_embeddings: int = 128
    patch_size: int = 4
    in_channels: int = 3
    resolution: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        require_sizes(self, "num_embeddings", "patch_size", "in_channels", "resolution")
        super().__post_init__(**kwargs)

    @property
    def downsampling(self) -> int:
        """Pixels per cell along a side."""
        return self.patch_size


class BeingVLPatchVQModel(QuantizerModelPart, PreTrainedModel):
    """A quantizer whose codebook holds patches of pixels, with the methods of every quantizer of this library."""

    config_class = BeingVLPatchVQConfig
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    _chunk_rows = 1 << 14  # bounds the distance matrix to _chunk_rows × K floats

    def __init__(self, config: BeingVLPatchVQConfig):
        super().__init__(config)
        dim = config.in_channels * config.patch_size**2
        self.codebook = nn.Parameter(torch.zeros(config.num_embeddings, dim), requires_grad=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if module is self:
            nn.init.uniform_(self.codebook, -1.0, 1.0)

    def get_codebook(self) -> torch.Tensor:
        """The codebook, (K, in_channels · patch_size²) float."""
        return self.codebook

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (batch, channels, height, width) float → codes (batch, height / patch_size, width / patch_size) long.

        Distances are computed in fp32 whatever the dtype of the weights; the lowest code wins a tie.

        Raises:
            ValueError: the shape is not (batch, channels, height, width) with sides that the patch divides.
            NotFiniteError: pixels or codebook are NaN or infinite.
        """
        require_finite(pixel_values)
        require_finite(self.codebook[None])
        patches, grid = self._patches(pixel_values)
        codes = _nearest(patches.float(), self.codebook.float(), self._chunk_rows)
        return codes.view(pixel_values.shape[0], *grid)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (batch, h, w) long → pixels (batch, channels, h · patch_size, w · patch_size).

        Raises:
            ValueError: `codes` has not three dimensions, or a code is not in [0, K).
        """
        require_codes(codes, len(self.codebook))
        batch, h, w = codes.shape
        c, p = self.config.in_channels, self.config.patch_size
        patches = self.codebook[codes].view(batch, h, w, c, p, p)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(batch, c, h * p, w * p)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The reconstruction, `decode(encode(pixel_values))`."""
        return self.decode(self.encode(pixel_values))

    def fit(self, pixel_values: torch.Tensor, *, seed: int = 0) -> float:
        """Fit the codebook by k-means over the distinct patches; their mean squared error is returned.

        A patch counts once however often it occurs, so that the codes go to edges and corners instead of
        to the many shades of plain background, and equal areas get equal codes.

        Args:
            pixel_values: (images, channels, height, width) float, in the scale that `encode` will see.
            seed: of the sample of patches, and of the start.

        Raises:
            ValueError: there are fewer distinct patches than codes.
        """
        generator = torch.Generator().manual_seed(seed)
        patches = self._patches(pixel_values)[0].float().cpu()
        if len(patches) > _MAX_PATCHES:
            patches = patches[torch.randperm(len(patches), generator=generator)[:_MAX_PATCHES]]
        rows = torch.unique((patches / _DISTINCT_STEP).round() * _DISTINCT_STEP, dim=0)
        if len(rows) < self.config.num_embeddings:
            raise ValueError(
                f"{len(rows)} distinct patches cannot fill {self.config.num_embeddings} codes"
            )
        start = torch.randperm(len(rows), generator=generator)[: self.config.num_embeddings]
        codebook, error = _kmeans(rows, rows[start], self._chunk_rows)
        self.codebook.data.copy_(codebook)
        return error

    def _patches(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        c, p = self.config.in_channels, self.config.patch_size
        require_pixels(pixel_values, c, p)
        batch, _, height, width = pixel_values.shape
        h, w = height // p, width // p
        patches = pixel_values.reshape(batch, c, h, p, w, p).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(batch * h * w, c * p * p), (h, w)


def _nearest(rows: torch.Tensor, codebook: torch.Tensor, chunk_rows: int) -> torch.Tensor:
    """Index of the nearest codebook row for each row: (n, d), (K, d) → (n,) long."""
    half_norms = codebook.square().sum(1) / 2
    chunks = [
        torch.addmm(half_norms, chunk, codebook.T, alpha=-1).argmin(1)
        for chunk in rows.split(chunk_rows)
    ]
    return torch.cat(chunks) if chunks else rows.new_zeros(0, dtype=torch.long)


def _kmeans(
    rows: torch.Tensor, codebook: torch.Tensor, chunk_rows: int
) -> tuple[torch.Tensor, float]:
    """Lloyd's algorithm from a given start; an emptied cluster takes a worst-fitted row."""
    k = len(codebook)
    for _ in range(_ITERATIONS):
        codes = _nearest(rows, codebook, chunk_rows)
        errors = (rows - codebook[codes]).square().mean(1)
        counts = torch.bincount(codes, minlength=k)[:, None]
        sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
        codebook = torch.where(counts > 0, sums / counts.clamp(min=1), codebook)
        empty = (counts[:, 0] == 0).nonzero()[:, 0]
        codebook[empty] = rows[errors.topk(len(empty)).indices]
    codes = _nearest(rows, codebook, chunk_rows)
    return codebook, float((rows - codebook[codes]).square().mean())
