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
from ..files import (
    is_of,
    locked,
    read_json,
    read_yaml,
    refuse_others,
    shown,
    wait_for_everyone,
    write_atomic,
    writing,
)
from .arguments import BeingVLTrainingArguments, DataArguments, ModelArguments, StageArguments
from .checkpoints import file_entries, file_problem
from .distributed import prepare_deepspeed
from .identity import DECISIVE_ARGUMENTS, identity_differences
from .stage_trainer import load_for_training, make_trainer
from .stages import merge_lora
from .streaming import StreamedSamples
from .trainer import BeingVLTrainer

if TYPE_CHECKING:
    import datasets

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
    """What a stage made."""

    output_dir: str  # the checkpoint: model, tokenizer, processor, VQ model
    # `train_loss`, `steps`, …; with an evaluation set `eval_loss` and others
    metrics: dict[str, Any]
    finished_before: bool = field(default=False, compare=False)  # the same run had finished there


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
        model_args, data_args, stage_args, training_args: the options of `being-vl train`, see their classes.
        train_dataset, eval_dataset: tokenized samples, instead of those that `data_args` names.
        callbacks: as of `Trainer`.

    Returns:
        the folder of the checkpoint, and the metrics that `metrics.json` holds.

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
        accepted = data_args.accept_mismatch or ()
        checks: Any = {"accept_mismatch": accepted, "verify": data_args.verify_data}
        mixed: Any = {"stage": data_args.mixture_stage, "seed": training_args.order_seed, **checks}
        if train is None and data_args.streaming:
            train = stream_tokenized(data_args.data, processor, **checks)
        elif train is None:
            train = load_training_data(data_args.data, processor, **mixed)
        if held_out is None and data_args.eval_data is not None:
            held_out = load_training_data(data_args.eval_data, processor, **mixed)
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
        # A stream counts none before it ends.
        if not isinstance(trainer.train_dataset, StreamedSamples):
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
        values = asdict(part)
        if isinstance(part, BeingVLTrainingArguments):  # without what is secret
            values = {k: v for k, v in part.to_dict().items() if not k.endswith("_token")}
        settings.update({name: value for name, value in values.items() if value is not None})
    return json.loads(json.dumps(settings))


def _claim(output: Path, settings: Mapping[str, Any]) -> None:
    """Save the settings; refuse a folder with a run of others in it."""
    path = output / SETTINGS_FILE
    if path.exists():
        found, decisive = read_yaml(path), _decisive_defaults()
        if not isinstance(found, dict) or not found:
            raise ValueError(
                f"{path}: must be a mapping of options, got {found!r}; remove it to train anew"
            )
        rule = "a run goes on with what it began with; choose another output_dir"
        refuse_others(path, {**decisive, **found}, {**decisive, **settings}, sorted(decisive), rule)
    elif (output / "config.json").exists():
        raise ValueError(
            f"{output} holds a checkpoint that no run of this command made; choose another output_dir"
        )
    write_atomic(path, yaml.safe_dump(dict(settings), sort_keys=False))


def _decisive_defaults() -> dict[str, Any]:
    """The options that decide the weights, as of `identity.DECISIVE_ARGUMENTS`, and their defaults."""
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
    for name, value in finished["metrics"].items():
        if not is_of(value, float):
            raise ValueError(f"{path}: metrics.{name} must be a number, got {shown(value)}")
    if differences := identity_differences(finished["run"], identity):
        raise ValueError(
            f"{output}: another run has finished here: {'; '.join(differences)}. Choose another output_dir"
        )
    for name, entry in finished["files"].items():
        if (problem := file_problem(output, name, entry)) is not None:
            warnings.warn(f"{output} had finished, but {problem}: training goes on", stacklevel=3)
            return None
    return finished["metrics"]


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
    wait_for_everyone(trainer.accelerator.state)
    if has_adapters:
        trainer.save_model(str(aside / ADAPTER_FOLDER), _internal_call=True)
        trainer.model = merge_lora(trainer.accelerator.unwrap_model(trainer.model))
        trainer.check_frozen_rows()
        if trainer.is_world_process_zero():
            trainer.model.save_pretrained(aside)
            trainer.processing_class.save_pretrained(aside)
    else:
        trainer.save_model(str(aside), _internal_call=True)
    wait_for_everyone(trainer.accelerator.state)
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
    wait_for_everyone(trainer.accelerator.state)
