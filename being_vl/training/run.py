"""checkpoint + tokenized samples → the checkpoint after one stage: what `being-vl train` does.

A run owns one folder and has one setting: started again it goes on where it was, or returns when it is
done, and refuses other settings.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from transformers import TrainerCallback, set_seed
from transformers.trainer import TRAINING_ARGS_NAME

from ..data import TokenizedStream, load_training_data, stream_tokenized
from ..data.identity import compare
from ..files import (
    check_model_folder,
    locked,
    read_json,
    read_yaml,
    reading,
    refuse_others,
    shown,
    write_atomic,
    writing,
)
from ..hub.part import pinned
from ..models.loading import load_language_model
from ..models.modeling_being_vl import BeingVLLanguageModel
from ..processing.processing_being_vl import BeingVLProcessor
from .arguments import BeingVLTrainingArguments, DataArguments, ModelArguments, StageArguments
from .checkpoints import file_entries, file_problem
from .distributed import prepare_deepspeed
from .packing import FlatCollator, PackedSamples, SharedImageCollator, SharedImageSamples
from .resume import DECISIVE_ARGUMENTS, identity_differences
from .samples import PaddingCollator, TokenizedSamples
from .stages import add_lora, merge_lora, prepare_stage
from .streaming import StreamedEpochs, StreamedSamples, check_streaming
from .trainer import BeingVLTrainer

if TYPE_CHECKING:
    import datasets
    from peft import PeftModel

SETTINGS_FILE = "train.yaml"
METRICS_FILE = "metrics.json"
ADAPTER_FOLDER = "adapter"
_FINISHED_FOLDER = ".finished"
FINISHED_FILE = "finished.json"
_VERSION = 1
# Of the other three groups of options, those that change nothing about the weights that come out.
_FREE = frozenset(("accept_mismatch", "verify_data"))


@dataclass(frozen=True)
class StageResult:
    """What a stage made.

    Args:
        output_dir: the checkpoint: model, tokenizer, processor, VQ model.
        metrics: `train_loss`, `train_runtime`, `steps`, and with an evaluation set `eval_loss` and others.
        finished_before: nothing was done, since the same run had finished in the folder.
    """

    output_dir: str
    metrics: dict[str, Any]
    finished_before: bool = field(default=False, compare=False)


def run_stage(
    model_args: ModelArguments,
    data_args: DataArguments,
    stage_args: StageArguments,
    training_args: BeingVLTrainingArguments,
    *,
    train_dataset: datasets.Dataset | TokenizedStream | None = None,
    eval_dataset: datasets.Dataset | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> StageResult:
    """Train one stage; `training_args.output_dir` becomes a whole checkpoint.

    The folder also gets `train.yaml` (the settings: `being-vl train --config` takes it), `metrics.json`,
    `trainer_state.json` (the log), `Trainer`'s checkpoints and, last, `finished.json`: the identity of the
    run, and size and CRC-32 of what it made. A run that was stopped goes on from its last checkpoint. One
    that finished returns, if model, data and settings are those of `finished.json` and its files are whole.

    Args:
        model_args, data_args, stage_args, training_args: see the classes.
        train_dataset, eval_dataset: tokenized samples, instead of those that `data_args` names.
        callbacks: of the `Trainer`.

    Raises:
        ValueError: settings that do not fit each other, the model or the data; a folder that holds a run
            with other settings, another model or other data.
        TrainingDiverged: the loss or a weight is not finite; checkpoints before it are left.
        OSError: a checkpoint or data set does not load; another process trains into the folder.
        FrozenRowsMoved: at a save, a row that must stay has moved.
    """
    prepare_deepspeed(training_args)
    output = Path(str(training_args.output_dir))
    own_lock = f".rank-{training_args.process_index:05d}.lock"
    with locked(output, "another process is training into it", name=own_lock):
        with training_args.main_process_first():
            settings = resolved_settings(model_args, data_args, stage_args, training_args)
            if training_args.process_index == 0:
                _claim(output, settings)
        set_seed(training_args.seed)
        model, processor = load_for_training(model_args, stage_args)
        train, held_out = train_dataset, eval_dataset
        if train is None and data_args.streaming:
            accepted = data_args.accept_mismatch or ()
            train = stream_tokenized(
                data_args.data, processor, accept_mismatch=accepted, verify=data_args.verify_data
            )
        elif train is None:
            train = _load(data_args.data, data_args, processor, training_args)
        if held_out is None and data_args.eval_data is not None:
            held_out = _load(data_args.eval_data, data_args, processor, training_args)
        trainer = make_trainer(
            model, processor, train, held_out, data_args, stage_args, training_args, callbacks
        )
        if model_args.use_peft and (trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled):
            raise ValueError(
                "use_peft trains on one process, or on several with a whole model each: adapters are merged "
                "into whole weights at the end; leave DeepSpeed and FSDP out"
            )
        identity = trainer.identity()
        with training_args.main_process_first():  # every process looks before one of them goes on
            finished = _finished_metrics(output, identity)
        if finished is not None:
            return StageResult(str(output), finished, finished_before=True)
        metrics = dict(trainer.train(resume_from_checkpoint="auto").metrics)
        metrics["steps"] = trainer.state.global_step
        if not isinstance(
            trainer.train_dataset, StreamedSamples
        ):  # which counts none before it ends
            samples = trainer.train_dataset.samples  # type: ignore[union-attr]
            metrics["samples_too_long"] = samples.num_too_long
            metrics["samples_without_labels"] = samples.num_without_labels
        if held_out is not None:
            metrics.update(trainer.evaluate())
        with writing(output):
            _finish(trainer, output, metrics, identity, has_adapters=model_args.use_peft)
    return StageResult(str(output), metrics)


def resolved_settings(*arguments: Any) -> dict[str, Any]:
    """All options by name, as a YAML file of `being-vl train` has them; what is None is left out."""
    settings: dict[str, Any] = {}
    for part in arguments:
        if isinstance(part, BeingVLTrainingArguments):
            secret = {name for name in part.to_dict() if name.endswith("_token")}
            values = {k: v for k, v in part.to_dict().items() if k not in secret}
        else:
            values = asdict(part)
        settings.update({name: value for name, value in values.items() if value is not None})
    return json.loads(json.dumps(settings))


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Save the settings; refuse a folder with a run of others in it."""
    path = output / SETTINGS_FILE
    if path.exists():
        found = _read_settings(path)
        decisive = _decisive_defaults()
        rule = "a run goes on with what it began with; choose another output_dir"
        refuse_others(path, {**decisive, **found}, {**decisive, **settings}, sorted(decisive), rule)
    elif (output / "config.json").exists():
        raise ValueError(
            f"{output} holds a checkpoint that no run of this command made; choose another output_dir"
        )
    write_atomic(path, yaml.safe_dump(dict(settings), sort_keys=False))


