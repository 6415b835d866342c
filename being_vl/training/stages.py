"""stage → which parameters move; and LoRA for a stage on a small GPU.

Being-VL-0, section 4.2: `pretrain` (the paper's PT) learns the embeddings of the image tokens on a frozen
language model, `sft` trains everything. Being-VL-0.5 puts a stage between them, `selective`. LoRA (Hu et al.
2021) and trainable tokens are peft's: the optimizer then holds the adapters and the new rows instead of the
model; text rows stay, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..files import shown

if TYPE_CHECKING:
    from peft import PeftModel

    from ..models.modeling_being_vl import BeingVLLanguageModel
    from .arguments import ModelArguments, StageArguments

STAGES = ("pretrain", "selective", "sft")


def prepare_stage(
    model: BeingVLLanguageModel,
    stage: str,
    *,
    train_embeddings: str = "image",
    train_layers: Sequence[int] | None = None,
    freeze: str = "none",
) -> None:
    """Freeze and unfreeze the model's parameters for a stage, whatever they were before.

    `selective` is Being-VL-0.5's "selective fine-tuning": embeddings and some decoder layers. Its released
    script names "early transformer layers" and not how many; its released training code freezes nothing
    in that stage. The first quarter is our default. Whether text rows move is not said either: here they
    stay unless `train_embeddings="all"`. The final norm stays.

    Args:
        train_embeddings: `"image"` (of the embeddings, only the rows after the text vocabulary move; in
            `pretrain` nothing else moves, the paper's PT(freeze)) or `"all"` (in `pretrain` every
            parameter moves, PT(full); in `selective` all rows of the embeddings).
        train_layers: in `selective`, the decoder layers that move, from 0; by default the first quarter,
            at least one.
        freeze: in `sft`, `"none"` or `"image"` (the rows of codes and merges stay, the paper's ablation).
    """
    for name, value, known in (
        ("stage", stage, STAGES),
        ("train_embeddings", train_embeddings, ("image", "all")),
        ("freeze", freeze, ("none", "image")),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if train_layers is not None and stage != "selective":
        raise ValueError(f"train_layers is for the stage selective, got it for {stage}")
    if freeze != "none" and stage != "sft":
        raise ValueError(f"freeze is for the stage sft, got {freeze!r} for {stage}")
    model.requires_grad_(True)
    model.unfreeze()
    if stage == "sft":
        if freeze == "image":
            model.freeze_image_embeddings()
        return
    if stage == "pretrain" and train_embeddings == "all":
        return
    model.requires_grad_(False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        module.weight.requires_grad_(True)
    if train_embeddings == "image":
        model.freeze_text_embeddings()
    if stage == "selective":
        for layer in _chosen_layers(model, train_layers):
            layer.requires_grad_(True)


def _chosen_layers(model: BeingVLLanguageModel, train_layers: Sequence[int] | None) -> list:
    layers = model.model.layers
    if train_layers is None:
        return list(layers[: max(1, len(layers) // 4)])
    for number in train_layers:
        if not 0 <= number < len(layers):
            raise ValueError(f"train_layers must be in [0, {len(layers)}), got {number}")
    return [layers[number] for number in train_layers]


def add_lora(model: Any, model_args: ModelArguments, stage_args: StageArguments) -> PeftModel:
    """Wrap a model for training; `merge_lora` undoes it."""
    from peft import LoraConfig, TaskType, get_peft_model

    if stage_args.stage != "sft":
        raise ValueError(
            f"use_peft is for the stage sft, got {stage_args.stage}: the others leave the decoder, or most of "
            "it, as it is"
        )
    most = {"lora_r": model.config.hidden_size, "lora_alpha": 2**31 - 1}
    for name, limit in most.items():
        value = getattr(model_args, name)
        if not 1 <= value <= limit:
            raise ValueError(f"{name} must be in [1, {limit}], got {shown(value)}")
    if not 0 <= model_args.lora_dropout < 1:
        raise ValueError(f"lora_dropout must be in [0, 1), got {model_args.lora_dropout}")
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


def merge_lora(model: PeftModel) -> BeingVLLanguageModel:
    """The trained model with adapters and rows in its own weights."""
    merged = model.merge_and_unload(safe_merge=True)
    merged.unfreeze()
    return merged
