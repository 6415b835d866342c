"""text model + VQ model + image BPE → a Being-VL checkpoint, before any training.

Source: the expansion step of Being-VL-0.5 (its `convert_llama_beingvl.py`). It differs in that a
model of any family in `models.families` will do, and that everything a checkpoint needs is in the folder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..bpe.image_bpe import ImageBPE
from ..files import new_folder, write_atomic
from ..models.loading import base_config, base_family, extend_text_model, load_base_tokenizer
from ..processing.base_chat_templates import extended_chat_template
from ..processing.chat_templates import default_chat_template
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.tokenization_being_vl import VIDEO_SPECIAL_TOKENS, BeingVLTokenizer
from ..quantizers.image_processing_being_vl import BeingVLImageProcessor
from ..quantizers.quantizer import default_image_processor
from .remote_code import add_remote_code

if TYPE_CHECKING:
    from ..models.modeling_being_vl import BeingVLLanguageModel


def check_base(base: str | os.PathLike, *, chat_template: str | None = None) -> dict[str, Any]:
    """Whether a text model can be extended, from its configuration and tokenizer; to be asked before long work.

    Args:
        base: folder, Hub id, or .gguf file; its weights are not read.
        chat_template: takes the place of the base's own.

    Returns:
        `family`, `model_class` (of the checkpoint), `stock_class` (that loads it too), `text_size` (ids of the
        tokenizer), `rows` (of the model's matrices), `chat_template` (`"given"`, `"own"` or `"default"`).

    Raises:
        ValueError: it cannot be extended; the message says why.
        OSError: there is no such model, or it has no tokenizer.
    """
    family, text_tokenizer = base_family(base), load_base_tokenizer(base)
    rows = base_config(base, family).vocab_size
    tokenizer = BeingVLTokenizer.from_text_tokenizer(
        text_tokenizer, ImageBPE(np.empty((0, 4), np.int32), 1), num_rows=rows
    )
    own = None if chat_template else extended_chat_template(text_tokenizer)
    return {
        "family": family.title, "model_class": family.language_model_class,
        "stock_class": family.stock_class, "text_size": tokenizer.layout.text_size, "rows": rows,
        "chat_template": "given" if chat_template else "default" if own is None else "own",
    }  # fmt: skip


def init_checkpoint(
    text_model: PreTrainedModel,
    text_tokenizer: PreTrainedTokenizerBase,
    vq_model: Any,
    image_bpe: ImageBPE,
    *,
    image_processor: BeingVLImageProcessor | None = None,
    special_tokens: Mapping[str, str] | None = None,
    chat_template: str | None = None,
    image_init: str = "mean_text",
    image_init_std: float | None = None,
    generator: torch.Generator | None = None,
) -> tuple[BeingVLLanguageModel, BeingVLProcessor]:
    """Extend a text model by the image vocabulary; its behaviour on text stays the same, bit for bit.

    Args:
        text_model: a model of a family in `models.families`.
        text_tokenizer: its fast tokenizer.
        vq_model: the quantizer of images; None for a checkpoint that is given codes and never images.
        image_bpe: the vocabulary that gives codes their tokens.
        image_processor: by default Chameleon's, with a square crop of `vq_model.config.resolution`.
        special_tokens: see [`BeingVLTokenizer.from_text_tokenizer`].
        chat_template: Jinja source; by default the text tokenizer's own, extended by images and marks of
            what the assistant says, or one with its turn markers where it has none.
        image_init, image_init_std, generator: how the new rows start, see
            [`BeingVLLanguageModel.from_text_model`].

    Returns:
        the model, and the processor with its tokenizer and VQ model.

    Raises:
        ValueError: the base's chat template cannot be extended; the VQ model and the image BPE have different
            codebook sizes, or the tokenizer has more ids than the model has rows (added tokens apart).
    """
    if vq_model is not None and vq_model.config.num_embeddings != image_bpe.quantizer_codebook_size:
        raise ValueError(
            f"the VQ model has {vq_model.config.num_embeddings} codes, but the image BPE was trained on "
            f"{image_bpe.quantizer_codebook_size}"
        )
    embeddings: Any = text_model.get_input_embeddings()
    tokenizer = BeingVLTokenizer.from_text_tokenizer(
        text_tokenizer, image_bpe, special_tokens, num_rows=len(embeddings.weight)
    )
    tokenizer.chat_template = (
        chat_template
        or extended_chat_template(text_tokenizer)
        or default_chat_template(tokenizer.get_vocab())
    )
    codebook = grid_size = None
    if vq_model is None:
        image_processor = image_processor or BeingVLImageProcessor()
    else:
        image_processor = image_processor or default_image_processor(vq_model.config)
        grid_size = _grid_size(image_processor, vq_model.config.downsampling)
        if image_init == "codebook":
            codebook = _code_vectors(vq_model, image_bpe)
    processor = BeingVLProcessor(image_processor, tokenizer, vq_model=vq_model)
    videos = {f"{name}_id": getattr(tokenizer, f"{name}_id", None) for name in VIDEO_SPECIAL_TOKENS}
    model = extend_text_model(
        text_model,
        tokenizer.layout,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
        image_token_id=tokenizer.image_token_id,
        **videos,
        pad_token_id=tokenizer.pad_token_id,
        image_grid_size=grid_size,
        image_init=image_init,
        image_init_std=image_init_std,
        codebook=codebook,
        merges=image_bpe.merges,
        generator=generator,
    )
    model.image_bpe = image_bpe  # the rules alone do not say which code repeats
    _end_with_turn(model, tokenizer)
    return model, processor


def _end_with_turn(model: BeingVLLanguageModel, tokenizer: BeingVLTokenizer) -> None:
    """Let `generate` end where the template ends the assistant's turn, as the model will learn to.

    Bases that were not tuned for chats end at another token (`<|endoftext|>` beside a ChatML template), and
    answers would run on into turns that the model makes up.
    """
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    try:
        encoded: Any = tokenizer.apply_chat_template(
            turns, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
    except ValueError:  # it does not render these: a template of the user's own, for others
        return
    learned = [
        i for i, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own
    ]
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ends = model.generation_config.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    if learned and learned[-1] in special and learned[-1] not in ends:
        model.generation_config.eos_token_id = [*ends, learned[-1]] if ends else learned[-1]


def _code_vectors(vq_model: Any, image_bpe: ImageBPE) -> torch.Tensor:
    """A vector for each code; the repeat code, which looks like nothing, has the mean of the others."""
    vectors = vq_model.get_codebook().detach()
    if image_bpe.repeat_code is None:
        return vectors
    return torch.cat([vectors, vectors.mean(dim=0, keepdim=True)])


def _grid_size(image_processor: BeingVLImageProcessor, downsampling: int) -> tuple[int, int] | None:
    """The grid of every image where the image processor crops, None where their sizes differ."""
    if not image_processor.do_center_crop or image_processor.aspect_ratio_buckets:
        return None
    crop = image_processor.crop_size
    return crop["height"] // downsampling, crop["width"] // downsampling


def save_checkpoint(
    model: BeingVLLanguageModel,
    processor: BeingVLProcessor,
    folder: str | os.PathLike,
    *,
    remote_code: bool = False,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Save model, tokenizer, processor and VQ model; the folder appears when all of it is written.

    Args:
        folder: must not exist yet, or be empty.
        remote_code: add the modules that `trust_remote_code=True` needs where being_vl is not installed.
        settings: names to texts of further files, such as the options of the command that made it.

    Raises:
        ValueError: the folder has files in it.
    """
    with new_folder(folder) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for name, text in (settings or {}).items():
            write_atomic(partial / name, text)
        if remote_code:
            add_remote_code(partial)
