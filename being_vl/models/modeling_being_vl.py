"""The classes of each family that people fine-tune: transformers' own, extended by an image vocabulary.

What they add is in `language_model`; a class here says which text model it extends, in a few lines.
"""

from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextModel,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    MistralModel,
    Olmo2ForCausalLM,
    Olmo2Model,
    Phi3ForCausalLM,
    Phi3Model,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3ForCausalLM,
    Qwen3Model,
    SmolLM3ForCausalLM,
    SmolLM3Model,
)

from .configuration_being_vl import (
    BeingVLConfig,
    BeingVLGemma3Config,
    BeingVLMistralConfig,
    BeingVLOlmo2Config,
    BeingVLPhi3Config,
    BeingVLQwen2Config,
    BeingVLQwen3Config,
    BeingVLSmolLM3Config,
)
from .language_model import BeingVLDecoder, BeingVLLanguageModel


class BeingVLModel(BeingVLDecoder, LlamaModel):
    """`LlamaModel` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLConfig


class BeingVLForCausalLM(BeingVLLanguageModel, LlamaForCausalLM):
    """`LlamaForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLConfig
    decoder_class = BeingVLModel


class BeingVLQwen2Model(BeingVLDecoder, Qwen2Model):
    """`Qwen2Model` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLQwen2Config


class BeingVLQwen2ForCausalLM(BeingVLLanguageModel, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLQwen2Config
    decoder_class = BeingVLQwen2Model


class BeingVLQwen3Model(BeingVLDecoder, Qwen3Model):
    """`Qwen3Model` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLQwen3Config


class BeingVLQwen3ForCausalLM(BeingVLLanguageModel, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLQwen3Config
    decoder_class = BeingVLQwen3Model


class BeingVLMistralModel(BeingVLDecoder, MistralModel):
    """`MistralModel` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLMistralConfig


class BeingVLMistralForCausalLM(BeingVLLanguageModel, MistralForCausalLM):
    """`MistralForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLMistralConfig
    decoder_class = BeingVLMistralModel


class BeingVLGemma3Model(BeingVLDecoder, Gemma3TextModel):
    """`Gemma3TextModel` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLGemma3Config


class BeingVLGemma3ForCausalLM(BeingVLLanguageModel, Gemma3ForCausalLM):
    """`Gemma3ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLGemma3Config
    decoder_class = BeingVLGemma3Model


class BeingVLSmolLM3Model(BeingVLDecoder, SmolLM3Model):
    """`SmolLM3Model` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLSmolLM3Config


class BeingVLSmolLM3ForCausalLM(BeingVLLanguageModel, SmolLM3ForCausalLM):
    """`SmolLM3ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLSmolLM3Config
    decoder_class = BeingVLSmolLM3Model


class BeingVLPhi3Model(BeingVLDecoder, Phi3Model):
    """`Phi3Model` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLPhi3Config


class BeingVLPhi3ForCausalLM(BeingVLLanguageModel, Phi3ForCausalLM):
    """`Phi3ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLPhi3Config
    decoder_class = BeingVLPhi3Model


class BeingVLOlmo2Model(BeingVLDecoder, Olmo2Model):
    """`Olmo2Model` with the additions of [`BeingVLDecoder`]."""

    config: BeingVLOlmo2Config


class BeingVLOlmo2ForCausalLM(BeingVLLanguageModel, Olmo2ForCausalLM):
    """`Olmo2ForCausalLM` over text and image tokens; [`BeingVLLanguageModel`] has its methods."""

    config: BeingVLOlmo2Config
    decoder_class = BeingVLOlmo2Model
