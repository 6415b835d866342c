"""Settings of DeepSpeed or FSDP → the reason why they cannot be used, if there is one.

Source: DeepSpeed's JSON files and accelerate's FSDP plugin. What those take and this refuses: an optimizer
of DeepSpeed's own, which sees no groups of parameters, so that its weight decay moves frozen rows; a
scheduler of its own; and weights that stay in pieces at a save, from which no safetensors file is written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import StateDictType
from transformers import TrainingArguments

from ..files import read_json


def prepare_deepspeed(args: TrainingArguments) -> None:
    """What must be done before the model is loaded: refuse settings, and let DeepSpeed know of the processes.

    Without the latter ZeRO-3 loads a model as if there were one process. On GPUs transformers does it.
    """
    if not args.deepspeed:
        return
    check_deepspeed_settings(args.hf_deepspeed_config.config)
    if args.device.type == "cpu" and dist.is_initialized():
        import deepspeed

        deepspeed.init_distributed(dist.get_backend())


def check_deepspeed_settings(config: Mapping[str, Any] | str | os.PathLike) -> None:
    """Refuse what would train other weights than the recipe says, or not save them."""
    name = "the DeepSpeed configuration"
    if not isinstance(config, Mapping):
        name = str(config)
        config = read_json(config)
        if not isinstance(config, dict):
            raise ValueError(f"{name}: must hold an object, got {type(config).__name__}")
    if "optimizer" in config:
        raise ValueError(
            f"{name}: has an optimizer block. DeepSpeed's own optimizer puts all parameters into one group, "
            "and weight decay would move frozen rows. Remove the block; optim, learning_rate and the like "
            "are training arguments"
        )
    if "scheduler" in config:
        raise ValueError(
            f"{name}: has a scheduler block, which would replace lr_scheduler_type and warmup_steps of the "
            "training arguments. Remove the block"
        )
    zero = config.get("zero_optimization", {})
    if not isinstance(zero, Mapping):
        raise ValueError(f"{name}: zero_optimization must be an object, got {zero!r}")
    # The second is the entry's older name, which DeepSpeed still reads.
    names = (
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_gather_fp16_weights_on_model_save",
    )
    if zero.get("stage") == 3 and not any(zero.get(name) is True for name in names):
        raise ValueError(
            f"{name}: zero_optimization.stage3_gather_16bit_weights_on_model_save must be true under stage 3. "
            "Without it a save writes the pieces of each process, and no model.safetensors"
        )


def check_fsdp_settings(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse FSDP whose parameters have no rows, or that keeps the weights in pieces at a save."""
    if plugin.fsdp_version != 2:
        raise ValueError(
            f"fsdp version must be 2, got {plugin.fsdp_version}: version 1 flattens parameters, so that frozen rows "
            "cannot be compared with what they were"
        )
    kind = plugin.state_dict_type
    if kind != StateDictType.FULL_STATE_DICT:
        raise ValueError(
            f"fsdp state_dict_type must be FULL_STATE_DICT, got {kind.name}: without it a save writes the pieces of "
            "each process, and no model.safetensors"
        )
