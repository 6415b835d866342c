"""GroupNorm and SiLU of the VQ-GAN's maps, in blocks that fit in cache, without losing digits on large maps.

torch's own kernel serves training and the maps whose codes must equal Chameleon's; see `normalize` for the rest.
"""

import torch
from torch import nn
from torch.nn import functional as F

from .configuration_being_vl_vq import BeingVLVQConfig

_NORM_EPS = 1e-6
# Numbers that a CPU normalises at once: few enough to be in cache still when they are read again,
# but not so few that threads wait for each other.
_NORM_BLOCK = 2**21


def group_norm(channels: int, config: BeingVLVQConfig) -> nn.GroupNorm:
    return nn.GroupNorm(config.norm_num_groups, channels, eps=_NORM_EPS)


def normalize(
    norm: nn.GroupNorm, hidden: torch.Tensor, *, silu: bool = True, overwrite: bool = False
) -> torch.Tensor:
    """GroupNorm, then SiLU unless told otherwise; may overwrite its input where no gradient is kept.

    torch's kernel adds up channels_last squares in one float32 number, which loses up to three digits
    on large maps, and takes two more passes over memory; so without gradients those have their own way.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.silu(norm(hidden), inplace=True) if silu else norm(hidden)
    if hidden.is_contiguous():
        hidden = norm(hidden)
        for block in hidden.view(-1).split(_NORM_BLOCK) if silu else ():
            block.mul_(torch.sigmoid(block))  # rounds as Chameleon does, which F.silu does not
        return hidden
    scale, shift = _scale_and_shift(norm, hidden)
    out = hidden if overwrite else torch.empty_like(hidden)
    rows = _rows_per_block(hidden)
    for source, target in zip(hidden.split(rows, 2), out.split(rows, 2), strict=True):
        torch.addcmul(shift, source, scale, out=target)
        if silu:
            F.silu(target, inplace=True)
    return out


def _scale_and_shift(norm: nn.GroupNorm, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GroupNorm of this input as an affine map a channel: two (B, C, 1, 1) float32."""
    batch, channels = hidden.shape[:2]
    grouped = (batch, norm.num_groups, channels // norm.num_groups)
    moments = _moments_in_blocks if hidden.device.type == "cpu" else _moments
    variance, means = (moment.view(grouped) for moment in moments(hidden))
    between, mean = torch.var_mean(means, 2, correction=0, keepdim=True)
    variance = variance.mean(2, keepdim=True).add_(between)
    scale = norm.weight.float().view(1, *grouped[1:]) * variance.add_(norm.eps).rsqrt_()
    shift = torch.addcmul(norm.bias.float().view(1, *grouped[1:]), mean, scale, value=-1)
    return scale.view(batch, channels, 1, 1), shift.view(batch, channels, 1, 1)


def _moments(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Variance and mean of each channel, two (B, C), in one pass over the map; of half precision float32, in two."""
    # Of half precision var_mean gives half precision.
    if hidden.dtype not in (torch.float16, torch.bfloat16):
        return torch.var_mean(hidden, (2, 3), correction=0)
    mean = hidden.mean((2, 3), dtype=torch.float32)
    norm = torch.linalg.vector_norm(hidden, dim=(2, 3), dtype=torch.float32)
    cells = hidden.shape[2] * hidden.shape[3]
    return (norm.square_() / cells - mean.square()).clamp_min_(0), mean


def _moments_in_blocks(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`_moments` on a CPU, where torch adds up long columns in one float32 number."""
    blocks = hidden.split(_rows_per_block(hidden), 2)
    # A first guess of the mean keeps the squares small, so that little cancels between them.
    guess = blocks[0].float().mean((2, 3), keepdim=True)
    sums, squares = [], []
    for block in blocks:
        centred = block.float() - guess
        sums.append(centred.sum((2, 3)))
        squares.append(centred.square_().sum((2, 3)))
    cells = hidden.shape[2] * hidden.shape[3]
    offset = torch.stack(sums).sum(0) / cells
    variance = torch.stack(squares).sum(0) / cells - offset.square()
    return variance.clamp_min_(0), guess.flatten(1) + offset


def _rows_per_block(hidden: torch.Tensor) -> int:
    """All rows but on a CPU, where a block is one that fits in cache."""
    height = hidden.shape[2]
    if hidden.device.type != "cpu":
        return height
    return max(1, _NORM_BLOCK * height // max(1, hidden.numel()))
