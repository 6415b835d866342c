"""What moves in which stage; rows that must stay are in test_frozen_check.py."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_fixtures import LAYOUT, being_vl_model
from transformers import TrainingArguments

from being_vl.training.collators import SharedImageCollator
from being_vl.training.packing import pack_shared_image
from being_vl.training.stages import prepare_stage
from being_vl.training.trainer import BeingVLTrainer


def train(model, tmp_path, **options):
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(16):
        image = rng.integers(LAYOUT.first_code_id, LAYOUT.size, 6).tolist()
        ids = rng.integers(3, LAYOUT.text_size, 6).tolist()
        rows.append(pack_shared_image([1, LAYOUT.text_size + 2, *image], [(ids, [-100, *ids[1:]])]))
    args = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        weight_decay=0.5,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        use_cpu=True,
        **options,
    )
    trainer = BeingVLTrainer(
        model=model, args=args, train_dataset=rows, data_collator=SharedImageCollator(0)
    )
    trainer.train()
    return trainer


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_each_stage_starts_afresh(tmp_path):
    model = being_vl_model()
    prepare_stage(model, "pretrain")
    prepare_stage(model, "sft")
    before = snapshot(model)
    train(model, tmp_path)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before.values(), snapshot(model).values(), strict=True)
    )


def test_pretrain_all_moves_everything(tmp_path):
    model = being_vl_model()
    prepare_stage(model, "pretrain", train_embeddings="all")
    before = snapshot(model)
    train(model, tmp_path)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(before.values(), snapshot(model).values(), strict=True)
    )


def test_embeddings_take_no_decay(tmp_path):
    model = being_vl_model()
    decayed = train(model, tmp_path).get_decay_parameter_names(model)
    assert "model.embed_tokens.weight" not in decayed
    assert "lm_head.weight" not in decayed
    assert "model.layers.0.self_attn.q_proj.weight" in decayed


@pytest.mark.parametrize(
    "options, message",
    [
        ({"stage": "stage-1"}, "stage must be one of pretrain, selective, sft, got 'stage-1'"),
        ({"stage": "sft", "freeze": "text"}, "freeze must be one of none, image"),
        ({"stage": "pretrain", "train_embeddings": "text"}, "train_embeddings must be one of"),
    ],
)
def test_unknown_names(options, message):
    with pytest.raises(ValueError, match=message):
        prepare_stage(being_vl_model(), **options)
