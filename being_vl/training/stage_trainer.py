"""options → the model of a stage, and the trainer over its samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from ..data import TokenizedStream
from ..data.identity import compare
from ..files import check_model_folder, reading
from ..hub.part import pinned
from ..models.loading import load_language_model
from ..models.modeling_being_vl import BeingVLLanguageModel
from ..processing.processing_being_vl import BeingVLProcessor
from .arguments import BeingVLTrainingArguments, DataArguments, ModelArguments, StageArguments
from .collators import FlatCollator, PaddingCollator, SharedImageCollator
from .packing import PackedSamples, SharedImageSamples
from .samples import TokenizedSamples
from .stages import add_lora, prepare_stage
from .streaming import StreamedEpochs, StreamedSamples, check_streaming
from .trainer import BeingVLTrainer

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel


def load_for_training(
    model_args: ModelArguments, stage_args: StageArguments
) -> tuple[BeingVLLanguageModel | PeftModel, BeingVLProcessor]:
    """The checkpoint's model, frozen and wrapped as the arguments say, and its processor."""
    source = model_args.checkpoint
    commit = pinned(source)
    options: dict[str, Any] = {"dtype": model_args.dtype, **commit}
    if model_args.attn_implementation is not None:
        options["attn_implementation"] = model_args.attn_implementation
    if os.path.isdir(source):
        check_model_folder(source)
    with reading(source):
        model = load_language_model(source, **options)
        processor = BeingVLProcessor.from_pretrained(source, **commit)
    processor.tokenizer.check_rows(model.config.vocab_size)
    own, rule = asdict(model.config.layout), "model and tokenizer must be of one checkpoint"
    compare(
        source, {"vocabulary": asdict(processor.tokenizer.layout)}, {"vocabulary": own}, rule=rule
    )
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
    model: BeingVLLanguageModel | PeftModel,
    processor: BeingVLProcessor,
    train_dataset: datasets.Dataset | TokenizedStream,
    eval_dataset: datasets.Dataset | None,
    data_args: DataArguments,
    stage_args: StageArguments,
    training_args: BeingVLTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
) -> BeingVLTrainer:
    """A trainer over tokenized samples, packed and labelled as the arguments say.

    Args:
        model: prepared for its stage.
        processor: saved with every checkpoint.
        train_dataset, eval_dataset: tokenized samples, see `TokenizedSamples`; a stream to train on, see
            `StreamedSamples`.
        data_args, stage_args, training_args: the options of `being-vl train`, see their classes.
        callbacks: as of `Trainer`.
    """
    attention = model.config._attn_implementation
    if attention.startswith("flash") and data_args.packing == "shared_image":
        raise ValueError(
            "packing=shared_image needs a block mask, which flash attention has not; take attn_implementation "
            "sdpa or flex_attention"
        )

    longest = data_args.max_length or model.config.max_position_embeddings

    def streamed(stream: TokenizedStream) -> StreamedSamples:
        is_packed = data_args.packing == "samples"
        check_streaming(training_args, packed=is_packed)
        return (StreamedSamples if is_packed else StreamedEpochs)(
            stream,
            model.config.layout,
            labels=stage_args.labels,
            max_length=longest,
            drop_long=data_args.drop_long,
            packed=is_packed,
            buffer_size=data_args.shuffle_buffer_size,
            seed=training_args.order_seed,
            rank=training_args.process_index,
            world=training_args.world_size,
        )

    def packed(dataset: datasets.Dataset) -> TokenizedSamples | PackedSamples | SharedImageSamples:
        samples = TokenizedSamples(
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
            return SharedImageSamples(samples, eoi_token_id=eoi, max_length=longest)
        return samples

    pad = model.config.pad_token_id or 0  # which id does not matter: no label sees the padding
    if data_args.packing == "shared_image":
        flex = attention == "flex_attention"
        collator: Any = SharedImageCollator(pad, "flex" if flex else "dense")
    elif data_args.packing == "samples" and attention.startswith("flash"):
        collator = FlatCollator()
    else:
        collator = PaddingCollator(pad)
    is_stream = isinstance(train_dataset, TokenizedStream)
    train: Any = streamed(train_dataset) if is_stream else packed(train_dataset)
    return BeingVLTrainer(
        model=model,
        args=training_args,
        train_dataset=train,
        eval_dataset=None if eval_dataset is None else packed(eval_dataset),
        data_collator=collator,
        processing_class=processor,
        callbacks=list(callbacks),
        label_weights=(1.0, stage_args.code_weight, stage_args.merge_weight),
    )
