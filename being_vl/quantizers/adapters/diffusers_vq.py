"""diffusers' `VQModel`."""

from typing import Any

import torch

from .adapter import Adapter


class DiffusersAdapter(Adapter):
    name = "diffusers"
    model_types = ("VQModel",)

    @classmethod
    def _class(cls) -> Any:
        try:
            from diffusers import VQModel
        except ImportError as error:
            raise ImportError(
                "a VQModel of diffusers needs diffusers: pip install diffusers"
            ) from error
        return VQModel

    @classmethod
    def build(cls, config: dict[str, Any]) -> Any:
        return cls._class().from_config(config)

    @classmethod
    def load(cls, source: str, **options: Any) -> Any:
        return cls._class().from_pretrained(source, **options)

    def sizes(self) -> dict[str, int]:
        config = self.model.config
        return {
            "num_embeddings": config.num_vq_embeddings,
            "downsampling": 2 ** (len(config.block_out_channels) - 1),
            "resolution": config.sample_size,
        }

    def model_config(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.model.config.items()
            if not name.startswith("_") or name == "_class_name"
        }

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        latents = self.model.encode(pixel_values).latents
        _, _, (_, _, codes) = self.model.quantize(latents)
        return codes.view(len(latents), *latents.shape[2:])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return self.model.decode(self.vectors(codes).contiguous(), force_not_quantize=True).sample