def _read_settings(path: Path) -> dict[str, Any]:
    found = read_yaml(path)
    if not isinstance(found, dict) or not found:
        raise ValueError(
            f"{path}: must be a mapping of options, got {found!r}; remove it to train anew"
        )
    return found


def _decisive_defaults() -> dict[str, Any]:
    """The options that decide the weights, as of `resume.DECISIVE_ARGUMENTS`, and their defaults."""
    of_trainer = {f.name: f for f in fields(BeingVLTrainingArguments)}
    own = (f for kind in (ModelArguments, DataArguments, StageArguments) for f in fields(kind))
    chosen = [of_trainer[name] for name in DECISIVE_ARGUMENTS if name in of_trainer]
    chosen += [f for f in own if f.name not in _FREE]
    return {f.name: None if f.default is MISSING else f.default for f in chosen}


def _finished_metrics(output: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The metrics of the run, if it has finished; None if it must go on."""
    path = output / FINISHED_FILE
    finished = read_json(path, optional=True)
    if finished is None:
        return None
    parts = ("run", "metrics", "files")
    if not isinstance(finished, dict) or not all(isinstance(finished.get(p), dict) for p in parts):
        raise ValueError(f"{path}: must have run, metrics and files, got {shown(finished)}")
    if differences := identity_differences(finished["run"], identity):
        raise ValueError(
            f"{output}: another run has finished here: {'; '.join(differences)}. Choose another output_dir"
        )
    for name, entry in finished["files"].items():
        problem = file_problem(output, name, entry)
        if problem is not None:
            warnings.warn(f"{output} had finished, but {problem}: training goes on", stacklevel=3)
            return None
    return finished["metrics"]


def _load(
    spec: str,
    data_args: DataArguments,
    processor: BeingVLProcessor,
    training_args: BeingVLTrainingArguments,
) -> datasets.Dataset:
    seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
    return load_training_data(
        spec,
        processor,
        stage=data_args.mixture_stage,
        seed=seed,
        accept_mismatch=data_args.accept_mismatch or (),
        verify=data_args.verify_data,
    )


def _finish(
    trainer: BeingVLTrainer,
    output: Path,
    metrics: dict[str, Any],
    identity: dict[str, Any],
    *,
    has_adapters: bool,
) -> None:
    """Write the checkpoint aside, put its files in place, and last `finished.json`, which says so."""
    aside = output / _FINISHED_FOLDER
    if trainer.is_world_process_zero():
        shutil.rmtree(aside, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    if has_adapters:
        trainer.save_model(str(aside / ADAPTER_FOLDER), _internal_call=True)
        trainer.model = merge_lora(trainer.accelerator.unwrap_model(trainer.model))
        trainer.check_frozen_rows()
        if trainer.is_world_process_zero():
            trainer.model.save_pretrained(aside)
            trainer.processing_class.save_pretrained(aside)
    else:
        trainer.save_model(str(aside), _internal_call=True)
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        for pickled in aside.rglob(TRAINING_ARGS_NAME):
            pickled.unlink()  # train.yaml says the same
        entries = file_entries(aside)
        for path in sorted(aside.iterdir(), key=lambda path: path.name == "config.json"):
            target = output / path.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(path, target)
        aside.rmdir()
        trainer.state.save_to_json(str(output / "trainer_state.json"))
        write_atomic(output / METRICS_FILE, json.dumps(metrics, indent=1) + "\n")
        finished = {"version": _VERSION, "run": identity, "metrics": metrics, "files": entries}
        write_atomic(output / FINISHED_FILE, json.dumps(finished, indent=1) + "\n")
    trainer.accelerator.wait_for_everyone()


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
        data_args, stage_args, training_args, callbacks: see `run_stage`.
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
        seed = training_args.seed if training_args.data_seed is None else training_args.data_seed
        return (StreamedSamples if is_packed else StreamedEpochs)(
            stream,
            model.config.layout,
            labels=stage_args.labels,
            max_length=longest,
            drop_long=data_args.drop_long,
            packed=is_packed,
            buffer_size=data_args.shuffle_buffer_size,
            seed=seed,
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
