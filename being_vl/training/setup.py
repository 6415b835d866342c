"""arguments → a model prepared for its stage, and a trainer over packed and labelled rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, TrainerCallback

from ..models.configuration_being_vl import BeingVLConfig
from ..models.modeling_being_vl import BeingVLForCausalLM
from ..processing.processing_being_vl import BeingVLProcessor
from .arguments import BeingVLTrainingArguments, DataArguments, ModelArguments, StageArguments
from .collation import FlatCollator, PaddingCollator
from .lora import add_lora
from .packing import SharedImageCollator
from .rows import PackedSamples, SharedImageRows, TokenizedRows
from .stages import prepare_stage
from .trainer import BeingVLTrainer

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel


def load_for_training(
    model_args: ModelArguments, stage_args: StageArguments
) -> tuple[BeingVLForCausalLM | PeftModel, BeingVLProcessor]:
    """The checkpoint's model, frozen and wrapped as the arguments say, and its processor.

    Raises:
        ValueError: the checkpoint is no Being-VL model, or the stage and its options do not fit.
        OSError: it does not load.
    """
    source = model_args.model_name_or_path
    model_type = AutoConfig.from_pretrained(source).model_type
    if model_type != BeingVLConfig.model_type:
        raise ValueError(
            f"model_name_or_path {source} is a model of type {model_type!r}; being-vl init makes a checkpoint to "
            "train of a Llama"
        )
    options: dict[str, Any] = {"dtype": model_args.dtype}
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
    model = BeingVLForCausalLM.from_pretrained(source, **options)
    processor = BeingVLProcessor.from_pretrained(source)
    prepare_stage(
        model,
        stage_args.stage,
        train_embeddings=stage_args.train_embeddings,
        train_layers=stage_args.train_layers,
        freeze=stage_args.freeze,
    )
    if model_args.use_peft:
        model = add_lora(model, model_args, stage_args)
    return model, processor


def make_trainer(
    model: BeingVLForCausalLM | PeftModel,
    processor: BeingVLProcessor,
    train_dataset: datasets.Dataset,
    eval_dataset: datasets.Dataset | None,
    data_args: DataArguments,
    stage_args: StageArguments,
    training_args: BeingVLTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> BeingVLTrainer:
    """A trainer over tokenized rows, packed and labelled as the arguments say.

    Args:
        model: prepared for its stage.
        processor: saved with every checkpoint.
        train_dataset, eval_dataset: tokenized rows, see `rows.TokenizedRows`.
        data_args, stage_args, training_args, callbacks: see `run_stage`.
    """
    attention = model.config._attn_implementation
    if attention.startswith("flash") and data_args.packing == "shared_image":
        raise ValueError(
            "packing=shared_image needs a block mask, which flash attention has not; take attn_implementation "
            "sdpa or flex_attention"
        )

    def rows(dataset: datasets.Dataset) -> TokenizedRows | PackedSamples | SharedImageRows:
        longest = data_args.max_length or model.config.max_position_embeddings
        samples = TokenizedRows(
            dataset,
            model.config.layout,
            labels=stage_args.labels,
            max_length=longest,
            drop_long=data_args.drop_long,
        )
        if data_args.packing == "samples":
            return PackedSamples(samples, longest)
        if data_args.packing == "shared_image":
            eoi = model.config.eoi_token_id
            if eoi is None:
                raise ValueError("packing=shared_image needs eoi_token_id in the model's config")
            return SharedImageRows(samples, eoi_token_id=eoi, max_length=longest)
        return samples

    pad = model.config.pad_token_id or 0  # which id does not matter: no label sees the padding
    if data_args.packing == "shared_image":
        mask = "flex" if attention == "flex_attention" else "dense"
        collator: Any = SharedImageCollator(pad, mask)
    elif data_args.packing == "samples" and attention.startswith("flash"):
        collator = FlatCollator()
    else:
        collator = PaddingCollator(pad)
    return BeingVLTrainer(
        model=model,
        args=training_args,
        train_dataset=rows(train_dataset),
        eval_dataset=None if eval_dataset is None else rows(eval_dataset),
        data_collator=collator,
        processing_class=processor,
        callbacks=list(callbacks),
        label_weights=(1.0, stage_args.code_weight, stage_args.merge_weight),
    )
