"""transformers' `JanusVQVAE` (Janus, Janus-Pro; the VQ-GAN of LlamaGen).

As in transformers, vectors are of unit length in decoding and as they are in encoding. Its decoder takes one
square size; here its parts are called, which take any.
"""

from __future__ import annotations

from typing import Any

import torch

from .adapter import Adapter, part_of


class JanusAdapter(Adapter):
    name = "janus"
    model_types = ("janus", "janus_vqgan")

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        from transformers import JanusVQVAE, JanusVQVAEConfig

        return JanusVQVAE(JanusVQVAEConfig(**config))

    @classmethod
    def load(cls, source: str, **options: Any) -> Any:
        from transformers import JanusVQVAE, JanusVQVAEConfig

        config = JanusVQVAEConfig.from_pretrained(source, **options)
        return part_of(JanusVQVAE, source, config, options)

    def sizes(self) -> dict[str, int]:
        config = self.model.config
        side = 2 ** (len(config.channel_multiplier) - 1)
        return {
            "num_embeddings": config.num_embeddings,
            "downsampling": side,
            "resolution": config.num_patches * side,
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        found = self.model.encode(pixel_values)
        return found.image_tokens.view(len(pixel_values), *found.last_hidden_state.shape[2:])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        vectors = self.vectors(codes, unit=True).contiguous()
        return self.model.decoder(self.model.post_quant_conv(vectors))
