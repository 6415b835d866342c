"""being_vl: pixels → codes → merges → ids → embeddings → answer.

An image becomes a grid of VQ-GAN codes, a 2D byte-pair encoding merges the codes into larger tokens,
and the tokens join a Llama's vocabulary. Importing this package makes the Auto classes of transformers
know it; nothing heavy is loaded until it is used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import _auto_classes

__version__ = "0.1.0"

_MODULE_OF = {
    "BeingVLConfig": "configuration_being_vl",
    "BeingVLForCausalLM": "modeling_being_vl",
    "BeingVLImageProcessor": "image_processing_being_vl",
    "BeingVLPatchVQConfig": "modeling_being_vl_patch_vq",
    "BeingVLPatchVQModel": "modeling_being_vl_patch_vq",
    "BeingVLProcessor": "processing_being_vl",
    "BeingVLTokenizer": "tokenization_being_vl",
    "BeingVLVQConfig": "modeling_being_vl_vq",
    "BeingVLVQModel": "modeling_being_vl_vq",
    "ImageBPE": "image_bpe",
    "VocabularyLayout": "vocabulary",
}

__all__ = [*sorted(_MODULE_OF)]

if TYPE_CHECKING:
    from .configuration_being_vl import BeingVLConfig
    from .image_bpe import ImageBPE
    from .image_processing_being_vl import BeingVLImageProcessor
    from .modeling_being_vl import BeingVLForCausalLM
    from .modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
    from .modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel
    from .processing_being_vl import BeingVLProcessor
    from .tokenization_being_vl import BeingVLTokenizer
    from .vocabulary import VocabularyLayout


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])


_auto_classes.install()
