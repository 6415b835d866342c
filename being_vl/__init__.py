"""being_vl: pixels → codes → merges → ids → embeddings → answer.

An image becomes a grid of VQ-GAN codes, a 2D byte-pair encoding merges the codes into larger tokens,
and the tokens join a language model's vocabulary. Importing this package makes the Auto classes of transformers
know it; nothing heavy is loaded until it is used.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .hub import auto_classes, classes

__version__ = "0.1.0"

# Name → module below the package: what the Auto classes know, and two more.
_MODULE_OF = {
    name.rpartition(".")[2]: name.rpartition(".")[0]
    for of_type in classes.CLASSES.values()
    for name in of_type.values()
} | {
    "ImageBPE": "bpe.image_bpe",
    "VocabularyLayout": "vocabulary",
    "mark_repeats": "bpe.repeats",
    "restore_repeats": "bpe.repeats",
}

__all__ = ["example_checkpoint", *sorted(_MODULE_OF)]

if TYPE_CHECKING:
    from .bpe.image_bpe import ImageBPE
    from .bpe.repeats import mark_repeats, restore_repeats
    from .models.configuration_being_vl import (
        BeingVLConfig,
        BeingVLGemma3Config,
        BeingVLMistralConfig,
        BeingVLOlmo2Config,
        BeingVLPhi3Config,
        BeingVLQwen2Config,
        BeingVLQwen3Config,
        BeingVLSmolLM3Config,
    )
    from .models.modeling_being_vl import (
        BeingVLForCausalLM,
        BeingVLGemma3ForCausalLM,
        BeingVLGemma3Model,
        BeingVLMistralForCausalLM,
        BeingVLMistralModel,
        BeingVLModel,
        BeingVLOlmo2ForCausalLM,
        BeingVLOlmo2Model,
        BeingVLPhi3ForCausalLM,
        BeingVLPhi3Model,
        BeingVLQwen2ForCausalLM,
        BeingVLQwen2Model,
        BeingVLQwen3ForCausalLM,
        BeingVLQwen3Model,
        BeingVLSmolLM3ForCausalLM,
        BeingVLSmolLM3Model,
    )
    from .processing.processing_being_vl import BeingVLProcessor
    from .processing.tokenization_being_vl import BeingVLTokenizer
    from .quantizers.configuration_being_vl_vq import BeingVLVQConfig
    from .quantizers.image_processing_being_vl import BeingVLImageProcessor
    from .quantizers.modeling_being_vl_adapted_vq import (
        BeingVLAdaptedVQConfig,
        BeingVLAdaptedVQModel,
    )
    from .quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
    from .quantizers.modeling_being_vl_vq import BeingVLVQModel
    from .quantizers.video_processing_being_vl import BeingVLVideoProcessor
    from .vocabulary import VocabularyLayout


def example_checkpoint() -> Path:
    """Folder of a small trained checkpoint that is part of the package.

    It answers questions about 64×64 drawings of one coloured shape. It was made from easy-VQA by
    `experiments/example_checkpoint.py`; its card is in the same folder.
    """
    return Path(__file__).parent / "demo" / "example"


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


auto_classes.register(sys.modules[__name__])
