"""`being-vl train`: a checkpoint and tokenized rows → the checkpoint after one stage.

The recipes under hub_configs/training/ are configurations of this command; docs/training.md says what the
stages, labels and kinds of packing are. For several processes start it by `torchrun` or `accelerate launch`:
`torchrun --nproc_per_node 8 -m being_vl train --config …`.
"""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

from jsonargparse import ArgumentParser, Namespace


def make_parser() -> ArgumentParser:
    """The options of the command: the fields of four dataclasses, by their names."""
    parser = ArgumentParser(
        description="Train one stage of a checkpoint on tokenized rows. Started again with the same "
        "settings, a stopped run goes on."
    )
    parser.add_argument("--config", action="config", help="YAML file of these options")
    parser.add_argument("--json", action="store_true", help="print the metrics as JSON")
    for arguments in _argument_classes():
        parser.add_class_arguments(arguments, help=(arguments.__doc__ or "").splitlines()[0])
    return parser


def main(args: Namespace) -> int:
    """Run the command.

    Raises:
        ValueError, OSError, ImportError: see `training.run.run_stage`.
    """
    from ..training.run import run_stage

    arguments = parse_arguments(args)
    with contextlib.redirect_stdout(sys.stderr):  # progress and logs
        result = run_stage(*arguments)
    if arguments[-1].process_index:
        return 0
    if args.json:
        print(json.dumps({"output_dir": result.output_dir, **result.metrics}))
    else:
        shown = ("steps", "train_loss", "eval_loss")
        figures = [f"{name} {result.metrics[name]:.4g}" for name in shown if name in result.metrics]
        print(f"{result.output_dir}: {', '.join(figures)}", file=sys.stderr)
    return 0


def parse_arguments(args: Namespace) -> tuple[Any, ...]:
    """The parsed options as `ModelArguments`, `DataArguments`, `StageArguments`, `BeingVLTrainingArguments`."""
    import dataclasses

    values = args.as_dict()
    return tuple(
        arguments(**{f.name: values[f.name] for f in dataclasses.fields(arguments) if f.init})
        for arguments in _argument_classes()
    )


def _argument_classes() -> tuple[type, ...]:
    from ..training.arguments import (
        BeingVLTrainingArguments,
        DataArguments,
        ModelArguments,
        StageArguments,
    )

    return ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments
