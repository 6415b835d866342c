"""transformers' `Emu3VQVAE`: a video model, given single images."""

from __future__ import annotations

from typing import Any

import torch

from .adapter import CLIP, Adapter, part_of


class Emu3Adapter(Adapter):
    name = "emu3"
    model_types = ("emu3", "emu3_vqgan")
    preprocessing = CLIP

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        return Emu3VQVAE(Emu3VQVAEConfig(**config))

    @classmethod
    def load(cls, source: str, **options: Any) -> Any:
        from transformers import Emu3VQVAE, Emu3VQVAEConfig

        config = Emu3VQVAEConfig.from_pretrained(source, **options)
        return part_of(Emu3VQVAE, source, config, options)

    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {
            "num_embeddings": config.codebook_size,
            "downsampling": 2 ** (len(config.channel_multiplier) - 1),
            "resolution": 512,
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        batch, _, height, width = pixel_values.shape
        sizes = torch.tensor([[height, width]] * batch, device=pixel_values.device)
        return torch.stack(list(self.model.encode(pixel_values, sizes).image_tokens))

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(codes)
