"""What belongs to a run's state is in it: its figures, its best checkpoint, its model after evaluation; and
flags that mean something else here are refused."""

from __future__ import annotations

import shutil

import pytest
import torch
from model_fixtures import LAYOUT, PAD, being_vl_model
from training_fixtures import SMALL_RUN, StopAt, rows_of, run_ranks

from being_vl.training import logs
from being_vl.training.arguments import BeingVLTrainingArguments
from being_vl.training.collators import PaddingCollator
from being_vl.training.samples import TokenizedSamples
from being_vl.training.trainer import BeingVLTrainer
from being_vl.training.vq.trainer import VQTrainingArguments


def samples(count: int) -> TokenizedSamples:
    given = [
        {"id": str(i), "input_ids": [1, 5, 6 + i % 7, 7 + i, 9], "spoken": 3} for i in range(count)
    ]
    return TokenizedSamples(rows_of(given), LAYOUT)


def make_trainer(folder, *callbacks, count=10, **options):
    options = {**SMALL_RUN, "max_steps": 6, "per_device_train_batch_size": 2, "save_strategy": "steps",
               "save_steps": 2, "save_total_limit": None, "learning_rate": 1e-2, **options}  # fmt: skip
    return BeingVLTrainer(
        model=being_vl_model(),
        args=BeingVLTrainingArguments(output_dir=str(folder), **options),
        train_dataset=samples(count),
        eval_dataset=samples(4),
        data_collator=PaddingCollator(PAD),
        callbacks=list(callbacks),
    )


# ---- figures


@pytest.mark.parametrize("logging_steps", [1, 4, 100])
@pytest.mark.parametrize("stop", [3, 6])
def test_the_loss_of_a_resumed_run_is_that_of_the_whole(tmp_path, logging_steps, stop):
    """Stopped between two saves, and after the last step."""
    whole = make_trainer(tmp_path / "whole", logging_steps=logging_steps)
    wanted = whole.train()
    stopped = make_trainer(tmp_path / "stopped", StopAt(stop), logging_steps=logging_steps)
    if stop == 6:
        stopped = make_trainer(tmp_path / "stopped", logging_steps=logging_steps)
        stopped.train()
    else:
        with pytest.raises(KeyboardInterrupt):
            stopped.train()
    resumed = make_trainer(tmp_path / "stopped", logging_steps=logging_steps)
    got = resumed.train(resume_from_checkpoint=True)
    assert got.training_loss == pytest.approx(wanted.training_loss, rel=1e-6)
    assert got.metrics["train_loss"] == got.training_loss
    assert resumed.state.log_history[-1]["train_loss"] == got.training_loss
    assert wanted.training_loss > 1


# ---- the best checkpoint


def test_the_best_checkpoint_is_found_in_a_moved_folder(tmp_path):
    """With a rate that makes every step worse, step 2 is the best."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True,
               "metric_for_best_model": "eval_loss", "greater_is_better": True}  # fmt: skip
    whole = make_trainer(tmp_path / "whole", **options)
    whole.train()
    assert whole.state.best_model_checkpoint == str(tmp_path / "whole" / "checkpoint-2")
    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path / "here", StopAt(5), **options).train()
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = make_trainer(tmp_path / "there", **options)
    moved.train(resume_from_checkpoint=True)
    assert moved.state.best_model_checkpoint == str(tmp_path / "there" / "checkpoint-2")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, moved.model.state_dict()[name]), name


# ---- evaluation


@pytest.mark.parametrize("flag", ["bf16_full_eval", "fp16_full_eval"])
def test_a_full_evaluation_leaves_the_model_as_it_was(tmp_path, flag):
    trainer = make_trainer(tmp_path, **{flag: True})
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    figures = trainer.evaluate()
    for name, value in trainer.model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name]), name
    exact = make_trainer(tmp_path).evaluate()
    assert figures["eval_loss"] != exact["eval_loss"]  # it did compute in half precision
    assert figures["eval_loss"] == pytest.approx(exact["eval_loss"], rel=0.05)


# ---- flags


@pytest.mark.parametrize(
    "flag",
    [
        {"do_train": False}, {"do_predict": True}, {"auto_find_batch_size": True}, {"push_to_hub": True},
        {"logging_nan_inf_filter": True}, {"label_names": ["labels"]}, {"resume_from_checkpoint": "x"},
    ],
)  # fmt: skip
def test_flags_that_mean_something_else_are_refused(tmp_path, flag):
    with pytest.raises(ValueError, match=f"^{next(iter(flag))} must be "):
        BeingVLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **flag)


def test_a_service_that_is_not_installed_is_named_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "get_available_reporting_integrations", lambda: ["wandb"])
    options = {"output_dir": str(tmp_path), "use_cpu": True}
    with pytest.raises(ValueError, match=r"^report_to tensorboard: its package is not installed"):
        BeingVLTrainingArguments(**options, report_to="tensorboard")
    with pytest.raises(ValueError, match=r"^report_to must be none, all or of .*got 'tensorbord'"):
        VQTrainingArguments(**options, report_to=["tensorbord"])
    assert BeingVLTrainingArguments(**options, report_to="wandb").report_to == ["wandb"]
    assert BeingVLTrainingArguments(**options, report_to="none").report_to == []


# ---- two processes


def _worker(rank: int, folder: str, world: int, count: int) -> None:
    trainer = make_trainer(
        folder, count=count, max_steps=-1, num_train_epochs=2, save_strategy="no",
        per_device_train_batch_size=4 // world, train_sampling_strategy="sequential", optim="sgd",
        learning_rate=0.5, logging_steps=1,
    )  # fmt: skip
    trainer.train()
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    evaluated = trainer.evaluate(samples(count))["eval_loss"]
    if rank == 0:
        weights = (
            trainer.model.state_dict() if world == 1 else trainer.model_wrapped.module.state_dict()
        )
        torch.save({"losses": losses, "eval": evaluated, "weights": weights}, f"{folder}.pt")


@pytest.mark.parametrize("count", [5, 6, 7])
def test_two_processes_train_no_row_twice(tmp_path, count):
    """The last step of an epoch has 1, 2 or 3 rows; accelerate fills it up to 4."""
    for world in (1, 2):
        folder = str(tmp_path / str(world))
        run_ranks(_worker, folder, world, count, processes=world)
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    assert len(one["losses"]) == len(two["losses"]) == 4
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["eval"] == pytest.approx(one["eval"], rel=1e-5)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-5, rtol=1e-4)
