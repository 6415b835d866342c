"""pixels → latents → codes, and latents → pixels: the layers of the VQ-GAN.

Source: the encoder and decoder of taming-transformers (Esser et al. 2021), whose parameter names
Chameleon and Being-VL keep, so these modules keep them too. They differ in being written for memory and
speed: maps are channels_last but where the codes must equal Chameleon's to the last one, activations are
overwritten once they are no longer needed, and no intermediate map is kept.

Three quantizers with the same four methods, so that the model need not know which it has: the nearest codebook
vector (van den Oord et al. 2017; with unit vectors, Yu et al. 2022, as LlamaGen has it), finite scalar
quantization (Mentzer et al. 2024, whose `levels` and index order it keeps), and lookup-free quantization (Yu et
al. 2024: the sign of each of D channels is a bit of the code).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_NORM_EPS = 1e-6
# Numbers that are normalised at once: on a CPU few enough to be in cache still when they are read
# again but not so few that threads wait for each other, elsewhere enough to keep the device busy.
_CPU_NORM_BLOCK = 2**21
_NORM_BLOCK = 2**24
# More cells than these are attended to by the fused kernel alone, whose memory is linear in them.
_MAX_CELLS_TO_SPELL_OUT = 4096
_DISTANCES_PER_CHUNK = 2**23


def _rounds_as_chameleon(pixels: torch.Tensor) -> bool:
    """Whether to round as transformers' `ChameleonVQVAE` does, operation by operation.

    In float32 on a CPU, encoding does: then no code differs, not even where two are all but equally
    near. That takes plain contiguous maps; everything else is channels_last, which is faster.
    """
    return (
        pixels.device.type == "cpu"
        and pixels.dtype == torch.float32
        and pixels.is_contiguous()
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _group_norm(channels: int, num_groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(num_groups, channels, eps=_NORM_EPS)


def _normalize(
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
        for block in hidden.view(-1).split(_CPU_NORM_BLOCK) if silu else ():
            block.mul_(torch.sigmoid(block))  # rounds as Chameleon does, which F.silu does not
        return hidden
    scale, shift = _norm_scale_and_shift(norm, hidden)
    out = hidden if overwrite else torch.empty_like(hidden)
    rows = _rows_per_block(hidden)
    for source, target in zip(hidden.split(rows, 2), out.split(rows, 2), strict=True):
        torch.addcmul(shift, source, scale, out=target)
        if silu:
            F.silu(target, inplace=True)
    return out


def _norm_scale_and_shift(
    norm: nn.GroupNorm, hidden: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """GroupNorm of this input as an affine map a channel: two (B, C, 1, 1) float32."""
    batch, channels, height, width = hidden.shape
    blocks = hidden.split(_rows_per_block(hidden), 2)
    # A first guess of the mean keeps the squares small, so that little cancels between them.
    guess = blocks[0].float().mean((2, 3), keepdim=True)
    sums, squares = [], []
    for block in blocks:
        centred = block.float() - guess
        sums.append(centred.sum((2, 3)))
        squares.append(centred.square_().sum((2, 3)))
    offset = torch.stack(sums).sum(0) / (height * width)
    variance = torch.stack(squares).sum(0) / (height * width) - offset.square()
    grouped = (batch, norm.num_groups, channels // norm.num_groups)
    means = (guess.flatten(1) + offset).view(grouped)
    mean = means.mean(2, keepdim=True)
    variance = variance.view(grouped).mean(2, keepdim=True) + means.var(2, False, keepdim=True)
    scale = norm.weight.float().view(1, *grouped[1:]) / (variance.clamp_min(0) + norm.eps).sqrt()
    shift = norm.bias.float().view(1, *grouped[1:]) - mean * scale
    return scale.view(batch, channels, 1, 1), shift.view(batch, channels, 1, 1)


def _rows_per_block(hidden: torch.Tensor) -> int:
    block = _CPU_NORM_BLOCK if hidden.device.type == "cpu" else _NORM_BLOCK
    return max(1, block * hidden.shape[2] // max(1, hidden.numel()))


class ResnetBlock(nn.Module):
    """Two normalised 3×3 convolutions and a skip: (B, in, H, W) → (B, out, H, W)."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_groups: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm1 = _group_norm(in_channels, num_groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = _group_norm(out_channels, num_groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.changes_channels = in_channels != out_channels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.conv1(_normalize(self.norm1, hidden))
        update = _normalize(self.norm2, update, overwrite=True)  # frees what it normalises
        update = self.conv2(self.dropout(update))
        # A convolution's backward does not read its own output, so adding in place is safe there too.
        return update.add_(self.nin_shortcut(hidden) if self.changes_channels else hidden)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, with a skip: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, *, num_groups: int) -> None:
        super().__init__()
        self.norm = _group_norm(channels, num_groups)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = _normalize(self.norm, hidden, silu=False)
        if _rounds_as_chameleon(hidden) and hidden[0, 0].numel() <= _MAX_CELLS_TO_SPELL_OUT:
            return self.proj_out(self._spelled_out(normed)).add_(hidden)
        # (B, C, H, W) → (B, 1 head, H·W, C): a view, because the maps are channels_last
        query, key, value = (
            project(normed).flatten(2).transpose(1, 2).unsqueeze(1)
            for project in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(query, key, value)
        # by way of one flat axis, or a batch of one keeps strides that no longer count as channels_last
        batch, channels, height, width = hidden.shape
        mixed = mixed.reshape(-1, channels).view(batch, height, width, channels).permute(0, 3, 1, 2)
        return self.proj_out(mixed).add_(hidden)

    def _spelled_out(self, normed: torch.Tensor) -> torch.Tensor:
        """Attention in the products and the order of Chameleon, so that it rounds alike."""
        query, key, value = (project(normed).flatten(2) for project in (self.q, self.k, self.v))
        weights = torch.bmm(query.transpose(1, 2), key).mul_(int(normed.shape[1]) ** -0.5)
        return torch.bmm(value, weights.softmax(2).transpose(1, 2)).view_as(normed)


class Downsample(nn.Module):
    """Halves each side; pads only right and below, which is taming's convention."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles each side: nearest neighbour, then a 3×3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(hidden, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution; ``attn`` is empty or has one entry a block."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_blocks: int,
        *,
        attention: bool,
        num_groups: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(
                out_channels if index else in_channels,
                out_channels,
                num_groups=num_groups,
                dropout=dropout,
            )
            for index in range(num_blocks)
        )
        self.attn = nn.ModuleList(
            AttnBlock(out_channels, num_groups=num_groups)
            for _ in range(num_blocks if attention else 0)
        )

    def steps(self) -> Iterator[nn.Module]:
        """The modules in their order. The caller runs them, so that no frame in between keeps a map alive."""
        for index, block in enumerate(self.block):
            yield block
            if len(self.attn) > 0:
                yield self.attn[index]


class Mid(nn.Module):
    """The blocks at the coarsest resolution, between encoder or decoder and the latents."""

    def __init__(self, channels: int, *, attention: bool, num_groups: int, dropout: float) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, num_groups=num_groups, dropout=dropout)
        self.attn_1 = AttnBlock(channels, num_groups=num_groups) if attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, num_groups=num_groups, dropout=dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden)))


class Encoder(nn.Module):
    """pixels (B, in_channels, H, W) → latents (B, latent_channels, H / f, W / f)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        shared = {"num_groups": config.norm_num_groups, "dropout": config.dropout}
        channels = config.base_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.down: Any = nn.ModuleList()
        last = len(config.channel_multiplier) - 1
        for index, multiplier in enumerate(config.channel_multiplier):
            out_channels = config.base_channels * multiplier
            level = Level(
                channels,
                out_channels,
                config.num_res_blocks,
                attention=config.has_attention(index),
                **shared,
            )
            channels = out_channels
            if index != last:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = Mid(channels, attention=config.attn_type == "vanilla", **shared)
        self.norm_out = _group_norm(channels, config.norm_num_groups)
        self.conv_out = nn.Conv2d(channels, config.latent_channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pixel_values = pixel_values.contiguous()
        if not _rounds_as_chameleon(pixel_values):
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        hidden = self.conv_in(pixel_values)
        last = len(self.down) - 1
        for index, level in enumerate(self.down):
            for step in level.steps():
                hidden = step(hidden)
            if index != last:
                hidden = level.downsample(hidden)
        return self.conv_out(_normalize(self.norm_out, self.mid(hidden), overwrite=True))


class Decoder(nn.Module):
    """latents (B, latent_channels, h, w) → pixels (B, out_channels, h · f, w · f).

    ``up[0]`` is the finest level, as in taming, though the coarsest runs first.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        shared = {"num_groups": config.norm_num_groups, "dropout": config.dropout}
        multipliers = config.channel_multiplier
        channels = config.base_channels * multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Mid(channels, attention=config.attn_type == "vanilla", **shared)
        levels = []
        for index in reversed(range(len(multipliers))):
            out_channels = config.base_channels * multipliers[index]
            level = Level(
                channels,
                out_channels,
                config.num_res_blocks + 1,
                attention=config.has_attention(index),
                **shared,
            )
            channels = out_channels
            if index != 0:
                level.upsample = Upsample(channels)
            levels.append(level)
        self.up: Any = nn.ModuleList(reversed(levels))
        self.norm_out = _group_norm(channels, config.norm_num_groups)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    @property
    def last_layer(self) -> torch.Tensor:
        """The weight that the adaptive weight of an adversarial loss is measured at."""
        return self.conv_out.weight

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden = self.mid(self.conv_in(latents.contiguous(memory_format=torch.channels_last)))
        for index in reversed(range(len(self.up))):
            for step in self.up[index].steps():
                hidden = step(hidden)
            if index != 0:
                hidden = self.up[index].upsample(hidden)
        return self.conv_out(_normalize(self.norm_out, hidden, overwrite=True)).contiguous()


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

    def codebook(self) -> torch.Tensor:
        """The vectors of the codes, (K, D)."""
        codes = torch.arange(math.prod(self.levels))
        return self.look_up(codes[None, None])[0, :, 0].T.contiguous()


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

    def codebook(self) -> torch.Tensor:
        """The vectors of the codes, (K, D)."""
        return self.look_up(torch.arange(2**self.bits)[None, None])[0, :, 0].T.contiguous()


QUANTIZERS = {
    "codebook": VectorQuantizer,
    "fsq": FiniteScalarQuantizer,
    "lfq": LookupFreeQuantizer,
}
