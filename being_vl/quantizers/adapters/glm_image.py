"""transformers' GLM-Image tokenizer: a vision transformer and its `GlmImageVQVAE`; it has no decoder."""

from typing import Any

import torch
from torch import nn

from .adapter import CLIP, Adapter


class GlmImageTokenizer(nn.Module):
    """The two parts of a GLM-Image model that make codes of pixels, under the names that they have there."""

    def __init__(self, vision_config: Any, vq_config: Any):
        from transformers.models.glm_image.modeling_glm_image import (
            GlmImageVisionModel,
            GlmImageVQVAE,
        )

        super().__init__()
        self.visual = GlmImageVisionModel(vision_config)
        self.vqmodel = GlmImageVQVAE(vq_config)
        self.config = vq_config

    @property
    def quantize(self) -> nn.Module:
        return self.vqmodel.quantize


class GlmImageAdapter(Adapter):
    name = "glm_image"
    model_types = ("glm_image", "GlmImageTokenizer")
    preprocessing = CLIP

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        from transformers import GlmImageVisionConfig, GlmImageVQVAEConfig

        return GlmImageTokenizer(
            GlmImageVisionConfig(**config["vision_config"]),
            GlmImageVQVAEConfig(**config["vq_config"]),
        )

    @classmethod
    def load(cls, source: str, **options: Any) -> Any:
        from transformers import GlmImageForConditionalGeneration

        # The parts cannot be read out of the whole's files by one class; the whole is let go again.
        whole = GlmImageForConditionalGeneration.from_pretrained(source, **options).model
        model = GlmImageTokenizer(whole.config.vision_config, whole.config.vq_config)
        model.visual, model.vqmodel = whole.visual, whole.vqmodel
        return model

    def sizes(self) -> dict[str, int]:
        return {
            "num_embeddings": self.model.vqmodel.config.num_embeddings,
            "downsampling": self.model.visual.patch_size,
            "resolution": 512,
        }

    def model_config(self) -> dict[str, Any]:
        return {
            "vision_config": self.model.visual.config.to_dict(),
            "vq_config": self.model.vqmodel.config.to_dict(),
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        side = self.sizes()["downsampling"]
        batch, channels, height, width = pixel_values.shape
        h, w = height // side, width // side
        patches = pixel_values.view(batch, channels, h, side, w, side).permute(0, 2, 4, 1, 3, 5)
        grid = torch.tensor([[1, h, w]] * batch, device=pixel_values.device)
        states = self.model.visual(
            patches.reshape(batch * h * w, -1), grid_thw=grid
        ).last_hidden_state
        states = states.view(batch, h, w, -1).permute(0, 3, 1, 2).contiguous()
        return self.model.vqmodel.encode(states).image_tokens.view(batch, h, w)
