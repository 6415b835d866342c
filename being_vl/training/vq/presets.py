"""kind and resolution → sizes and settings of a quantizer, for the user's images.

A starting point for `train-vq` where no recipe of hub_configs/vq/ is named. Levels of finite scalars are those
of Mentzer et al. 2024 (table 1 and section 4), bits and losses of lookup-free codes those of Yu et al. 2024;
sizes and steps are not from the papers; they were chosen for a CPU up to 128 pixels and for a GPU above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from ...quantizers.configuration_being_vl_vq import BeingVLVQConfig
from ...quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel

Kind = Literal["patch", "vqgan", "fsq", "lfq"]
RESOLUTION = 256
_FIT_IMAGES = 512  # for k-means of patches, which takes 100,000 patches at most


@dataclass(frozen=True)
class Preset:
    """A configuration and how it is trained."""

    config: BeingVLVQConfig | BeingVLPatchVQConfig
    steps: int
    batch_size: int
    learning_rate: float


def preset(kind: Kind, resolution: int = RESOLUTION) -> Preset:
    """Defaults of a kind of quantizer for images of `resolution` pixels a side."""
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be one of {get_args(Kind)}, got {kind!r}")
    if kind == "patch":
        side = 4 if resolution <= 64 else 8 if resolution <= 256 else 16
        _check(resolution, side)
        config = BeingVLPatchVQConfig(
            num_embeddings=256 if resolution <= 64 else 512, patch_size=side, resolution=resolution
        )
        return Preset(config, steps=0, batch_size=0, learning_rate=0.0)
    sizes: dict[str, Any]
    if resolution <= 64:
        sizes = dict(channel_multiplier=[1, 1, 2], base_channels=16, num_res_blocks=1,
                     latent_channels=32, embed_dim=8, num_embeddings=1024, attn_type=None,
                     norm_num_groups=4)  # fmt: skip
        training = (3400, 4, 4e-3)
    elif resolution <= 128:
        sizes = dict(channel_multiplier=[1, 1, 2, 2], base_channels=32, num_res_blocks=1,
                     latent_channels=64, embed_dim=8, num_embeddings=1024, attn_type=None,
                     norm_num_groups=8)  # fmt: skip
        training = (20_000, 8, 1e-3)
    else:
        sizes = dict(
            channel_multiplier=[1, 1, 2, 2, 4], base_channels=64 if resolution <= 256 else 128
        )
        training = (100_000, 8, 1e-4)
    small = resolution <= 128
    if kind == "fsq":
        sizes |= {"quantizer": "fsq", "levels": [8, 5, 5, 5] if small else [8, 8, 8, 5, 5, 5]}
    elif kind == "lfq":
        sizes |= {"quantizer": "lfq", "embed_dim": 10 if small else 13}
    _check(resolution, 2 ** (len(sizes["channel_multiplier"]) - 1))
    return Preset(BeingVLVQConfig(resolution=resolution, **sizes), *training)


def fit_patch_vq(config: BeingVLPatchVQConfig, images: Any, *, seed: int) -> BeingVLPatchVQModel:
    """The patch quantizer of some images, `{"pixel_values": (3, H, W)}` of one size each, taken evenly."""
    count = min(len(images), _FIT_IMAGES)
    chosen = [index * len(images) // count for index in range(count)]
    model = BeingVLPatchVQModel(config)
    model.fit(torch.stack([images[index]["pixel_values"] for index in chosen]), seed=seed)
    return model.eval()


def _check(resolution: int, side: int) -> None:
    if resolution % side:
        raise ValueError(
            f"resolution must be a multiple of {side}, the side of a cell, got {resolution}"
        )
