"""a stage for a small GPU: LoRA on the decoder, and of the embeddings only the rows of new tokens.

Source: LoRA (Hu et al. 2021) and trainable tokens, both as peft has them. The optimizer then holds the
adapters and the new rows instead of the model; text rows stay, bit for bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..models.modeling_being_vl import BeingVLForCausalLM

if TYPE_CHECKING:
    from peft import PeftModel

    from .arguments import ModelArguments, StageArguments


def add_lora(
    model: BeingVLForCausalLM, model_args: ModelArguments, stage_args: StageArguments
) -> PeftModel:
    """Wrap a model for training; `merge_lora` undoes it.

    Args:
        model: its parameters stop requiring gradients.
        model_args: rank, scale, dropout and layers of the adapters.
        stage_args: the stage `sft`; with `freeze="image"` the adapters train alone.

    Raises:
        ImportError: peft is not installed.
        ValueError: another stage.
    """
    from peft import LoraConfig, TaskType, get_peft_model

    if stage_args.stage != "sft":
        raise ValueError(
            f"use_peft is for the stage sft, got {stage_args.stage}: the others leave the decoder, or most of "
            "it, as it is"
        )
    layout = model.config.layout
    rows = None
    if stage_args.freeze == "none":
        new_ids = list(range(layout.text_size, layout.size))
        rows = {"embed_tokens": new_ids}
        if not model.config.tie_word_embeddings:
            rows["lm_head"] = new_ids
    model.freeze_text_embeddings()  # peft passes the rows by; what it says is checked at saves
    config = LoraConfig(
        task_type=TaskType.CAUSAL_LM,
        r=model_args.lora_r,
        lora_alpha=model_args.lora_alpha,
        lora_dropout=model_args.lora_dropout,
        target_modules=model_args.lora_target_modules or "all-linear",
        trainable_token_indices=rows,
    )
    return get_peft_model(model, config)


def merge_lora(model: PeftModel) -> BeingVLForCausalLM:
    """The trained model with adapters and rows in its own weights.

    Raises:
        ValueError: a merged weight is not finite.
    """
    merged = model.merge_and_unload(safe_merge=True)
    merged.unfreeze()
    return merged
