"""What an adapter says of another library's VQ model: how to build it, what its sizes are, how it is called."""

from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from torch.nn import functional as F

CLIP = {
    "rescale_factor": 1 / 255,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
CENTRED = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}
UNIT = {"rescale_factor": 1 / 255, "do_normalize": False}


class Adapter:
    """The base of the adapters, one for each library's class; `model` is the adapted model.

    Attributes:
        name: what a configuration calls the adapter.
        model_types: `model_type` (or diffusers' `_class_name`) of the configurations that it loads.
        preprocessing: options of the image processor, as the library's own has them.
        stock_class: transformers' VQ model, if `build` and `load` are to make that.
    """

    name: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]
    preprocessing: dict[str, Any] = CENTRED
    stock_class: ClassVar[str]

    def __init__(self, model: nn.Module):
        self.model: Any = model  # of a class whose attributes type checkers do not know

    @classmethod
    def build(cls, config: dict[str, Any]) -> nn.Module:
        """The model of a configuration, its weights not loaded yet."""
        stock = getattr(transformers, cls.stock_class)
        return stock(stock.config_class(**config))

    @classmethod
    def load(cls, source: str, **options: Any) -> nn.Module:
        """The model from a folder or a repository, its own or the whole that it is a part of."""
        stock = getattr(transformers, cls.stock_class)
        # Of a whole model, the weights of its other parts are no news; the missing ones below are.
        part = type(cls.stock_class, (stock,), {"_keys_to_ignore_on_load_unexpected": [""]})
        model, info = part.from_pretrained(
            source,
            config=stock.config_class.from_pretrained(source, **options),
            key_mapping={r"^(model\.)?vqmodel\.": ""},
            output_loading_info=True,
            **options,
        )
        if missing := sorted(info["missing_keys"]):
            raise ValueError(f"{source}: {missing[0]} is missing for {cls.stock_class}")
        return model

    def sizes(self) -> dict[str, int]:
        """`num_embeddings`, `downsampling`, `resolution`, and `temporal_downsampling` of a video model."""
        config = self.model.config
        return {
            "num_embeddings": config.num_embeddings,
            "downsampling": 2 ** (len(config.channel_multiplier) - 1),
            "resolution": getattr(config, "resolution", 512),
        }

    def model_config(self) -> dict[str, Any]:
        """What `build` takes."""
        return self.model.config.to_dict()

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, H, W) → codes (B, h, w) long."""
        found = self.model.encode(pixel_values)
        return found.image_tokens.view(len(pixel_values), *found.last_hidden_state.shape[2:])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, h, w) → pixels (B, 3, H, W)."""
        raise ValueError(
            f"{type(self.model).__name__} has no decoder: it turns pixels into codes only"
        )

    def encode_video(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (T, 3, H, W) → codes (t, h, w) long, of a model that takes several frames to a grid."""
        raise ValueError(f"{type(self.model).__name__} takes single images")

    def decode_video(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (t, h, w) → pixels (T, 3, H, W)."""
        raise ValueError(f"{type(self.model).__name__} takes single images")

    def vectors(self, codes: torch.Tensor, *, unit: bool = False) -> torch.Tensor:
        """Codes (B, h, w) → codebook vectors, (B, D, h, w)."""
        vectors = self.model.quantize.embedding(codes)
        return (F.normalize(vectors, dim=-1) if unit else vectors).permute(0, 3, 1, 2)
