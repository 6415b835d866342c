"""Frozen rows that moved are named at the save, in every kind of training."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import LAYOUT, being_vl_model
from training_fixtures import arguments, checkpoint_folder, tokenized

from being_vl import BeingVLForCausalLM
from being_vl.training.frozen_check import FrozenRowsCheck, FrozenRowsMoved
from being_vl.training.run import run_stage
from being_vl.training.stage_trainer import load_for_training, make_trainer

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_bit_of_one_number_is_found_and_named(dtype):
    model = being_vl_model(dtype=dtype)
    model.freeze_text_embeddings()
    check = FrozenRowsCheck(model)
    with torch.no_grad():
        model.lm_head.weight[LAYOUT.text_size :] += 1
    check.verify()
    bits = model.lm_head.weight.data.view(torch.int16 if dtype == torch.bfloat16 else torch.int32)
    bits[17, 3] ^= 1
    with pytest.raises(FrozenRowsMoved, match=r"lm_head\.weight: rows 17 are frozen"):
        check.verify()
    bits[17, 3] ^= 1
    check.verify()
    bits[2:10] ^= 1
    with pytest.raises(FrozenRowsMoved, match="rows 2, 3, 4, 5, 6 and 3 more"):
        check.verify()


def test_nothing_frozen_nothing_checked():
    model = being_vl_model()
    check = FrozenRowsCheck(model)
    with torch.no_grad():
        model.lm_head.weight += 1
    check.verify()


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "start"
    model, processor = checkpoint_folder(folder, tied=request.param)
    return folder, model, tokenized(processor)


def moved_rows(before, folder):
    after = BeingVLForCausalLM.from_pretrained(folder).state_dict()
    start = before.state_dict()
    rows = {name: (start[name] != after[name]).any(dim=1) for name in EMBEDDINGS}
    rest = {n for n in start if n not in EMBEDDINGS and not torch.equal(start[n], after[n])}
    return rows, rest


@pytest.mark.parametrize("options", [{}, {"activation_checkpointing": True}, {"bf16": True}])
def test_only_the_rows_of_the_stage_move(tmp_path, checkpoint, options):
    """Text rows stay in pretrain, image rows in sft with freeze=image; the others move; tied and not."""
    start, model, data = checkpoint
    layout, options = model.config.layout, {"weight_decay": 0.5, **options}
    trained = run_stage(
        *arguments(start, tmp_path / "pt", stage={"stage": "pretrain", "labels": "all"}, **options),
        train_dataset=data,
    )
    rows, rest = moved_rows(model, trained.output_dir)
    assert not rest
    for moved in rows.values():
        assert not moved[: layout.text_size].any()
        assert moved[layout.first_code_id :].sum() >= 8
    stage = {"stage": "sft", "freeze": "image", "labels": "all"}
    trained = run_stage(
        *arguments(start, tmp_path / "sft", stage=stage, **options), train_dataset=data
    )
    rows, rest = moved_rows(model, trained.output_dir)
    assert len(rest) == len(model.state_dict()) - 2
    for moved in rows.values():
        assert not moved[layout.first_code_id :].any()
        assert moved[: layout.text_size].sum() >= 20


def test_the_middle_stage_moves_new_rows_and_chosen_layers(tmp_path, checkpoint):
    start, model, data = checkpoint
    stage = {"stage": "selective", "train_layers": [1]}
    trained = run_stage(*arguments(start, tmp_path / "mid", stage=stage), train_dataset=data)
    rows, rest = moved_rows(model, trained.output_dir)
    assert rest == {n for n in model.state_dict() if n.startswith("model.layers.1.")}
    assert not any(moved[: model.config.layout.text_size].any() for moved in rows.values())
    stage = {"stage": "selective", "train_embeddings": "all"}
    trained = run_stage(*arguments(start, tmp_path / "all", stage=stage), train_dataset=data)
    rows, rest = moved_rows(model, trained.output_dir)
    assert rest == {n for n in model.state_dict() if n.startswith("model.layers.0.")}
    assert rows["lm_head.weight"][: model.config.layout.text_size].any()


def test_a_save_after_rows_have_moved_raises(tmp_path, checkpoint):
    """An optimizer that decays frozen rows is caught at the first save, which leaves no checkpoint."""
    start, _, data = checkpoint
    model_args, data_args, stage_args, training_args = arguments(
        start,
        tmp_path / "out",
        stage={"stage": "pretrain"},
        save_strategy="steps",
        save_steps=1,
        weight_decay=0.5,
    )
    model, processor = load_for_training(model_args, stage_args)
    trainer = make_trainer(model, processor, data, None, data_args, stage_args, training_args)
    trainer.get_decay_parameter_names = lambda model: [n for n, _ in model.named_parameters()]
    with pytest.raises(FrozenRowsMoved, match=r"embed_tokens\.weight: rows 0, 1, 2, 3, 4 and"):
        trainer.train()
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.parametrize("freeze", ["none", "image"])
def test_lora_moves_adapted_layers_and_new_rows(tmp_path, checkpoint, freeze):
    """The merged checkpoint: text rows and norms as before, new rows (unless frozen) and linear layers not."""
    start, model, data = checkpoint
    layout = model.config.layout
    trained = run_stage(
        *arguments(
            start,
            tmp_path / "out",
            model={"use_peft": True, "lora_r": 4},
            stage={"stage": "sft", "freeze": freeze, "labels": "all"},
            weight_decay=0.5,
        ),
        train_dataset=data,
    )
    rows, rest = moved_rows(model, trained.output_dir)
    linear = {n for n in model.state_dict() if "_proj" in n}
    assert len(linear) == 14 and rest == linear
    for moved in rows.values():
        assert not moved[: layout.text_size].any()
        assert moved[layout.first_code_id :].any() == (freeze == "none")
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    "name, value", [("lora_r", 0), ("lora_r", 10**30), ("lora_alpha", 10**400), ("lora_dropout", 1)]
)
def test_sizes_of_lora_are_checked(tmp_path, checkpoint, name, value):
    options = arguments(checkpoint[0], tmp_path, model={"use_peft": True, name: value})
    with pytest.raises(ValueError, match=f"^{name} must be in .*got 1?0*(\\.{{3}})?$"):
        load_for_training(options[0], options[2])


def test_lora_is_for_sft(tmp_path, checkpoint):
    options = arguments(
        checkpoint[0], tmp_path, model={"use_peft": True}, stage={"stage": "pretrain"}
    )
    with pytest.raises(ValueError, match="use_peft is for the stage sft, got pretrain"):
        load_for_training(options[0], options[2])
