"""The sizes of the VQ-GAN of `modeling_being_vl_vq.py`.

Source: transformers' `ChameleonVQVAEConfig`, whose names the fields have.
"""

import math
from typing import Any

from transformers import PreTrainedConfig

from ..hub.part import QuantizerPart

_QUANTIZERS = ("codebook", "fsq", "lfq")
_MOST_BITS = 24  # each code becomes a row of the language model's embeddings


def require_sizes(config: PreTrainedConfig, *names: str) -> None:
    """Raises ValueError for a field that is no positive integer."""
    for name in names:
        value = getattr(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")


class BeingVLVQConfig(QuantizerPart, PreTrainedConfig):
    """Sizes of a VQ-GAN; the defaults are Chameleon's (512 px → 32×32 of 8,192 codes).

    Args:
        embed_dim: length of a codebook vector.
        num_embeddings: number of codes, K.
        double_latent: kept because published configurations have it; only False makes a VQ-GAN.
        latent_channels: channels between the convolutions and the codebook's projection.
        resolution: side in pixels of the images that it was trained on. Other sizes encode too; this
            one only decides which levels `attn_resolutions` names.
        in_channels: channels of the pixels.
        out_channels: channels of what the decoder gives.
        base_channels: channels at full resolution.
        channel_multiplier: channels of each level, in units of `base_channels`; each level but the
            last halves the sides.
        num_res_blocks: residual blocks in a level of the encoder (the decoder has one more).
        attn_resolutions: sides in pixels of the levels that have attention, or None.
        dropout: of activations within the residual blocks.
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
        require_sizes(
            self,
            "embed_dim",
            "num_embeddings",
            "latent_channels",
            "resolution",
            "in_channels",
            "out_channels",
            "base_channels",
            "num_res_blocks",
            "norm_num_groups",
        )
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
            raise ValueError("double_latent must be False: a VQ-GAN has no mean and variance")
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
        if self.quantizer not in _QUANTIZERS:
            raise ValueError(f"quantizer must be one of {_QUANTIZERS}, got {self.quantizer!r}")
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
