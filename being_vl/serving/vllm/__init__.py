"""checkpoint → vLLM, with images in and images out: a plugin that vLLM finds by its entry point.

`pip install "being-vl[vllm]"`, and `vllm serve CHECKPOINT` takes chats with images. What is registered here is
asked for only by the architectures of Being-VL checkpoints; other models of the same installation see none of
it. That is why the logits processor has no entry point of its own: vLLM would load it for every model, its
second model runner would refuse to start any of them, and with asynchronous scheduling it would not be given
the ids that were sampled last.
"""

from __future__ import annotations

import os
from typing import Any

from ...models.families import FAMILIES

TOKENIZER_MODE = "being_vl"
_PLACE = "being_vl.serving.vllm"


def register() -> None:
    """Make vLLM know the checkpoints of all families; vLLM calls it in each of its processes."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.renderers.registry import RENDERER_REGISTRY
    from vllm.tokenizers.registry import TokenizerRegistry

    import being_vl  # noqa: F401  (the Auto classes)

    if TOKENIZER_MODE in TokenizerRegistry.tokenizers:
        return
    TokenizerRegistry.register(TOKENIZER_MODE, f"{_PLACE}.chats", "ServedTokenizer")
    RENDERER_REGISTRY.register(TOKENIZER_MODE, f"{_PLACE}.chats", "Renderer")
    for family in FAMILIES:
        name = family.language_model_class
        ModelRegistry.register_model(name, f"{_PLACE}.models:{name}")
        MODELS_CONFIG_MAP[name] = _Settings  # type: ignore[assignment]


def served_grid_size() -> tuple[int, int] | None:
    """The default size of images of the checkpoint that this process serves."""
    return _Settings.image_grid_size


class _Settings:
    """What vLLM asks an architecture's entry of `MODELS_CONFIG_MAP` to set before anything is loaded."""

    image_grid_size: tuple[int, int] | None = None

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        if model_config.hf_config.image_positions is not None:
            raise ValueError("vLLM has no place for the image_positions of this checkpoint")
        if model_config.tokenizer_mode == "auto":
            model_config.tokenizer_mode = TOKENIZER_MODE
        _Settings.image_grid_size = model_config.hf_config.image_grid_size
        mask = f"{_PLACE}.sampling:ImageGridLogitsProcessor"
        model_config.logits_processors = [*(model_config.logits_processors or []), mask]
        # The mask is written for vLLM's first model runner, which it still has on every device.
        os.environ.setdefault("VLLM_USE_V2_MODEL_RUNNER", "0")

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        if vllm_config.speculative_config is not None:
            raise ValueError("speculative decoding would generate without the mask of image tokens")
