"""Other libraries' VQ models, small, with random weights."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from transformers import (
    ChameleonVQVAE,
    ChameleonVQVAEConfig,
    Emu3VQVAE,
    Emu3VQVAEConfig,
    GlmImageVisionConfig,
    GlmImageVQVAEConfig,
    JanusVQVAE,
    JanusVQVAEConfig,
)

from being_vl.quantizers.adapters.glm_image import GlmImageTokenizer

SIZES = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 16,
}


def chameleon():
    return ChameleonVQVAE(
        ChameleonVQVAEConfig(**SIZES, embed_dim=8, num_embeddings=64, resolution=32)
    )


def janus():
    return JanusVQVAE(JanusVQVAEConfig(**SIZES, embed_dim=8, num_embeddings=64, num_patches=8))


def emu3():
    config = {**SIZES, "latent_channels": 4, "attn_resolutions": [1], "hidden_size": 64}
    return Emu3VQVAE(
        Emu3VQVAEConfig(**config, codebook_size=64, embed_dim=4, temporal_downsample_factor=2)
    )


def glm_image():
    vision = GlmImageVisionConfig(
        depth=1, hidden_size=32, num_heads=2, intermediate_size=32, patch_size=4, image_size=32
    )
    vq = GlmImageVQVAEConfig(embed_dim=16, num_embeddings=64, latent_channels=32)
    return GlmImageTokenizer(vision, vq)


def diffusers_vq():
    if importlib.util.find_spec("diffusers") is None:
        pytest.skip("diffusers is not installed")
    from diffusers import VQModel

    return VQModel(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1, latent_channels=4,
        num_vq_embeddings=64, sample_size=32, vq_embed_dim=4,
    )  # fmt: skip


MAKERS = {
    "chameleon": chameleon,
    "diffusers": diffusers_vq,
    "emu3": emu3,
    "glm_image": glm_image,
    "janus": janus,
}


def make(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = MAKERS[name]().eval()
    nn.init.normal_(model.quantize.embedding.weight)
    return model
