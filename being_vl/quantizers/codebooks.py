"""latents → codes, and codes → latents: the three quantizers of the VQ-GAN, with the same methods.

Each maps latents (B, D, h, w) to codes (B, h, w) when called, and back by `look_up`; `bound` gives the latents in the
scale of `look_up`, for the losses. The nearest codebook vector (van den Oord et al. 2017; with unit vectors, Yu et al.
2022, as LlamaGen has it), finite scalar quantization (Mentzer et al. 2024, whose `levels` and index order it keeps), and
lookup-free quantization (Yu et al. 2024: the sign of each of D channels is a bit of the code).
"""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_DISTANCES_PER_CHUNK = 2**23


class VectorQuantizer(nn.Module):
    """Latents (B, D, h, w) → codes (B, h, w) long: the nearest codebook vector of each cell."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.unit = config.l2_norm
        self.embedding = nn.Embedding(config.num_embeddings, config.embed_dim)

    def codebook(self) -> torch.Tensor:
        """The vectors of the codes, (K, D)."""
        return F.normalize(self.embedding.weight, dim=-1) if self.unit else self.embedding.weight

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """Latents as they are compared with the vectors of the codes, (B, D, h, w)."""
        return F.normalize(z, dim=1) if self.unit else z

    @torch.no_grad()
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        batch, channels, height, width = z.shape
        with torch.autocast(z.device.type, enabled=False):
            codebook = self.codebook().float()
            # Computed at each use: kept, they would outlive changes of the weights that no hook sees.
            norms = codebook.square().sum(1)
            vectors = self.bound(z.float()).permute(0, 2, 3, 1).reshape(-1, channels)
            rows = max(1, _DISTANCES_PER_CHUNK // codebook.shape[0])
            codes = []
            for chunk in vectors.split(rows):
                # ‖z‖² is the same for every code, but with it near-ties round as they do in Chameleon
                distances = chunk.square().sum(1, keepdim=True) + norms
                codes.append(distances.sub_(chunk @ codebook.t(), alpha=2).argmin(1))
        return torch.cat(codes).view(batch, height, width)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) → their vectors, (B, D, h, w)."""
        vectors = self.embedding(codes)
        return (F.normalize(vectors, dim=-1) if self.unit else vectors).permute(0, 3, 1, 2)


class FiniteScalarQuantizer(nn.Module):
    """Latents → codes: each channel is bounded and rounded to one of its levels; nothing is learned."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.levels: list[int] = list(config.levels)

    def _row(self, values: Any, like: torch.Tensor) -> torch.Tensor:  # (1, D, 1, 1)
        return torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        """The latents in the scale of `look_up`, not rounded yet; the paper's appendix A has the same function."""
        z = z.float()
        levels = self._row(self.levels, z)
        half = (levels - 1) * (1 + 1e-3) / 2  # a bit wider, so that tanh can reach the outer levels
        offset = (levels % 2 == 0) * 0.5  # of an even number of levels, one more lies below 0
        return ((z + (offset / half).atanh()).tanh() * half - offset) / (levels // 2)

    @torch.no_grad()
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        with torch.autocast(z.device.type, enabled=False):
            half = self._row([number // 2 for number in self.levels], z.float())
            digits = ((self.bound(z) * half).round() + half).long()
            return (digits * self._basis(digits)).sum(1)

    def _basis(self, like: torch.Tensor) -> torch.Tensor:
        return self._row(
            [math.prod(self.levels[:index]) for index in range(len(self.levels))], like
        )

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) → levels, scaled to −1 … 1, (B, D, h, w)."""
        codes = codes.long()[:, None]
        levels = self._row(self.levels, codes)
        half = levels // 2
        return ((codes // self._basis(codes) % levels) - half) / half


class LookupFreeQuantizer(nn.Module):
    """Latents → codes: bit i of a code says whether channel i is positive; nothing is learned."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.bits: int = config.embed_dim

    def _basis(self, like: torch.Tensor) -> torch.Tensor:
        return (2 ** torch.arange(self.bits, device=like.device)).view(1, -1, 1, 1)

    def bound(self, z: torch.Tensor) -> torch.Tensor:
        return z

    @torch.no_grad()
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return ((z > 0) * self._basis(z)).sum(1)

    def look_up(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w) → −1 or 1, (B, D, h, w) float."""
        codes = codes.long()[:, None]
        return (codes // self._basis(codes) % 2).float() * 2 - 1


QUANTIZERS = {
    "codebook": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
}
