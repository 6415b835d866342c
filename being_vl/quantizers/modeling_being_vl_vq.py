"""pixels → codes, and codes → pixels: the VQ-GAN.

Source: taming-transformers' VQModel (Esser et al. 2021), whose parameter names Chameleon and Being-VL keep, so
these modules keep them too, with the sizes of Chameleon's image tokenizer. It differs in that it decodes, takes
any size that the downsampling divides, searches the codebook in float32 whatever the precision of the rest, and is
written for memory and speed: maps are channels_last but where the codes must equal Chameleon's to the last one,
activations are overwritten once they are no longer needed, and memory is needed for one pass of images, not for the
batch.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..hub.part import QuantizerModelPart
from .checks import require_codes, require_finite, require_pixels
from .codebooks import QUANTIZERS
from .configuration_being_vl_vq import BeingVLVQConfig
from .group_norm import group_norm, normalize

# Pixels in one pass of encode or decode: one 512×512 image on a CPU, whose caches a bigger batch
# would only spill, 16 of them elsewhere.
_CPU_PIXELS_PER_PASS = 512 * 512
_PIXELS_PER_PASS = 16 * 512 * 512
# More cells than these are attended to by the fused kernel alone, whose memory is linear in them.
_MAX_CELLS_TO_SPELL_OUT = 4096


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


class ResnetBlock(nn.Module):
    """Two normalised 3×3 convolutions and a skip: (B, in, H, W) → (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, config: BeingVLVQConfig) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, config)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, config)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.changes_channels = in_channels != out_channels
        if self.changes_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        update = self.conv1(normalize(self.norm1, hidden))
        update = normalize(self.norm2, update, overwrite=True)  # frees what it normalises
        update = self.conv2(self.dropout(update))
        # A convolution's backward does not read its own output, so adding in place is safe there too.
        return update.add_(self.nin_shortcut(hidden) if self.changes_channels else hidden)


class AttnBlock(nn.Module):
    """Single-head self-attention over all cells, with a skip: (B, C, H, W) → (B, C, H, W)."""

    def __init__(self, channels: int, config: BeingVLVQConfig) -> None:
        super().__init__()
        self.norm = group_norm(channels, config)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        normed = normalize(self.norm, hidden, silu=False)
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
        config: BeingVLVQConfig,
        level: int,
    ) -> None:
        super().__init__()
        inputs = [in_channels, *[out_channels] * (num_blocks - 1)]
        self.block = nn.ModuleList(ResnetBlock(given, out_channels, config) for given in inputs)
        self.attn = nn.ModuleList(
            AttnBlock(out_channels, config) for _ in inputs if config.has_attention(level)
        )

    def steps(self) -> Iterator[nn.Module]:
        """The modules in their order. The caller runs them, so that no frame in between keeps a map alive."""
        for index, block in enumerate(self.block):
            yield block
            if len(self.attn) > 0:
                yield self.attn[index]


class Mid(nn.Module):
    """The blocks at the coarsest resolution, between encoder or decoder and the latents."""

    def __init__(self, channels: int, config: BeingVLVQConfig) -> None:
        super().__init__()
        has_attention = config.attn_type == "vanilla"
        self.block_1 = ResnetBlock(channels, channels, config)
        self.attn_1 = AttnBlock(channels, config) if has_attention else nn.Identity()
        self.block_2 = ResnetBlock(channels, channels, config)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden)))


class Encoder(nn.Module):
    """pixels (B, in_channels, H, W) → latents (B, latent_channels, H / f, W / f)."""

    def __init__(self, config: BeingVLVQConfig) -> None:
        super().__init__()
        channels = config.base_channels
        self.conv_in = nn.Conv2d(config.in_channels, channels, 3, padding=1)
        self.down: Any = nn.ModuleList()
        last = len(config.channel_multiplier) - 1
        for index, multiplier in enumerate(config.channel_multiplier):
            width = config.base_channels * multiplier
            level = Level(channels, width, config.num_res_blocks, config, index)
            channels = width
            if index != last:
                level.downsample = Downsample(channels)
            self.down.append(level)
        self.mid = Mid(channels, config)
        self.norm_out = group_norm(channels, config)
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
        return self.conv_out(normalize(self.norm_out, self.mid(hidden), overwrite=True))


