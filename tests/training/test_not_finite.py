"""NaN and infinities stop a run: the step is named, nothing of it is saved, the last good checkpoint stays."""

from __future__ import annotations

import pytest
import torch
from model_fixtures import LAYOUT, PAD, being_vl_model
from resume_fixtures import steps_on_disk
from training_fixtures import SMALL_RUN, rows_of
from transformers import TrainerCallback

from being_vl.training.arguments import BeingVLTrainingArguments
from being_vl.training.checkpoints import read_manifest
from being_vl.training.collators import PaddingCollator
from being_vl.training.samples import TokenizedSamples
from being_vl.training.trainer import BeingVLTrainer, TrainingDiverged


class PoisonAfter(TrainerCallback):
    """After a step a weight becomes a value."""

    def __init__(self, step: int, value: float):
        self.step, self.value = step, value

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            with torch.no_grad():
                model.model.norm.weight[0] = self.value


def make_trainer(folder, *callbacks, **options):
    given = [{"id": str(i), "input_ids": [1, 5, 6, 7 + i], "spoken": 2} for i in range(8)]
    rows = TokenizedSamples(rows_of(given), LAYOUT)
    options = {**SMALL_RUN, "max_steps": 8, "per_device_train_batch_size": 2, "save_strategy": "steps",
               "save_steps": 2, "logging_steps": 1, **options}  # fmt: skip
    return BeingVLTrainer(
        model=being_vl_model(),
        args=BeingVLTrainingArguments(output_dir=str(folder), **options),
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=PaddingCollator(PAD),
        callbacks=list(callbacks),
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("logging_steps", [1, 100])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, value, logging_steps):
    """The fourth step's loss is the first of a poisoned model; it is seen at the next log or save."""
    trainer = make_trainer(tmp_path, PoisonAfter(3, value), logging_steps=logging_steps)
    with pytest.raises(
        TrainingDiverged, match=r"step 4: the loss is not finite\..*is .*checkpoint-2;"
    ) as error:
        trainer.train()
    assert "lower learning_rate" in str(error.value)
    assert steps_on_disk(tmp_path) == ["checkpoint-2"]
    read_manifest(tmp_path / "checkpoint-2")
    assert not any(str(log.get("loss")) in ("0", "0.0", "nan") for log in trainer.state.log_history)


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path):
    """The loss of the last step is finite; what it made of the weights is not."""
    trainer = make_trainer(tmp_path, PoisonAfter(8, float("nan")), save_steps=4, logging_steps=100)
    with pytest.raises(TrainingDiverged, match=r"step 8: model\.norm\.weight is not finite"):
        trainer.train()
    assert steps_on_disk(tmp_path) == ["checkpoint-4"]


def test_a_real_divergence_stops(tmp_path):
    trainer = make_trainer(
        tmp_path, learning_rate=1e38, optim="sgd", max_grad_norm=0.0, warmup_steps=0
    )
    with pytest.raises(
        TrainingDiverged, match=r"step \d: .* not finite\. .*no checkpoint was saved before it"
    ):
        trainer.train()
    assert steps_on_disk(tmp_path) == []


def test_weights_in_float16_are_named_as_the_cause(tmp_path):
    """As a checkpoint that was saved in float16 is loaded without a dtype."""
    trainer = make_trainer(tmp_path, optim="adamw_torch", warmup_steps=0)
    trainer.model.half()
    with pytest.raises(
        TrainingDiverged, match=r"not finite\. .*; load the weights with dtype float32"
    ):
        trainer.train()


def test_an_evaluation_that_is_not_finite_stops(tmp_path):
    trainer = make_trainer(tmp_path)
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    with pytest.raises(TrainingDiverged, match="loss of the evaluation is not finite"):
        trainer.evaluate()


def test_frozen_weights_are_not_read(tmp_path):
    """Only what trains is checked: a base may hold what it likes in rows that nobody uses."""
    trainer = make_trainer(tmp_path)
    trainer.model.requires_grad_(False)
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    trainer.check_finite()
