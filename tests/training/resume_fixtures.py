"""A training of seconds, and what can happen to its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from model_fixtures import LAYOUT, being_vl_model
from transformers import TrainingArguments

from being_vl.training.checkpoints import checkpoint_folders
from being_vl.training.collators import SharedImageCollator
from being_vl.training.distributed import prepare_deepspeed
from being_vl.training.packing import pack_shared_image
from being_vl.training.stages import prepare_stage
from being_vl.training.trainer import BeingVLTrainer


def make_rows(count: int = 22, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of several lengths: an image and a few questions."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        image = rng.integers(LAYOUT.first_code_id, LAYOUT.size, rng.integers(4, 12)).tolist()
        ids = rng.integers(3, LAYOUT.text_size, rng.integers(4, 8)).tolist()
        rows.append(pack_shared_image([1, LAYOUT.text_size + 2, *image], [(ids, [-100, *ids[1:]])]))
    return rows


def make_trainer(
    folder: Path, *, stage: str = "sft", freeze: str = "none", dropout: float = 0.1,
    make_model: Callable[[], Any] = being_vl_model, rows: Any = None, eval_rows: Any = None,
    **arguments: Any,
) -> BeingVLTrainer:  # fmt: skip
    """11 steps of two batches each: two epochs and a part; dropout draws random numbers."""
    values = {
        "max_steps": 11, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2, "weight_decay": 0.1, "lr_scheduler_type": "cosine",
        "warmup_steps": 2, "save_steps": 2, "save_total_limit": 2, "logging_steps": 3,
        "train_sampling_strategy": "group_by_length", "remove_unused_columns": False,
        "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3,
    }  # fmt: skip
    args = TrainingArguments(output_dir=str(folder), **{**values, **arguments})
    prepare_deepspeed(args)
    model = make_model()  # after the arguments: they say whether it is made in pieces
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    prepare_stage(model, stage, freeze=freeze)
    return BeingVLTrainer(
        model=model.train(),
        args=args,
        train_dataset=make_rows() if rows is None else rows,
        eval_dataset=eval_rows,
        data_collator=SharedImageCollator(0),
    )


def weights(trainer: BeingVLTrainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def equal_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def _missing(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: (checkpoint / name).unlink()


def _truncated(name: str) -> Callable[[Path], None]:
    return lambda checkpoint: os.truncate(
        checkpoint / name, (checkpoint / name).stat().st_size // 2
    )


def _one_bit(name: str) -> Callable[[Path], None]:
    def damage(checkpoint: Path) -> None:
        data = bytearray((checkpoint / name).read_bytes())
        data[len(data) // 2] ^= 1
        (checkpoint / name).write_bytes(data)

    return damage


# What is done to a checkpoint, and what must be said of it.
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    f"{kind.__name__[1:]} {name}": (kind(name), rf"{part} \({name}\) {said}")
    for name, part in (
        ("model.safetensors", "model weights"),
        ("optimizer.pt", "optimizer state"),
        ("scheduler.pt", "scheduler state"),
        ("rng_state.pth", "RNG state"),
        ("trainer_state.json", "trainer state"),
    )
    for kind, said in (
        (_missing, "is missing"),
        (_truncated, r"has \d+ bytes, \d+ were written"),
        (_one_bit, "has other bytes than were written"),
    )
}
DAMAGES["missing checkpoint_manifest.json"] = (
    _missing("checkpoint_manifest.json"),
    r"manifest \(checkpoint_manifest.json\) is missing",
)
DAMAGES["truncated checkpoint_manifest.json"] = (
    _truncated("checkpoint_manifest.json"),
    r"manifest \(checkpoint_manifest.json\) cannot be read",
)
DAMAGES["one_bit checkpoint_manifest.json"] = (
    _one_bit("checkpoint_manifest.json"),
    r"manifest \(checkpoint_manifest.json\) (has another content|cannot be read)",
)
DAMAGES["an empty folder"] = (
    lambda checkpoint: [path.unlink() for path in checkpoint.iterdir()],
    r"manifest \(checkpoint_manifest.json\) is missing",
)


def steps_on_disk(folder: Path) -> list[str]:
    return [path.name for path in checkpoint_folders(folder)]
