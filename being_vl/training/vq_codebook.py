"""latents → codebook: k-means start, moving averages, revival of dead codes.

Source: exponential moving averages of van den Oord et al. 2017 (appendix A.1) with the Laplace smoothing
of Razavi et al. 2019; k-means initialisation and revival as in Lancucki et al. 2020. The state lives in
buffers, so that a checkpoint of the module holds it.
"""

from __future__ import annotations

import torch
from torch import nn

from ..modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel

_EPS = 1e-5
_KMEANS_ROWS_PER_CODE = 32


def fit_codebook(latents: torch.Tensor, num_embeddings: int, *, seed: int) -> torch.Tensor:
    """k-means of latents (n, D) → (num_embeddings, D) float32.

    Raises:
        ValueError: there are fewer latents than codes.
    """
    dim = latents.shape[1]
    kmeans = BeingVLPatchVQModel(  # a latent is a "patch" of one pixel with D channels
        BeingVLPatchVQConfig(num_embeddings=num_embeddings, patch_size=1, in_channels=dim)
    )
    rows = latents.float().cpu().t().reshape(1, dim, 1, -1)
    kmeans.fit(rows, seed=seed, iterations=10, max_patches=_KMEANS_ROWS_PER_CODE * num_embeddings)
    return kmeans.get_codebook().detach()


class CodebookTracker(nn.Module):
    """Follows how codes are used, and moves the codebook by it.

    Args:
        num_embeddings: K.
        embed_dim: D.
        decay: of the moving averages, per step.
        moves_codebook: whether the codebook is the moving average of its latents (EMA); else gradients
            train it, and only dead codes are touched.
        dead_share: a code is dead when its moving count is below this share of the mean count.
    """

    def __init__(
        self,
        num_embeddings: int,
        embed_dim: int,
        *,
        decay: float,
        moves_codebook: bool,
        dead_share: float,
    ) -> None:
        super().__init__()
        self.decay = decay
        self.moves_codebook = moves_codebook
        self.dead_share = dead_share
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(num_embeddings))
        self.register_buffer("sums", torch.zeros(num_embeddings, embed_dim))

    @torch.no_grad()
    def start(self, codebook: torch.Tensor, rows_per_step: int) -> None:
        """Begin from a codebook whose codes are used alike.

        Args:
            codebook: (K, D).
            rows_per_step: latents that one step will see.
        """
        self.counts.fill_(rows_per_step / len(self.counts))
        self.sums.copy_(codebook * self.counts[:, None])
        self.ready.fill_(True)

    @torch.no_grad()
    def update(self, codebook: torch.Tensor, latents: torch.Tensor, codes: torch.Tensor) -> int:
        """Take a step's latents and codes into account, on every process alike.

        Args:
            codebook: (K, D) float; overwritten.
            latents: (n, D).
            codes: (n,) long, the nearest code of each.

        Returns:
            How many dead codes were given the place of a latent.
        """
        latents = latents.float()
        counts = torch.bincount(codes, minlength=len(self.counts)).to(self.counts)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, latents)
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            torch.distributed.all_reduce(counts)
            torch.distributed.all_reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        mean_count = self.counts.mean()
        dead = self.counts < self.dead_share * mean_count
        revived = int(dead.sum())
        if revived:
            picks = latents[torch.randint(len(latents), (revived,), device=latents.device)]
            if distributed:
                torch.distributed.broadcast(picks, 0)
            self.counts[dead] = mean_count
            self.sums[dead] = picks * mean_count
            codebook[dead] = picks.to(codebook.dtype)
        if self.moves_codebook:
            total = self.counts.sum()
            smoothed = (self.counts + _EPS) / (total + _EPS * len(self.counts)) * total
            codebook.copy_(self.sums / smoothed[:, None])
        return revived


__all__ = ["CodebookTracker", "fit_codebook"]
