"""diffusers' `VQModel`."""

from typing import Any

import torch

from .adapter import CENTRED, UNIT, Adapter


class DiffusersAdapter(Adapter):
    name = "diffusers"
    model_types = ("VQModel",)

    def __init__(self, model: Any):
        super().__init__(model)
        # aMUSEd's, whose pipelines look codes up themselves, has pixels of 0 … 1.
        self.preprocessing = UNIT if model.config.lookup_from_codebook else CENTRED

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
        vectors = self.vectors(codes).contiguous()
        spatial = self.model.config.norm_type == "spatial"
        return self.model.decoder(self.model.post_quant_conv(vectors), vectors if spatial else None)