class Decoder(nn.Module):
    """latents (B, latent_channels, h, w) → pixels (B, out_channels, h · f, w · f).

    ``up[0]`` is the finest level, as in taming, though the coarsest runs first.
    """

    def __init__(self, config: BeingVLVQConfig) -> None:
        super().__init__()
        multipliers = config.channel_multiplier
        channels = config.base_channels * multipliers[-1]
        self.conv_in = nn.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = Mid(channels, config)
        levels = []
        for index in reversed(range(len(multipliers))):
            width = config.base_channels * multipliers[index]
            level = Level(channels, width, config.num_res_blocks + 1, config, index)
            channels = width
            if index != 0:
                level.upsample = Upsample(channels)
            levels.append(level)
        self.up: Any = nn.ModuleList(reversed(levels))
        self.norm_out = group_norm(channels, config)
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
        return self.conv_out(normalize(self.norm_out, hidden, overwrite=True)).contiguous()


@dataclass
class BeingVLVQOutput(ModelOutput):
    """What a training step needs.

    Args:
        reconstruction: pixels, (B, out_channels, H, W); gradients pass straight through the codes.
        codes: (B, h, w) long.
        z: latents before quantization, as the quantizer bounds them, (B, embed_dim, h, w).
        quantized: vectors of the codes, (B, embed_dim, h, w) float32; their gradient reaches
            a learned codebook, not the encoder.
        codebook_loss, commitment_loss: mean squared error (float32 scalar) that pulls codebook vectors to the
            latents, and the latents to them.
    """

    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    z: torch.Tensor | None = None
    quantized: torch.Tensor | None = None
    codebook_loss: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None


