"""Checkpoints are whole or absent, damage is named, and a stopped run goes on bit for bit."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
import warnings
import zlib
from functools import partial

import numpy as np
import pytest
import torch
from model_fixtures import being_vl_model
from resume_fixtures import (
    DAMAGES,
    equal_weights,
    make_rows,
    make_trainer,
    steps_on_disk,
    weights,
)
from transformers import TrainerCallback

from being_vl.training import checkpoints
from being_vl.training.checkpoints import DamagedCheckpointError, read_manifest
from being_vl.training.identity import data_identity


class Stop(Exception):
    """Stands for a kill: nothing of the trainer runs after it."""


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Stop


def stop_and_resume(folder, stop_at: int, **arguments):
    """The trainer of a run that was stopped before step `stop_at + 1` and resumed in a fresh one."""
    trainer = make_trainer(folder, **arguments)
    trainer.add_callback(StopAt(stop_at))
    with pytest.raises(Stop):
        trainer.train()
    torch.manual_seed(stop_at)  # the random numbers must come from the checkpoint
    trainer = make_trainer(folder, **arguments)
    trainer.train(resume_from_checkpoint="auto")
    return trainer


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "stop_at, arguments",
    [
        (1, {}),  # before the first checkpoint
        (6, {}),  # at the end of an epoch
        (9, {}),  # amid an epoch
        (9, {"train_sampling_strategy": "random", "dataloader_num_workers": 1}),
        (9, {"activation_checkpointing": True, "stage": "pretrain"}),
        (8, {"gradient_accumulation_steps": 4, "save_strategy": "epoch", "max_steps": -1}),
        (7, {"bf16": True, "max_grad_norm": 0.1}),
    ],
)
def test_a_stopped_run_ends_with_the_same_weights(tmp_path, stop_at, arguments):
    undisturbed = make_trainer(tmp_path / "whole", **arguments)
    undisturbed.train()
    resumed = stop_and_resume(tmp_path / "stopped", stop_at, **arguments)
    assert resumed.state.global_step == undisturbed.state.global_step
    assert equal_weights(weights(resumed), weights(undisturbed))
    losses = [
        [(log["step"], log["loss"]) for log in trainer.state.log_history if "loss" in log]
        for trainer in (resumed, undisturbed)
    ]
    assert losses[0] == losses[1]


def test_resuming_at_the_last_step_takes_no_step(whole_run):
    trainer = make_trainer(whole_run.args.output_dir)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 11
    assert equal_weights(weights(trainer), weights(whole_run))


# The rest of them is in soak_train.py.
@pytest.mark.parametrize(
    "kind",
    [kind for kind in DAMAGES if kind.startswith("missing")]
    + ["truncated model.safetensors", "truncated trainer_state.json", "one_bit optimizer.pt"]
    + ["truncated checkpoint_manifest.json"],
)
def test_damage_is_named_and_the_checkpoint_before_is_used(tmp_path, whole_run, kind):
    folder = tmp_path / "run"
    shutil.copytree(whole_run.args.output_dir, folder)
    assert steps_on_disk(folder) == ["checkpoint-11", "checkpoint-10"]
    damage, said = DAMAGES[kind]
    damage(folder / "checkpoint-11")
    trainer = make_trainer(folder)
    with pytest.warns(UserWarning, match=rf"checkpoint-11: .*{said}.*Going on from .*-10"):
        trainer.train(resume_from_checkpoint=True)
    assert equal_weights(weights(trainer), weights(whole_run))
    read_manifest(folder / "checkpoint-11")  # whole again

    damage(folder / "checkpoint-10")
    damage(folder / "checkpoint-11")
    for wanted in (True, "auto"):
        with pytest.raises(ValueError, match=rf"no checkpoint is whole.*{said}.*-10: .*{said}"):
            make_trainer(folder).train(resume_from_checkpoint=wanted)
    with pytest.raises(ValueError, match=said):
        make_trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-10"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"learning_rate": 2e-2}, "settings.learning_rate is 0.01, now 0.02"),
        ({"seed": 4}, "settings.seed is 3, now 4"),
        ({"gradient_accumulation_steps": 1}, "settings.gradient_accumulation_steps is 2, now 1"),
        ({"rows": make_rows(21)}, "data.samples is 22, now 21"),
        ({"rows": make_rows(seed=1)}, "data.digest is"),
        ({"stage": "pretrain"}, "model.names_shapes_and_freezing is"),
        ({"make_model": partial(being_vl_model, tied=True)}, "model.num_parameters is"),
        ({"make_model": partial(being_vl_model, seed=1)}, "model.initial_weights is"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(whole_run, changes, said):
    trainer = make_trainer(whole_run.args.output_dir, **changes)
    before = weights(trainer)
    with pytest.raises(ValueError, match=f"of another run: .*{said}"):
        trainer.train(resume_from_checkpoint="auto")
    assert equal_weights(before, weights(trainer))


def test_what_does_not_decide_the_weights_may_change(tmp_path, whole_run):
    folder = tmp_path / "run"
    shutil.copytree(whole_run.args.output_dir, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        trainer = make_trainer(
            folder, save_steps=3, save_total_limit=None, dataloader_num_workers=1
        )
        trainer.train(resume_from_checkpoint=str(folder / "checkpoint-10"))
    assert equal_weights(weights(trainer), weights(whole_run))


def test_nothing_to_resume(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        make_trainer(tmp_path).train(resume_from_checkpoint=True)
    for content, said in (
        ("[]", "has another content"),
        ('{"step": 2}', "has another content"),
        (json.dumps({"version": 2, "crc32": zlib.crc32(b'{"version": 2}')}), "is of version 2"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / "checkpoint_manifest.json").write_text(content)
        with pytest.raises(DamagedCheckpointError, match=said):
            read_manifest(tmp_path / "other")
    with pytest.raises(DamagedCheckpointError, match="no such folder"):
        read_manifest(tmp_path / "checkpoint-2")
    make_trainer(tmp_path, max_steps=2, save_only_model=True).train()
    with pytest.raises(ValueError, match="checkpoint-2: saved with save_only_model"):
        make_trainer(tmp_path, max_steps=2).train(resume_from_checkpoint=True)


def write_checkpoint(folder, step: int, text: str) -> None:
    """A save with save_total_limit 1, of one file."""
    checkpoint = folder / f"checkpoint-{step}"
    checkpoints.clean_up(folder)
    partial = checkpoints.partial_folder(checkpoint)
    partial.mkdir(parents=True)
    (partial / "model.safetensors").write_text(text)
    checkpoints.publish(checkpoint, {})
    checkpoints.rotate(checkpoint, 1)


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("call", ["os.rename", "os.replace", "os.fsync", "os.unlink", "os.rmdir"])
def test_something_whole_is_there_whenever_a_save_stops(tmp_path, monkeypatch, call, step):
    """Stopped at every call that changes the disk, over the same checkpoint (1) and after it (2)."""
    original, finished, count = getattr(os, call[3:]), False, 0
    while not finished:
        folder = tmp_path / str(count)
        write_checkpoint(folder, 1, "old")
        calls = []

        def failing(*args, _calls=calls, _count=count, **kwargs):
            _calls.append(args)
            if len(_calls) > _count:
                raise Stop
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(call, failing)
            try:
                write_checkpoint(folder, step, "new")
                finished = True
            except Stop:
                pass
        checkpoints.clean_up(folder)
        found, _, damaged = checkpoints.newest_whole_checkpoint(folder)
        assert not damaged
        text = (found / "model.safetensors").read_text()
        assert text in ("old", "new") and (text == "new" or not finished)
        assert {path.name for path in folder.iterdir()} <= {"checkpoint-1", "checkpoint-2"}
        write_checkpoint(folder, 2, "again")
        assert steps_on_disk(folder) == ["checkpoint-2"]
        count += 1
    assert count > 1


def test_the_best_model_is_kept_and_loaded(tmp_path):
    trainer = make_trainer(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        max_steps=6,
        eval_rows=make_rows(4),
    )
    trainer.train()
    best = tmp_path / f"checkpoint-{trainer.state.best_global_step}"
    assert trainer.state.best_model_checkpoint == str(best)
    state = json.loads((best / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(best)
    read_manifest(best)


def test_no_pickle_is_executed(tmp_path, whole_run):
    """Even one with a manifest that vouches for it."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    entries = ("resumable", "run", "log_window")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        folder = tmp_path / name
        shutil.copytree(whole_run.args.output_dir, folder)
        (folder / "checkpoint-10" / name).write_bytes(pickle.dumps(Evil()))
        manifest = checkpoints.read_manifest(folder / "checkpoint-11")
        (folder / "checkpoint-10" / "checkpoint_manifest.json").unlink()
        partial = checkpoints.partial_folder(folder / "checkpoint-10")
        partial.parent.mkdir()
        os.rename(folder / "checkpoint-10", partial)
        checkpoints.publish(folder / "checkpoint-10", {k: manifest[k] for k in entries})
        with pytest.raises(pickle.UnpicklingError):
            make_trainer(folder).train(resume_from_checkpoint=str(folder / "checkpoint-10"))
        assert not (tmp_path / "executed").exists()


def test_the_identity_of_rows():
    """Equal rows have equal digests, whatever holds them; other rows, other ones."""
    rows = [
        {"ids": np.arange(3), "text": "a", "list": [1, 2], "nested": [{"x": 1.5}, None]},
        {"ids": torch.arange(3), "text": "b", "list": [1, 2], "nested": []},
    ]
    wanted = data_identity(rows)
    assert wanted == data_identity(tuple(copy.deepcopy(rows))) and wanted["samples"] == 2
    for name, value in (
        ("ids", np.arange(3, dtype=np.int32)),
        ("text", "c"),
        ("list", [1, 3]),
        ("list", [12]),
        ("nested", [{"x": 1.25}, None]),
        ("new", 0),
    ):
        assert data_identity([{**rows[0], name: value}, rows[1]]) != wanted, (name, value)
    many = [{"x": i} for i in range(1000)]
    assert data_identity(many) != data_identity([*many[:-1], {"x": 0}])


def test_rows_that_are_others_at_each_reading_have_no_digest():
    class Random(list):
        def __getitem__(self, index):
            return {"pixels": torch.rand(2)}

    assert data_identity(Random(range(3))) == {"samples": 3}
    assert data_identity(iter([])) == {"samples": None}
