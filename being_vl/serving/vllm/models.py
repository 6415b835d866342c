"""ids → hidden states → logits in vLLM: its own decoder of each family, which also takes images.

The prompt holds the true ids of its images, so there is nothing to merge: the embeddings of an image are those
of its ids.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.gemma3 import Gemma3ForCausalLM
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaForCausalLM
from vllm.model_executor.models.mistral import MistralForCausalLM
from vllm.model_executor.models.phi3 import Phi3ForCausalLM
from vllm.model_executor.models.qwen2 import Qwen2ForCausalLM
from vllm.model_executor.models.qwen3 import Qwen3ForCausalLM
from vllm.model_executor.models.transformers import TransformersForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY

from .images import DummyImages, ImageInfo, ImageProcessor

_takes_images = MULTIMODAL_REGISTRY.register_processor(
    ImageProcessor, info=ImageInfo, dummy_inputs=DummyImages
)


class _WithImages:
    """A mixin before vLLM's decoder of a family."""

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """None: the chat template writes the placeholder of each part that is an image."""
        return None

    def get_language_model(self) -> Any:
        return self

    def embed_multimodal(self, **kwargs: Any) -> list[torch.Tensor]:
        """Ids of images, begin and end included → one tensor (tokens, hidden) for each."""
        images = kwargs.get("image_ids")
        return [] if images is None else [self.embed_input_ids(ids) for ids in images]

    def embed_input_ids(
        self,
        input_ids: torch.Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Ids → embeddings, images included; what `embed_multimodal` said of them is the same."""
        return super().embed_input_ids(input_ids)


@_takes_images
class BeingVLForCausalLM(_WithImages, LlamaForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLQwen2ForCausalLM(_WithImages, Qwen2ForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLQwen3ForCausalLM(_WithImages, Qwen3ForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLMistralForCausalLM(_WithImages, MistralForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLGemma3ForCausalLM(_WithImages, Gemma3ForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLPhi3ForCausalLM(_WithImages, Phi3ForCausalLM, SupportsMultiModal):
    pass


# vLLM has no decoder of its own for these, and runs transformers' for their stock classes too.
@_takes_images
class BeingVLSmolLM3ForCausalLM(_WithImages, TransformersForCausalLM, SupportsMultiModal):
    pass


@_takes_images
class BeingVLOlmo2ForCausalLM(_WithImages, TransformersForCausalLM, SupportsMultiModal):
    pass
