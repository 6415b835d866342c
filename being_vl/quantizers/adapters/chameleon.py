"""transformers' `ChameleonVQVAE`: it encodes, and has no decoder.

`BeingVLVQModel.from_pretrained` reads the same weights; this is the library's own module, unchanged.
"""

from __future__ import annotations

from typing import Any

import torch

from .adapter import Adapter, part_of


class ChameleonAdapter(Adapter):
    name = "chameleon"
    model_types = ("chameleon", "chameleon_vqgan")
    preprocessing = {"rescale_factor": 0.0078, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}  # noqa: RUF012

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

        return ChameleonVQVAE(ChameleonVQVAEConfig(**config))

    @classmethod
    def load(cls, source: str, **options: Any) -> Any:
        from transformers import ChameleonVQVAE, ChameleonVQVAEConfig

        config = ChameleonVQVAEConfig.from_pretrained(source, **options)
        return part_of(ChameleonVQVAE, source, config, options)

    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {
            "num_embeddings": config.num_embeddings,
            "downsampling": 2 ** (len(config.channel_multiplier) - 1),
            "resolution": config.resolution,
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found = self.model.encode(pixel_values)
        return found.image_tokens.view(len(pixel_values), *found.last_hidden_state.shape[2:])
