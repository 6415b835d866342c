"""pixels → codes by another library's VQ model, behind the interface of this library's.

The model itself is unchanged: an adapter (one short file each in `adapters/`) says how it is built and called.
So it saves, loads, travels with a checkpoint and is pushed as every quantizer of this library.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..hub.part import QuantizerModelPart, QuantizerPart
from .adapters.adapter import Adapter
from .adapters.chameleon import ChameleonAdapter
from .adapters.diffusers_vq import DiffusersAdapter
from .adapters.emu3 import Emu3Adapter
from .adapters.glm_image import GlmImageAdapter
from .adapters.janus import JanusAdapter
from .checks import require_codes, require_finite, require_pixels

ADAPTERS: tuple[type[Adapter], ...] = (
    ChameleonAdapter,
    DiffusersAdapter,
    Emu3Adapter,
    GlmImageAdapter,
    JanusAdapter,
)


class BeingVLAdaptedVQConfig(QuantizerPart, PreTrainedConfig):
    """Which adapter, and what it builds.

    Args:
        model_config: the adapted model's own configuration.
        num_embeddings: number of codes, K.
        downsampling: pixels of a cell, along a side.
        resolution: side in pixels to which images are resized by default.
        preprocessing: options of the image processor that the model was trained with.
        temporal_downsampling: frames of a video that make one grid; 1 for models of single images.
    """

    model_type = "being_vl_adapted_vq"

    adapter: str = "chameleon"
    model_config: dict[str, Any] | None = None
    num_embeddings: int = 8192
    downsampling: int = 16
    resolution: int = 512
    preprocessing: dict[str, Any] | None = None
    temporal_downsampling: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        self.model_config, self.preprocessing = self.model_config or {}, self.preprocessing or {}
        super().__post_init__(**kwargs)


class BeingVLAdaptedVQModel(QuantizerModelPart, PreTrainedModel):
    """A quantizer around another library's VQ model; [`adapt`] makes one."""

    config_class = BeingVLAdaptedVQConfig
    config: BeingVLAdaptedVQConfig
    main_input_name = "pixel_values"
    input_modalities: Any = ("image",)

    def __init__(self, config: BeingVLAdaptedVQConfig, model: nn.Module | None = None) -> None:
        super().__init__(config)
        kind = next((kind for kind in ADAPTERS if kind.name == config.adapter), None)
        if kind is None:
            raise ValueError(
                f"adapter must be one of {[kind.name for kind in ADAPTERS]}, got {config.adapter!r}"
            )
        self.model = kind.build(config.model_config or {}) if model is None else model
        self._adapter = kind(self.model)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: the adapted model has initialised itself."""

    def get_codebook(self) -> torch.Tensor:
        """The codebook, (K, D)."""
        return self.model.quantize.embedding.weight

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (B, 3, H, W), scaled as the model's own image processor does → codes (B, h, w) long.

        Raises:
            ValueError: a side is no multiple of `config.downsampling`.
            NotFiniteError: NaN or infinite latents.
        """
        require_pixels(pixel_values, 3, self.config.downsampling)
        check = self.model.quantize.register_forward_pre_hook(_require_finite)
        try:
            return self._adapter.encode(pixel_values.to(self.dtype))
        finally:
            check.remove()

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (B, h, w) → pixels (B, 3, H, W).

        Raises:
            ValueError: the model has no decoder, or a code is out of range.
        """
        require_codes(codes, self.config.num_embeddings)
        return self._adapter.decode(codes.long())

    @torch.no_grad()
    def encode_video(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (T, 3, H, W) of one video → codes (t, h, w) long, t = ⌈T / temporal_downsampling⌉.

        Frames that are short of a whole grid are made up by the last one.
        """
        return self._adapter.encode_video(pixel_values.to(self.dtype))

    def decode_video(self, codes: torch.Tensor) -> torch.Tensor:
        """codes (t, h, w) → pixels (t · temporal_downsampling, 3, H, W)."""
        return self._adapter.decode_video(codes.long())

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The reconstruction, `decode(encode(pixel_values))`."""
        return self.decode(self.encode(pixel_values))


def _require_finite(module: nn.Module, inputs: tuple[Any, ...]) -> None:
    require_finite(inputs[0])


def adapt(model: nn.Module) -> BeingVLAdaptedVQModel:
    """A quantizer around a model of one of the libraries that there are adapters for; ValueError if there is none."""
    names = {getattr(model.config, "model_type", None), type(model).__name__}
    kind = next((kind for kind in ADAPTERS if names & set(kind.model_types)), None)
    if kind is None:
        raise ValueError(f"no adapter knows {type(model).__name__}; see docs/quantizers.md")
    adapter = kind(model)
    sizes: dict[str, Any] = adapter.sizes()
    config = BeingVLAdaptedVQConfig(
        adapter=kind.name,
        model_config=adapter.model_config(),
        preprocessing=adapter.preprocessing,
        **sizes,
    )
    return BeingVLAdaptedVQModel(config, model).eval()
