"""Configurations of DeepSpeed, FSDP and accelerate: which are refused and why, and that ours load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin

from being_vl.training.distributed import check_deepspeed_settings, check_fsdp_settings

CONFIGS = Path(__file__).parents[2] / "hub_configs"
GATHER = "stage3_gather_16bit_weights_on_model_save"


@pytest.mark.parametrize("stage", [2, 3])
def test_our_deepspeed_files_are_taken(stage):
    path = CONFIGS / "deepspeed" / f"zero{stage}.json"
    check_deepspeed_settings(path)
    config = json.loads(path.read_text())
    assert config["zero_optimization"]["stage"] == stage
    # What the training arguments decide must be left to them.
    for name in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        assert config[name] == "auto"
    assert config["bf16"] == {"enabled": "auto"}


@pytest.mark.parametrize(
    "path", sorted((CONFIGS / "accelerate").glob("*.yaml")), ids=lambda p: p.stem
)
def test_our_accelerate_files_load(path):
    """accelerate's own loader, which refuses unknown keys; the first line is the command."""
    assert f"--config_file hub_configs/accelerate/{path.name}" in path.read_text().splitlines()[0]
    config = load_config_from_file(str(path))
    name = config.distributed_type.value
    assert name == {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(path.stem, "DEEPSPEED")
    if name == "DEEPSPEED":
        check_deepspeed_settings(CONFIGS.parent / config.deepspeed_config["deepspeed_config_file"])
    if name == "FSDP":
        values = {key.removeprefix("fsdp_"): value for key, value in config.fsdp_config.items()}
        values["transformer_cls_names_to_wrap"] = [values.pop("transformer_layer_cls_to_wrap")]
        values["fsdp_version"] = values.pop("version")
        check_fsdp_settings(FullyShardedDataParallelPlugin(**values))


@pytest.mark.parametrize(
    "config, said",
    [
        ({"optimizer": {"type": "AdamW"}}, "has an optimizer block.*frozen rows"),
        ({"scheduler": {"type": "WarmupLR"}}, "has a scheduler block.*lr_scheduler_type"),
        ({"zero_optimization": {"stage": 3}}, f"{GATHER} must be true.*no model.safetensors"),
        ({"zero_optimization": {"stage": 3, GATHER: False}}, f"{GATHER} must be true"),
        ({"zero_optimization": 3}, "zero_optimization must be an object, got 3"),
    ],
)
def test_refused_with_the_reason(tmp_path, config, said):
    with pytest.raises(ValueError, match=f"the DeepSpeed configuration: .*{said}"):
        check_deepspeed_settings(config)
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"zero\.json: .*{said}"):
        check_deepspeed_settings(path)


def test_unreadable_files(tmp_path):
    path = tmp_path / "zero.json"
    with pytest.raises(OSError, match=r"zero\.json"):
        check_deepspeed_settings(path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"zero\.json: not valid JSON"):
        check_deepspeed_settings(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"zero\.json: must hold an object, got list"):
        check_deepspeed_settings(path)


def test_fsdp_1_is_refused():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="FULL_STATE_DICT")
    plugin.fsdp_version = 1  # which cannot be made without an accelerator
    with pytest.raises(ValueError, match="fsdp version must be 2, got 1: version 1 flattens"):
        check_fsdp_settings(plugin)


def test_fsdp_in_pieces_is_refused():
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type="SHARDED_STATE_DICT")
    with pytest.raises(ValueError, match="must be FULL_STATE_DICT, got SHARDED_STATE_DICT"):
        check_fsdp_settings(plugin)
