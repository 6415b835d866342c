"""a trainer → what makes its run this run: settings, model, data.

A checkpoint keeps it, and a run that goes on from the checkpoint must have the same: otherwise it would
go on to weights that neither run would have had.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

# Of `TrainingArguments`, those that decide the weights. Where to save, what to log, on what device to run
# and how to spare memory may change from one part of a run to the next.
_DECISIVE_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "average_tokens_across_devices", "label_smoothing_factor",
    "neftune_noise_alpha", "bf16", "fp16", "seed", "data_seed", "accelerator_config",
    "dataloader_drop_last", "train_sampling_strategy", "ignore_data_skip",
)  # fmt: skip
_SAMPLED_ROWS = 128
_SAMPLED_VALUES = 64


def run_identity(trainer: Trainer, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is made of, as JSON; to be called before training has changed the model.

    Args:
        trainer: before its first step.
        extra: further settings that decide the run, as JSON.

    Returns:
        `{"settings": …, "model": …, "data": …}`. Weights and rows are compared by samples: 64 values of
        each parameter, and 128 rows, evenly spaced.
    """
    identity = {
        "settings": {**_settings(trainer), **extra},
        "model": _model_identity(trainer.model),
        "data": _data_identity(trainer.train_dataset),
    }
    return json.loads(json.dumps(identity))  # as it will be read back: lists for tuples


def identity_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, in words; [] where they do not.

    Args:
        found: of a checkpoint. What only one of the two knows is passed over: it came or went with a
            version of a library.
        wanted: of the run that wants to go on from it.
    """
    differences = []
    for section, values in wanted.items():
        theirs = found.get(section, {})
        differences += [
            f"{section}.{name} is {theirs[name]!r}, now {value!r}"
            for name, value in values.items()
            if name in theirs and theirs[name] != value
        ]
    return differences


def _settings(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    values = args.to_dict()
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(args) if field.name not in base]
    chosen = {name: values[name] for name in (*_DECISIVE_ARGUMENTS, *own) if name in values}
    if args.max_steps > 0:  # then it decides alone
        chosen.pop("num_train_epochs")
    distributed = "DDP" if args.world_size > 1 else "no"
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        distributed = f"DeepSpeed ZeRO-{stage}"
    elif trainer.is_fsdp_enabled:
        distributed = "FSDP"
    return {**chosen, "world_size": args.world_size, "distributed": distributed}


def _model_identity(model: nn.Module) -> dict[str, Any]:
    shapes, weights, count = 0, 0, 0
    for name, parameter in sorted(model.named_parameters()):
        # Under ZeRO-3 a parameter is an empty stand-in that knows the shape of the whole.
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        count += int(np.prod(shape))
        described = f"{name} {shape} {parameter.dtype} {parameter.requires_grad}"
        shapes = zlib.crc32(described.encode(), shapes)
        weights = zlib.crc32(_sample(parameter), weights)
    return {
        "class": type(model).__name__,
        "num_parameters": count,
        "names_shapes_and_freezing": f"{shapes:08x}",
        "initial_weights": f"{weights:08x}",
    }


def _sample(parameter: torch.Tensor) -> bytes:
    flat = parameter.detach().flatten()
    chosen = flat[:: max(1, flat.numel() // _SAMPLED_VALUES)][:_SAMPLED_VALUES]
    return chosen.float().cpu().numpy().tobytes()


def _data_identity(dataset: Any) -> dict[str, Any]:
    if not isinstance(dataset, Sized):
        return {"rows": None}
    identity: dict[str, Any] = {"rows": len(dataset)}
    # Rows that are another at each reading, of a random augmentation, have no digest.
    if len(dataset) and _digest(dataset[0]) == _digest(dataset[0]):
        digest = 0
        for i in np.unique(np.linspace(0, len(dataset) - 1, _SAMPLED_ROWS).astype(int)).tolist():
            digest = _digest(dataset[i], digest)
        identity["digest"] = f"{digest:08x}"
    return identity


def _digest(value: Any, start: int = 0) -> int:
    """CRC-32 of a row: of its names, arrays and plain values."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray) and value.dtype != object:
        start = zlib.crc32(f"{value.dtype} {value.shape}".encode(), start)
        return zlib.crc32(np.ascontiguousarray(value).tobytes(), start)
    if isinstance(value, Mapping):
        for name in sorted(value):
            start = _digest(value[name], zlib.crc32(str(name).encode(), start))
        return start
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes):
        start = zlib.crc32(str(len(value)).encode(), start)
        if len(value) and all(type(item) is int for item in value):
            return zlib.crc32(repr(list(value)).encode(), start)
        for item in value:
            start = _digest(item, start)
        return start
    return zlib.crc32(repr(value).encode(), start)
