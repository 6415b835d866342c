"""pixels → codes, and codes → pixels: the VQ-GAN.

Source: taming-transformers' VQModel (Esser et al. 2021) with the sizes of Chameleon's image tokenizer,
which Being-VL uses; configuration fields are named as in transformers' `ChameleonVQVAEConfig`. It
differs in that it decodes, takes any size that the downsampling divides, searches the codebook in
float32 whatever the precision of the rest, and needs memory for one pass of images, not for the batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from ..hub.part import QuantizerModelPart, QuantizerPart
from .finite import require_finite, require_floats
from .modeling_being_vl_vq_layers import QUANTIZERS, Decoder, Encoder

# Pixels in one pass of encode or decode: one 512×512 image on a CPU, whose caches a bigger batch
# would only spill, 16 of them elsewhere.
_CPU_PIXELS_PER_PASS = 512 * 512
_PIXELS_PER_PASS = 16 * 512 * 512
_MOST_BITS = 24  # each code becomes a row of the language model's embeddings


class BeingVLVQConfig(QuantizerPart, PreTrainedConfig):
    """Sizes of a VQ-GAN; the defaults are Chameleon's (512 px → 32×32 of 8,192 codes).

    Args:
        embed_dim: length of a codebook vector.
        num_embeddings: number of codes, K.
        double_latent: kept because published configurations have it; only False makes a VQ-GAN.
        latent_channels: channels between the convolutions and the codebook's projection.
        resolution: side in pixels of the images that it was trained on. Other sizes encode too; this
            one only decides which levels `attn_resolutions` names.
        in_channels: channels of the input.
        out_channels: channels of the decoder's output.
        base_channels: channels at full resolution.
        channel_multiplier: channels of each level, in units of `base_channels`; each level but the
            last halves the sides.
        num_res_blocks: residual blocks in a level of the encoder (the decoder has one more).
        attn_resolutions: sides in pixels of the levels that have attention, or None.
        dropout: dropout within the residual blocks.
        attn_type: ``"vanilla"``, or None for no attention at all.
        norm_num_groups: groups of every GroupNorm; must divide the channels of every level.
        has_decoder: False for a checkpoint that can only encode.
        quantizer: ``"codebook"`` (learned), ``"fsq"`` (finite scalars, see `levels`) or ``"lfq"``
            (lookup-free: `embed_dim` signs, so K is 2 to that power).
        levels: of finite scalars, one number a channel; they decide `embed_dim` and `num_embeddings`.
        l2_norm: latents and codebook vectors are compared as unit vectors, as in LlamaGen.

    Raises:
        ValueError: a field is out of its range; the message names it.
    """

    model_type = "being_vl_vq"
    base_config_key = "vq_config"  # so that a Chameleon config.json is read where it lies

    embed_dim: int = 256
    num_embeddings: int = 8192
    double_latent: bool = False
    latent_channels: int = 256
    resolution: int = 512
    in_channels: int = 3
    out_channels: int = 3
    base_channels: int = 128
    channel_multiplier: list[int] | tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attn_resolutions: list[int] | tuple[int, ...] | None = None
    dropout: float | int = 0.0
    attn_type: str | None = "vanilla"
    norm_num_groups: int = 32
    has_decoder: bool = True
    quantizer: str = "codebook"
    levels: list[int] | tuple[int, ...] | None = None
    l2_norm: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._complete_quantizer()
        for name in (
            "embed_dim",
            "num_embeddings",
            "latent_channels",
            "resolution",
            "in_channels",
            "out_channels",
            "base_channels",
            "num_res_blocks",
            "norm_num_groups",
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not self.channel_multiplier or min(self.channel_multiplier) < 1:
            raise ValueError(
                f"channel_multiplier must be positive integers, got {self.channel_multiplier!r}"
            )
        for multiplier in self.channel_multiplier:
            if self.base_channels * multiplier % self.norm_num_groups:
                raise ValueError(
                    f"norm_num_groups must divide the channels of every level, got {self.norm_num_groups} "
                    f"and {self.base_channels * multiplier} channels"
                )
        if self.double_latent:
            raise ValueError(
                "double_latent must be False: a VQ-GAN has one latent, not mean and variance"
            )
        if self.attn_type not in ("vanilla", None):
            raise ValueError(f'attn_type must be "vanilla" or None, got {self.attn_type!r}')
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if self.resolution % self.downsampling:
            raise ValueError(
                f"resolution must be a multiple of {self.downsampling}, which "
                f"{len(self.channel_multiplier)} levels downsample by, got {self.resolution}"
            )
        super().__post_init__(**kwargs)

    def _complete_quantizer(self) -> None:
        """Check the fields of the quantizer, and set those that follow from others."""
        if self.quantizer not in QUANTIZERS:
            raise ValueError(
                f"quantizer must be one of {tuple(QUANTIZERS)}, got {self.quantizer!r}"
            )
        if (self.quantizer == "fsq") != (self.levels is not None):
            raise ValueError(
                f'levels belong to quantizer "fsq", got {self.levels!r} with {self.quantizer!r}'
            )
        if self.l2_norm and self.quantizer != "codebook":
            raise ValueError(f'l2_norm belongs to quantizer "codebook", got {self.quantizer!r}')
        if self.quantizer == "codebook":
            return
        if self.levels is not None:
            if not self.levels or min(self.levels) < 2:
                raise ValueError(f"levels must be integers from 2 on, got {self.levels!r}")
            self.embed_dim, self.num_embeddings = len(self.levels), math.prod(self.levels)
        else:
            if not 1 <= self.embed_dim <= _MOST_BITS:
                raise ValueError(
                    f"embed_dim is the number of bits of a lookup-free code, 1 to {_MOST_BITS}, got "
                    f"{self.embed_dim}"
                )
            self.num_embeddings = 2**self.embed_dim

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # transformers' Chameleon has neither a decoder nor this field; Being-VL's has both.
        if config_dict.get("model_type") == "chameleon_vqgan" and "out_channels" not in config_dict:
            config_dict = {**config_dict, "has_decoder": False}
        return super().from_dict(config_dict, **kwargs)

    @property
    def downsampling(self) -> int:
        """Pixels of a cell, along a side."""
        return 2 ** (len(self.channel_multiplier) - 1)

    def has_attention(self, level: int) -> bool:
        """Whether the blocks of a level (0 is the finest) have attention."""
        if self.attn_type is None or self.attn_resolutions is None:
            return False
        return self.resolution // 2**level in self.attn_resolutions


@dataclass
class BeingVLVQOutput(ModelOutput):
    """What a training step needs.

    Args:
        reconstruction: pixels, (B, out_channels, H, W); gradients pass straight through the codes.
        codes: (B, h, w) long.
        z: latents before quantization, as the quantizer bounds them, (B, embed_dim, h, w).
        quantized: vectors of the codes, (B, embed_dim, h, w) float32; their gradient reaches
            a learned codebook, not the encoder.
        codebook_loss: mean squared error that pulls codebook vectors to the latents (float32 scalar).
        commitment_loss: the same that pulls the latents to the codebook vectors (float32 scalar).
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
        return self.quantize.codebook()

    def _check_pixels(self, pixel_values: torch.Tensor) -> None:
        cell = self.config.downsampling
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != self.config.in_channels:
            raise ValueError(
                f"pixel_values must be (batch, {self.config.in_channels}, height, width), got {shape}"
            )
        require_floats(pixel_values)
        if min(shape[2:]) < cell or shape[2] % cell or shape[3] % cell:
            raise ValueError(
                f"height and width of pixel_values must be multiples of {cell} (config.downsampling), "
                f"got {shape[2]}×{shape[3]}"
            )

    def _check_codes(self, codes: torch.Tensor) -> None:
        if codes.ndim != 3 or codes.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"codes must be (batch, height, width) of int64 or int32, got {tuple(codes.shape)} of {codes.dtype}"
            )
        if torch.compiler.is_compiling() or codes.numel() == 0:
            return  # reading values would break the graph
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.config.num_embeddings:
            raise ValueError(
                f"codes must be in [0, {self.config.num_embeddings}), got {low if low < 0 else high}"
            )

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
        """Quantize images.

        Args:
            pixel_values: (B, in_channels, H, W) floating point, as `BeingVLImageProcessor` makes them
                (−1 … 1); H and W multiples of `config.downsampling`.

        Returns:
            Codes, (B, H / downsampling, W / downsampling) long, in [0, K).

        Raises:
            ValueError: wrong shape, type or size.
            NotFiniteError: NaN or infinite latents.
        """
        self._check_pixels(pixel_values)
        height, width = pixel_values.shape[2:]
        codes: list[torch.Tensor] = []
        first = 0
        for part in self._passes(pixel_values, height * width):
            codes.append(self.quantize(require_finite(self._latents(part), first=first)))
            first += len(part)
        return torch.cat(codes)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Reconstruct images.

        Args:
            codes: (B, h, w) int64 or int32, in [0, K).

        Returns:
            Pixels, (B, out_channels, h · downsampling, w · downsampling), −1 … 1 with overshoot; with
            a gradient to the decoder where gradients are enabled.

        Raises:
            ValueError: wrong shape or type, a code out of range, or a model without a decoder.
        """
        decoder = self._require_decoder()
        self._check_codes(codes)
        pixels_each = codes.shape[1] * codes.shape[2] * self.config.downsampling**2
        return torch.cat(
            [
                self._pixels(self.quantize.look_up(part), decoder)
                for part in self._passes(codes, pixels_each)
            ]
        )

    def forward(self, pixel_values: torch.Tensor) -> BeingVLVQOutput:
        """Encode and decode with gradients, straight through the codes.

        Args:
            pixel_values: as for `encode`.

        Raises:
            ValueError: as `encode`, or a model without a decoder.
        """
        decoder = self._require_decoder()
        self._check_pixels(pixel_values)
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


__all__ = ["BeingVLVQConfig", "BeingVLVQModel", "BeingVLVQOutput"]
