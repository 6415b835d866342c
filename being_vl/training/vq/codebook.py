"""latents → codebook: k-means start, moving averages, revival of dead codes.

Source: exponential moving averages of van den Oord et al. 2017 (appendix A.1) with the Laplace smoothing
of Razavi et al. 2019; k-means initialisation and revival as in Lancucki et al. 2020. The state lives in
buffers, so that a checkpoint of the module holds it.
"""

from __future__ import annotations

import torch
from torch import nn

_EPS = 1e-5
_ROWS_PER_CODE = 32
_ROUNDS = 16
_ITERATIONS = 10
_CHUNK_ROWS = 1 << 13


def fit_codebook(latents: torch.Tensor, num_embeddings: int, *, seed: int) -> torch.Tensor:
    """k-means of latents (n, D) → (num_embeddings, D) float32.

    The start is that of k-means|| (Bahmani et al. 2012): rounds of rows drawn by their squared distance
    to those drawn before. Where there are fewer distinct latents than codes, the rest repeat some.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = latents.detach().float().cpu()
    order = torch.randperm(len(rows), generator=generator)
    rows = rows[order[: _ROWS_PER_CODE * num_embeddings]]
    codebook = _spread_rows(rows, num_embeddings, generator)
    for _ in range(_ITERATIONS):
        codes, errors = _nearest(rows, codebook)
        counts = torch.bincount(codes, minlength=num_embeddings)
        sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
        used = counts > 0
        codebook = torch.where(used[:, None], sums / counts.clamp(min=1)[:, None], codebook)
        unused = (~used).nonzero()[:, 0]
        worst = errors.topk(min(len(unused), len(rows))).indices
        codebook[unused[: len(worst)]] = rows[worst]
    return codebook


def _spread_rows(rows: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    picks = torch.randint(len(rows), (1,), generator=generator)
    distances = (rows - rows[picks]).square().sum(1)
    while len(picks) < count and bool((distances > 0).any()):
        wanted = min(max(1, count // _ROUNDS), count - len(picks), int((distances > 0).sum()))
        new = torch.multinomial(distances, wanted, generator=generator)
        distances = torch.minimum(distances, _nearest(rows, rows[new])[1])
        distances[new] = 0.0
        picks = torch.cat([picks, new])
    again = torch.randint(len(rows), (count - len(picks),), generator=generator)
    return rows[torch.cat([picks, again])].clone()


def _nearest(rows: torch.Tensor, codebook: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest codebook row of each row, (n,) long, and its squared distance, (n,)."""
    parts = [torch.cdist(chunk, codebook).min(1) for chunk in rows.split(_CHUNK_ROWS)]
    return torch.cat([p.indices for p in parts]), torch.cat([p.values for p in parts]).square()


class CodebookTracker(nn.Module):
    """Follows how codes are used, and moves the codebook by it.

    Args:
        num_embeddings, embed_dim: K and D.
        decay: of the moving averages, per step.
        moves_codebook: whether the codebook is the moving average of its latents (EMA); else gradients
            train it, and only dead codes are touched.
        dead_share: a code is dead when its moving count is below this share of the mean count.
    """

    ready: torch.Tensor  # () bool: whether `start` was called
    counts: torch.Tensor  # (K,)
    sums: torch.Tensor  # (K, D)

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
        """Begin from a codebook (K, D) whose codes are used alike, by `rows_per_step` latents a step."""
        self.counts.fill_(rows_per_step / len(self.counts))
        self.sums.copy_(codebook * self.counts[:, None])
        self.ready.fill_(True)

    @torch.no_grad()
    def update(self, codebook: torch.Tensor, latents: torch.Tensor, codes: torch.Tensor) -> int:
        """Take a step's latents (n, D) and their codes (n,) into account, on every process alike.

        The codebook, (K, D) float, is overwritten. Returns how many dead codes were given the place of a latent.
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
