"""what a run is made of: settings, model and data → values that are compared before a run goes on."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from .streaming import StreamedSamples

# Of `TrainingArguments`, those that decide the weights. Where to save, what to log, on what device to run
# and how to spare memory may change from one part of a run to the next.
DECISIVE_ARGUMENTS = (
    "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_steps",
    "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "optim", "optim_args", "optim_target_modules", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "max_grad_norm", "average_tokens_across_devices", "label_smoothing_factor",
    "neftune_noise_alpha", "bf16", "fp16", "seed", "data_seed", "accelerator_config",
    "dataloader_drop_last", "train_sampling_strategy", "ignore_data_skip",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
)  # fmt: skip
_SAMPLED_ITEMS = 128
_SAMPLED_VALUES = 64


def identity_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, in words; [] where they do not."""
    differences = []
    for section, values in wanted.items():
        theirs = found.get(section, {})
        if not isinstance(theirs, Mapping):
            differences.append(f"{section} is {theirs!r}")
            continue
        differences += [
            f"{section}.{name} is {theirs[name]!r}, now {value!r}"
            for name, value in values.items()
            if name in theirs and theirs[name] != value
        ]
    return differences


def settings_of(trainer: Trainer) -> dict[str, Any]:
    args = trainer.args
    values = args.to_dict()
    base = {field.name for field in dataclasses.fields(TrainingArguments)}
    own = [field.name for field in dataclasses.fields(args) if field.name not in base]
    chosen = {name: values[name] for name in (*DECISIVE_ARGUMENTS, *own) if name in values}
    if args.max_steps > 0:  # then it decides alone
        chosen.pop("num_train_epochs")
    distributed = "DDP" if args.world_size > 1 else "no"
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        distributed = f"DeepSpeed ZeRO-{stage}"
    elif trainer.is_fsdp_enabled:
        distributed = "FSDP"
    return {**chosen, "world_size": args.world_size, "distributed": distributed}


def model_identity(model: nn.Module) -> dict[str, Any]:
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


def data_identity(dataset: Any) -> dict[str, Any]:
    if isinstance(dataset, StreamedSamples):
        return dataset.identity()
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return {"samples": None}
    identity: dict[str, Any] = {"samples": len(dataset)}
    # Samples that are another at each reading, of a random augmentation, have no digest.
    if len(dataset) and _digest(dataset[0]) == _digest(dataset[0]):
        digest = 0
        for i in np.unique(np.linspace(0, len(dataset) - 1, _SAMPLED_ITEMS).astype(int)).tolist():
            digest = _digest(dataset[i], digest)
        identity["digest"] = f"{digest:08x}"
    return identity


def _digest(value: Any, start: int = 0) -> int:
    """CRC-32 of a sample: of its names, arrays and plain values."""
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
