"""Training from nothing is an error, or counted aloud: samples, data sets, steps and runs without labels."""

from __future__ import annotations

import warnings

import pytest
import torch
from model_fixtures import LAYOUT, PAD, being_vl_model
from training_fixtures import SMALL_RUN, rows_of

from being_vl.training.arguments import BeingVLTrainingArguments
from being_vl.training.collators import PaddingCollator
from being_vl.training.samples import TokenizedSamples
from being_vl.training.trainer import BeingVLTrainer

SPOKEN = {"id": "spoken", "input_ids": [1, 5, 6, 7], "spoken": 2}
SILENT = {"id": "silent", "input_ids": [1, 5, 6], "spoken": 0}


def samples(*given, **options) -> TokenizedSamples:
    return TokenizedSamples(rows_of(list(given)), LAYOUT, **options)


def make_trainer(folder, rows, **options):
    options = {**SMALL_RUN, "per_device_train_batch_size": 2, "train_sampling_strategy": "sequential",
               "optim": "sgd", "learning_rate": 1.0, "num_train_epochs": 1, **options}  # fmt: skip
    return BeingVLTrainer(
        model=being_vl_model(),
        args=BeingVLTrainingArguments(output_dir=str(folder), **options),
        train_dataset=rows,
        data_collator=PaddingCollator(PAD),
    )


def test_a_data_set_without_labels_is_refused():
    with pytest.raises(ValueError, match=r"no sample of 2 has a label \(labels=assistant\)"):
        samples(SILENT, SILENT)
    first = {"id": "first", "input_ids": [5], "spoken": 1}  # its only token has nothing before it
    with pytest.raises(ValueError, match="no sample of 1 has a label"):
        samples(first)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert samples(SILENT, labels="all").num_without_labels == 0


def test_samples_without_labels_are_counted_aloud():
    with pytest.warns(UserWarning, match=r"2 of 3 samples have no label \(labels=assistant\)"):
        made = samples(SILENT, SPOKEN, SILENT)
    assert made.num_without_labels == 2 and len(made) == 3


def test_what_drop_long_leaves_out_is_counted_aloud():
    long = {"id": "long", "input_ids": [1] * 9, "spoken": 3}
    with pytest.warns(
        UserWarning, match="drop_long leaves out 2 of 3 samples, which are longer than 8"
    ):
        made = samples(long, SPOKEN, long, max_length=8, drop_long=True)
    assert made.num_too_long == 2 and len(made) == 1


@pytest.mark.filterwarnings("ignore:2 of 3 samples")
def test_a_step_without_labels_is_counted_aloud(tmp_path):
    trainer = make_trainer(tmp_path, samples(SILENT, SILENT, SPOKEN))
    with pytest.warns(UserWarning, match="1 of 2 steps had no label and learned nothing"):
        output = trainer.train()
    assert output.metrics["steps_without_labels"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 3}, "dataloader_drop_last leaves 0 steps: 2 sequences"),
        ({"num_train_epochs": 0}, "0 steps: num_train_epochs is 0"),
    ],
)  # fmt: skip
def test_no_step_is_no_run(tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        make_trainer(tmp_path, samples(SPOKEN, SPOKEN), **options).train()


@pytest.mark.parametrize("value", [-1, LAYOUT.size, 2**31 - 1])
def test_ids_out_of_range_are_named_before_training(value):
    bad = {"id": "bad one", "input_ids": [1, 5, value], "spoken": 1}
    words = rf"sample 1 \(id 'bad one'\): input_ids must be in \[0, {LAYOUT.size}\), got {value}"
    with pytest.raises(ValueError, match=words):
        samples(SPOKEN, bad, SPOKEN)


@pytest.mark.parametrize(("column", "value"), [("length", 3), ("assistant_masks", [1])])
def test_columns_that_disagree_are_named_before_training(column, value):
    data = rows_of([SPOKEN, SPOKEN])
    kind = data.features
    rows = [{**row, column: value} if i else row for i, row in enumerate(data)]
    with pytest.raises(
        ValueError, match=rf"sample 1 \(id 'spoken'\): input_ids has 4 values, but {column} says"
    ):
        TokenizedSamples(type(data).from_list(rows, features=kind), LAYOUT)


def test_labels_are_counted_as_they_are_made():
    """One pass over the columns counts what `make_labels` makes of each sample."""
    rng = torch.Generator().manual_seed(0)
    given = [
        {"id": str(n), "input_ids": torch.randint(0, LAYOUT.size, (n,), generator=rng).tolist(),
         "spoken": n // 2}
        for n in range(1, 12)
    ]  # fmt: skip
    for labels in ("assistant", "text", "all"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = samples(*given, labels=labels)
        without = sum((row["labels"] == -100).all() for row in made.__getitems__(range(len(made))))
        assert made.num_without_labels == without