class BeingVLVQModel(QuantizerModelPart, PreTrainedModel):
    """A VQ-GAN: `encode` pixels to codes, `decode` codes to pixels, `forward` for training.

    `from_pretrained` also reads the VQ-GAN out of a Chameleon or Being-VL checkpoint of transformers;
    `being_vl.quantizers.vq_checkpoints.load_vq_checkpoint` reads other layouts.
    """

    config_class = BeingVLVQConfig
    config: BeingVLVQConfig
    base_model_prefix = "vq_model"
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)
    _no_split_modules: Any = ("ResnetBlock", "AttnBlock", "VectorQuantizer")
    # Half-precision codebooks change codes; K × D numbers in float32 cost nothing beside the rest.
    _keep_in_fp32_modules_strict: Any = frozenset({"quantize"})
    # The language model around the VQ-GAN of a Chameleon checkpoint
    _keys_to_ignore_on_load_unexpected: Any = (r"^model\.(?!vqmodel\.)", r"^lm_head\.")

    def __init__(self, config: BeingVLVQConfig) -> None:
        super().__init__(config)
        self.encoder = Encoder(config)
        self.quantize: Any = QUANTIZERS[config.quantizer](config)
        self.quant_conv = nn.Conv2d(config.latent_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.latent_channels, 1)
        self.decoder = Decoder(config) if config.has_decoder else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """torch's own initialisation and taming's codebook, U(−1/K, 1/K)."""
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            bound = 1 / math.sqrt(module.weight[0].numel())
            bias: Any = module.bias
            init.uniform_(bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            bound = 1 / module.num_embeddings
            init.uniform_(module.weight, -bound, bound)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *args: Any,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """As of every model, with three differences.

        Weights are float32 unless `dtype` says otherwise; a checkpoint without `decoder.*` loads for
        encoding only; and a missing or unexpected weight is an error, never a random one.

        Raises:
            ValueError: a weight is missing or unexpected; the message names it.
        """
        if "torch_dtype" not in kwargs:
            kwargs.setdefault("dtype", torch.float32)
        kwargs.setdefault("key_mapping", {r"^model\.vqmodel\.": ""})
        loaded: Any = super().from_pretrained(
            pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs
        )
        model, info = loaded
        missing = set(info["missing_keys"])
        decoder = {key for key in model.state_dict() if key.startswith("decoder.")}
        if decoder and decoder <= missing:
            model.decoder, model.config.has_decoder = None, False
            missing -= decoder
        for what, keys in (("missing", missing), ("unexpected", info["unexpected_keys"])):
            if keys:
                named = ", ".join(sorted(keys)[:8]) + (" …" if len(keys) > 8 else "")
                raise ValueError(
                    f"{pretrained_model_name_or_path}: {len(keys)} weights are {what}: {named}"
                )
        return (model, info) if output_loading_info else model

    def get_codebook(self) -> torch.Tensor:
        """The vectors of the codes, (K, D); the parameter itself where a codebook is learned."""
        if self.config.quantizer == "codebook" and not self.config.l2_norm:
            return self.quantize.embedding.weight
        codes = torch.arange(self.config.num_embeddings, device=self.device)
        return self.quantize.look_up(codes[None, None])[0, :, 0].T.contiguous()

    def _require_decoder(self) -> Decoder:
        if self.decoder is None:
            raise ValueError(
                "this model has no decoder (config.has_decoder is False): its checkpoint holds only what "
                "encoding needs, as Chameleon's transformers checkpoints do; load one with decoder.* weights"
            )
        return self.decoder

    def _passes(self, batch: torch.Tensor, pixels_each: int) -> Iterator[torch.Tensor]:
        """Parts of a batch that are processed at once; a compiled graph and training take it whole."""
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return iter((batch,))
        limit = _CPU_PIXELS_PER_PASS if batch.device.type == "cpu" else _PIXELS_PER_PASS
        return iter(batch.split(max(1, limit // pixels_each)))

    def _latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pixel_values = pixel_values.to(self.encoder.conv_in.weight.dtype)
        return self.quant_conv(self.encoder(pixel_values))

    def _pixels(self, quantized: torch.Tensor, decoder: Decoder) -> torch.Tensor:
        return decoder(self.post_quant_conv(quantized.to(self.post_quant_conv.weight.dtype)))

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pixels → codes (B, H / downsampling, W / downsampling) long, in [0, K).

        Args:
            pixel_values: (B, in_channels, H, W) floating point, as `BeingVLImageProcessor` makes them
                (−1 … 1); H and W multiples of `config.downsampling`.

        Raises:
            ValueError: wrong shape, type or size.
            NotFiniteError: NaN or infinite latents.
        """
        require_pixels(pixel_values, self.config.in_channels, self.config.downsampling)
        height, width = pixel_values.shape[2:]
        codes: list[torch.Tensor] = []
        first = 0
        for part in self._passes(pixel_values, height * width):
            codes.append(self.quantize(require_finite(self._latents(part), first=first)))
            first += len(part)
        return torch.cat(codes)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, h, w), int64 or int32 in [0, K) → pixels (B, out_channels, h · downsampling, w · downsampling).

        Pixels are −1 … 1 with overshoot; where gradients are enabled, they have one to the decoder.

        Raises:
            ValueError: wrong shape or type, a code out of range, or a model without a decoder.
        """
        decoder = self._require_decoder()
        require_codes(codes, self.config.num_embeddings)
        pixels_each = codes.shape[1] * codes.shape[2] * self.config.downsampling**2
        return torch.cat(
            [
                self._pixels(self.quantize.look_up(part), decoder)
                for part in self._passes(codes, pixels_each)
            ]
        )

    def forward(self, pixel_values: torch.Tensor) -> BeingVLVQOutput:
        """Encode and decode `pixel_values`, as for `encode`, with gradients straight through the codes.

        Raises:
            ValueError: as `encode`, or a model without a decoder.
        """
        decoder = self._require_decoder()
        require_pixels(pixel_values, self.config.in_channels, self.config.downsampling)
        z = self._latents(pixel_values)
        codes = self.quantize(z)
        z = self.quantize.bound(z)
        latents, quantized = z.float(), self.quantize.look_up(codes).float()
        straight_through = latents + (quantized - latents).detach()
        return BeingVLVQOutput(
            reconstruction=self._pixels(straight_through, decoder),
            codes=codes,
            z=z,
            quantized=quantized,
            codebook_loss=(quantized - latents.detach()).square().mean(),
            commitment_loss=(latents - quantized.detach()).square().mean(),
        )
