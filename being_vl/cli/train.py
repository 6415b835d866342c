"""`being-vl train`: a checkpoint and tokenized samples → the checkpoint after one stage.

The recipes under hub_configs/training/ are configurations of this command; docs/training.md says what the
stages, labels and kinds of packing are. For several processes start it by `torchrun` or `accelerate launch`:
`torchrun --nproc_per_node 8 -m being_vl train --config …`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from typing import Any

from jsonargparse import Namespace

from .options import FieldOption, add, answer, describe_fields, option, refuse_used
from .parsing import Parser

_DESCRIPTION = "Train one stage of a checkpoint on tokenized samples."
_EPILOG = "Several processes: accelerate launch -m being_vl train …; docs/distributed.md"
# Fields of the first three dataclasses that the short help shows.
_COMMON = (
    "checkpoint", "data", "eval_data", "stage", "freeze", "packing", "max_length", "dtype", "use_peft",
)  # fmt: skip
# What the short help says of TrainingArguments, whose import takes seconds; a test compares it with them.
COMMON_TRAINING_ARGUMENTS: dict[str, tuple[Any, Any, str]] = {
    "output_dir": (str, None, "folder of the trained checkpoint"),
    "num_train_epochs": (float, 3.0, "epochs"),
    "max_steps": (int, -1, "instead of epochs, if positive"),
    "per_device_train_batch_size": (int, 8, "sequences in a batch"),
    "gradient_accumulation_steps": (int, 1, "batches in a step"),
    "learning_rate": (float, 5e-5, "peak learning rate"),
    "warmup_steps": (float, 0.03, "below 1: a share of all steps"),
    "bf16": (bool, False, "compute in bfloat16"),
    "seed": (int, 42, "random seed"),
}


def make_help_parser() -> Parser:
    """The options that `--help` shows, without an import of transformers."""
    parser = Parser(_DESCRIPTION, epilog=_EPILOG, json="print the metrics as JSON")
    add(parser, "resume")
    stage = parser.add_argument_group("stage")
    for entry in _stage_options():
        if entry.name in _COMMON:
            entry.add(stage, entry.name)
    training = parser.add_argument_group("training (transformers' TrainingArguments)")
    for name, (kind, default, text) in COMMON_TRAINING_ARGUMENTS.items():
        option(training, name, kind, text, default=default)
    parser.rare("labels, LoRA, all of TrainingArguments")
    return parser


def make_parser() -> Parser:
    """All options of the command: the fields of four dataclasses, by their names."""
    from ..training.arguments import BeingVLTrainingArguments

    parser = Parser(_DESCRIPTION, epilog=_EPILOG, json="print the metrics as JSON")
    add(parser, "resume")
    kinds = (*_stage_classes(), BeingVLTrainingArguments)
    for arguments in kinds:
        parser.add_class_arguments(arguments, help=(arguments.__doc__ or "").splitlines()[0])
    helps = {f.name: f.metadata.get("help") for kind in kinds for f in dataclasses.fields(kind)}
    for action in parser._actions:  # jsonargparse reads docstrings, not what stands with a field
        action.help = action.help or helps.get(action.dest)
    parser.read_as_hf_argument_parser()
    return parser


def main(args: Namespace) -> int:
    from ..training.run import run_stage

    arguments = parse_arguments(args)
    if arguments[-1].process_index == 0:
        refuse_used(args, arguments[-1].output_dir)
    with contextlib.redirect_stdout(sys.stderr):  # progress and logs
        result = run_stage(*arguments)
    if arguments[-1].process_index:
        return 0
    shown = ("steps", "train_loss", "eval_loss")
    figures = [f"{name} {result.metrics[name]:.4g}" for name in shown if name in result.metrics]
    before = "; finished before; nothing to do" if result.finished_before else ""
    answer(
        args,
        {"output_dir": result.output_dir, **result.metrics},
        f"{result.output_dir}: {', '.join(figures)}{before}",
        sys.stderr,
    )
    return 0


def parse_arguments(args: Namespace) -> tuple[Any, ...]:
    """The parsed options as `ModelArguments`, `DataArguments`, `StageArguments`, `BeingVLTrainingArguments`."""
    from ..training.arguments import BeingVLTrainingArguments

    values = args.as_dict()
    return tuple(
        arguments(**{f.name: values[f.name] for f in dataclasses.fields(arguments) if f.init})
        for arguments in (*_stage_classes(), BeingVLTrainingArguments)
    )


def _stage_classes() -> tuple[type, ...]:
    from ..training.stage_arguments import DataArguments, ModelArguments, StageArguments

    return ModelArguments, DataArguments, StageArguments


def _stage_options() -> list[FieldOption]:
    entries = [entry for kind in _stage_classes() for entry in describe_fields(kind)]
    return sorted(entries, key=lambda entry: [*_COMMON, entry.name].index(entry.name))
