"""The loss and its normalisation, and the figures in the logs, against plain arithmetic."""

from __future__ import annotations

import itertools
import types

import numpy as np
import pytest
import torch
from model_fixtures import BOI, EOI, LAYOUT, PAD, being_vl_model
from torch.nn import functional as F
from training_fixtures import SMALL_RUN, rows_of, run_ranks
from transformers import TrainerCallback

from being_vl.training.arguments import BeingVLTrainingArguments
from being_vl.training.collators import (
    FlatCollator,
    PaddingCollator,
    SharedImageCollator,
    block_mask,
)
from being_vl.training.packing import PackedSamples, SharedImageSamples
from being_vl.training.samples import IGNORE_INDEX, TokenizedSamples
from being_vl.training.trainer import BeingVLTrainer

CODE, MERGE = LAYOUT.first_code_id, LAYOUT.first_merge_id
WEIGHTS = (1.0, 0.25, 3.0)


def data(count: int = 8, seed: int = 0) -> TokenizedSamples:
    """Samples of other lengths, each with an image of 3 codes and 2 merges; everything is a label."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(count):
        image = [*rng.integers(CODE, MERGE, 3), *rng.integers(MERGE, LAYOUT.size, 2)]
        text = rng.integers(3, LAYOUT.text_size, 2 + number)
        samples.append({"id": str(number), "input_ids": [1, BOI, *image, EOI, *text], "spoken": 1})
    return TokenizedSamples(rows_of(samples), LAYOUT, labels="all")


def spoken_rows() -> TokenizedSamples:
    """Four questions about one image and one about none; the last two ids of each are labels."""
    rng = np.random.default_rng(0)
    image = [1, BOI, CODE, MERGE, EOI]
    samples = [
        {
            "id": str(n),
            "input_ids": [*image[: 5 if n else 1], *rng.integers(3, 90, 3 + n)],
            "spoken": 2,
        }
        for n in range(5)
    ]
    return TokenizedSamples(rows_of(samples), LAYOUT)


def make_trainer(
    folder,
    *,
    model=None,
    model_init=None,
    rows=None,
    collator=None,
    label_weights=(1.0, 1.0, 1.0),
    compute_metrics=None,
    **options,
):
    options = {
        **SMALL_RUN,
        "max_steps": 1,
        "per_device_train_batch_size": 4,
        "optim": "sgd",
        "learning_rate": 1.0,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        **options,
    }
    return BeingVLTrainer(
        model=None if model_init else model or being_vl_model(),
        model_init=model_init,
        args=BeingVLTrainingArguments(output_dir=str(folder), **options),
        train_dataset=rows or data(),
        eval_dataset=data(),
        data_collator=collator or PaddingCollator(PAD),
        label_weights=label_weights,
        compute_metrics=compute_metrics,
    )


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("by_init", [True, False])
def test_a_trained_checkpoint_has_the_use_cache_that_the_model_had(tmp_path, use_cache, by_init):
    model = being_vl_model()
    model.config.use_cache = use_cache
    given = {"model_init": lambda: model} if by_init else {"model": model}
    trainer = make_trainer(tmp_path, **given)
    assert trainer.model.config.use_cache == use_cache
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    saved = type(model).from_pretrained(tmp_path / "saved")
    assert saved.config.use_cache == use_cache
    ids = torch.tensor([[3, 4]])
    assert (saved(input_ids=ids).past_key_values is not None) == use_cache


def plain_loss(model, rows, weights=(1.0, 1.0, 1.0)) -> tuple[torch.Tensor, dict[str, float]]:
    """Σ w·ce / Σ w over all labels, row by row through a plain forward; and the means by kind."""
    total, weight_sum, by_kind = 0.0, 0.0, {}
    for number in range(len(rows)):
        ids = torch.from_numpy(rows[number]["input_ids"]).long()[None]
        logits = model(input_ids=ids).logits[0, :-1]
        for loss, target in zip(
            F.cross_entropy(logits, ids[0, 1:], reduction="none"), ids[0, 1:].tolist(), strict=True
        ):
            kind = 0 if target < CODE else 1 if target < MERGE else 2
            total, weight_sum = total + weights[kind] * loss, weight_sum + weights[kind]
            by_kind.setdefault(("text", "code", "merge")[kind], []).append(loss.item())
    return total / weight_sum, {kind: np.mean(values) for kind, values in by_kind.items()}


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), WEIGHTS, (1.0, 0.0, 0.0)])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
def test_a_step_is_that_of_the_weighted_mean(tmp_path, weights, accumulation):
    """One SGD step on all 8 rows, in 1, 2 or 4 batches: loss, figures and weights of the plain mean."""
    expected = being_vl_model().train()
    loss, by_kind = plain_loss(expected, data(), weights)
    loss.backward()
    trainer = make_trainer(
        tmp_path,
        label_weights=weights,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for kind, value in by_kind.items():
        assert logs[f"loss_{kind}"] == pytest.approx(value, rel=1e-5)
    assert logs["merge_share"] == pytest.approx(0.4)
    for name, parameter in expected.named_parameters():
        stepped = parameter - parameter.grad
        torch.testing.assert_close(
            dict(trainer.model.named_parameters())[name], stepped, atol=2e-5, rtol=1e-4
        )


def test_weights_of_one_give_the_models_own_loss(tmp_path):
    """Equal to `ForCausalLMLoss`, which a plain Trainer would use."""
    trainer = make_trainer(tmp_path)
    batch = PaddingCollator(PAD)([data()[i] for i in range(4)])
    with torch.no_grad():
        own = trainer.model(**batch).loss
        ours = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(ours, own)


def test_a_step_without_labels_moves_nothing(tmp_path):
    samples = [{"id": "silent", "input_ids": [1, 5, 6], "spoken": 0}] * 4
    samples.append(
        {"id": "spoken", "input_ids": [1, 5, 6], "spoken": 1}
    )  # in a step that is not taken
    model = being_vl_model()
    before = {n: p.clone() for n, p in model.named_parameters()}
    with pytest.warns(UserWarning, match="4 of 5 samples have no label"):
        rows = TokenizedSamples(rows_of(samples), LAYOUT)
    trainer = make_trainer(tmp_path, model=model, rows=rows, train_sampling_strategy="sequential")
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == 0
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def a_clock_that_ticks_when_it_is_read(monkeypatch):
    """Its readings are 0, 1, 4, 9, 16, …"""
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: next(ticks) ** 2)
    monkeypatch.setattr("being_vl.training.logs.time", clock)


def test_throughput_counts_tokens_and_images(tmp_path, monkeypatch):
    """With a second between two readings: tokens without padding, images by their beginnings."""
    a_clock_that_ticks_when_it_is_read(monkeypatch)
    rows = data()
    trainer = make_trainer(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["tokens_per_second"] == pytest.approx(int(rows.lengths.sum()))
    assert logs["images_per_second"] == pytest.approx(8)
    assert trainer._meters[True].read(trainer.accelerator) == {}


def test_saves_and_evaluations_are_not_in_the_throughput(tmp_path, monkeypatch):
    """Start at 0, evaluation from 1 to 4, save from 9 to 16, log at 25: 15 seconds of training."""
    a_clock_that_ticks_when_it_is_read(monkeypatch)
    options = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    rows = data()
    trainer = make_trainer(
        tmp_path, per_device_train_batch_size=8, max_steps=2, logging_steps=2, **options
    )
    trainer.train()
    logs = next(logs for logs in trainer.state.log_history if "loss" in logs)
    assert logs["tokens_per_second"] == pytest.approx(2 * int(rows.lengths.sum()) / 15)


@pytest.mark.parametrize("packing", ["samples", "shared_image"])
def test_a_packed_step_is_that_of_the_rows_apart(tmp_path, packing):
    """Through the trainer, all rows in one batch: the same loss, the same weights after an SGD step."""
    rows = spoken_rows()
    if packing == "samples":
        packed, collator = PackedSamples(rows, 30), PaddingCollator(PAD)
    else:
        packed, collator = (
            SharedImageSamples(rows, eoi_token_id=EOI, max_length=60),
            SharedImageCollator(PAD),
        )
    assert len(packed) == 2
    stepped = []
    for number, (dataset, collate) in enumerate(((rows, PaddingCollator(PAD)), (packed, collator))):
        trainer = make_trainer(
            tmp_path / str(number), rows=dataset, collator=collate, per_device_train_batch_size=8
        )
        trainer.train()
        stepped.append(
            (trainer.state.log_history[0]["loss"], dict(trainer.model.named_parameters()))
        )
    assert stepped[0][0] == pytest.approx(stepped[1][0], rel=1e-5)
    for name, parameter in stepped[0][1].items():
        torch.testing.assert_close(parameter, stepped[1][1][name], atol=2e-5, rtol=1e-4)


def test_evaluation_averages_over_labels(tmp_path):
    """Batches of one row weigh their labels, not each other; kinds are told apart."""
    rows = data()
    trainer = make_trainer(tmp_path, per_device_eval_batch_size=1, label_weights=WEIGHTS)
    metrics = trainer.evaluate(rows)
    with torch.no_grad():
        loss, by_kind = plain_loss(trainer.model.eval(), rows, WEIGHTS)
    assert metrics["eval_loss"] == pytest.approx(loss.item(), rel=1e-5)
    for kind, value in by_kind.items():
        assert metrics[f"eval_loss_{kind}"] == pytest.approx(value, rel=1e-5)


def test_segments_become_a_mask_where_the_model_is(tmp_path, monkeypatch):
    """What the collator leaves to the trainer for FlexAttention, on sdpa with the dense mask in its place."""
    rows = SharedImageSamples(spoken_rows(), eoi_token_id=EOI, max_length=60)
    monkeypatch.setattr("being_vl.training.trainer.flex_block_mask", block_mask)
    losses = [
        make_trainer(tmp_path, collator=SharedImageCollator(PAD, kind)).evaluate(rows)["eval_loss"]
        for kind in ("dense", "flex")
    ]
    assert losses[0] == losses[1] > 0


def test_grouping_by_length_reads_no_row(tmp_path):
    rows = data(32)
    trainer = make_trainer(tmp_path, rows=rows, train_sampling_strategy="group_by_length")
    rows._dataset = None
    order = list(trainer._get_train_sampler())
    assert sorted(order) == list(range(32))
    spread = [np.ptp(rows.lengths[order[i : i + 4]]) for i in range(0, 32, 4)]
    assert max(spread) <= 3


def test_what_is_refused(tmp_path):
    with pytest.raises(ValueError, match="compute_loss_func is taken"):
        BeingVLTrainer(model=being_vl_model(), compute_loss_func=lambda *args, **kwargs: 0)
    with pytest.raises(ValueError, match=r"accelerator_config\.dispatch_batches must not be true"):
        make_trainer(tmp_path, accelerator_config={"dispatch_batches": True})


def _worker(rank: int, folder: str, world_size: int) -> None:
    trainer = make_trainer(
        folder,
        label_weights=WEIGHTS,
        per_device_train_batch_size=4 // world_size,
        gradient_accumulation_steps=2,
    )
    trainer.train()
    if rank == 0:
        logs = trainer.state.log_history[0]
        weights = {n: p.detach() for n, p in trainer.model.named_parameters()}
        torch.save({"logs": logs, "weights": weights}, f"{folder}/result.pt")


def test_two_processes_take_the_step_of_one(tmp_path):
    """The same 8 rows shared out: same step, same figures, counts of both."""
    expected = being_vl_model().train()
    loss, by_kind = plain_loss(expected, data(), WEIGHTS)
    loss.backward()
    run_ranks(_worker, str(tmp_path), 2)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    logs = result["logs"]
    assert logs["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for kind, value in by_kind.items():
        assert logs[f"loss_{kind}"] == pytest.approx(value, rel=1e-5)
    ratio = logs["tokens_per_second"] / logs["images_per_second"]
    assert ratio == pytest.approx(int(data().lengths.sum()) / 8)
    for name, parameter in expected.named_parameters():
        stepped = (parameter - parameter.grad).detach()
        torch.testing.assert_close(result["weights"][name], stepped, atol=2e-5, rtol=1e-4)


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, count: int = 5):
        self.rows = [data(count)[number] for number in range(count)]

    def __iter__(self):
        return iter(self.rows)


class _StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def _stream(rank: int, folder: str, world_size: int) -> None:
    """Five steps of four of 18 rows: undisturbed, stopped after three, and resumed. The last has two rows."""
    losses = []
    for name, stop, steps in (("a", 5, 5), ("b", 3, 5), ("b", 5, 5), ("c", 6, 7), ("c", 7, 7)):
        trainer = make_trainer(
            f"{folder}/{world_size}/{name}", rows=Stream(18), max_steps=steps, logging_steps=1,
            per_device_train_batch_size=4 // world_size, save_strategy="steps", save_steps=3,
        )  # fmt: skip
        trainer.add_callback(_StopAt(stop))
        if (name, stop) == ("c", 7):
            with pytest.raises(ValueError, match="checkpoint-6: Stream had ended before it"):
                trainer.train(resume_from_checkpoint="auto")
        else:
            done = trainer.train(resume_from_checkpoint="auto")
            assert done.metrics["steps_without_labels"] == 0
            losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    if rank == 0:
        torch.save(losses, f"{folder}/{world_size}.pt")


def test_a_stream_of_the_user_is_shared_out_and_resumed(tmp_path):
    _stream(0, str(tmp_path), 1)
    run_ranks(_stream, str(tmp_path), 2)
    one, two = (torch.load(tmp_path / f"{world}.pt", weights_only=True) for world in (1, 2))
    for whole, stopped, resumed, _ in (one, two):
        assert len(whole) == 5 and stopped == whole[:3] and resumed == whole
    assert two[0][:4] == pytest.approx(one[0][:4], rel=1e-5)  # two processes fill the last batch up


def _predict(rank: int, folder: str, world_size: int, split: bool) -> None:
    """Five rows in batches of another size than training has, after a step of training."""
    share = 1 if split else world_size
    trainer = make_trainer(
        folder,
        per_device_train_batch_size=4 // share,
        per_device_eval_batch_size=2 // share,
        compute_metrics=lambda found: {"shape": list(found.predictions.shape)},
        accelerator_config={"split_batches": split},
        prediction_loss_only=False,
    )
    trainer.train()
    metrics = trainer.evaluate(data(5))
    if world_size == 1:
        assert trainer.evaluate(Stream())["eval_loss"] == metrics["eval_loss"]
    found = trainer.predict(data(5))
    if rank == 0:
        is_label = found.label_ids[:, 1:] != IGNORE_INDEX
        logits = found.predictions[:, :-1][is_label]
        losses = {
            name: found.metrics[f"test_{name}"] for name in ("loss", "loss_text", "loss_code")
        }
        assert losses == {name: pytest.approx(metrics[f"eval_{name}"]) for name in losses}
        assert metrics["eval_shape"] == list(found.predictions.shape)
        torch.save((torch.tensor(logits), losses), f"{folder}/predicted.pt")


@pytest.mark.parametrize("split", [False, True])
def test_two_processes_predict_as_one_and_as_the_model(tmp_path, split):
    """Logits of all positions, as `Trainer` gives them; the losses count each row once."""
    _predict(0, str(tmp_path), 1, split)
    wanted, losses = torch.load(tmp_path / "predicted.pt", weights_only=True)
    run_ranks(_predict, str(tmp_path), 2, split)
    got, shared_losses = torch.load(tmp_path / "predicted.pt", weights_only=True)
    assert shared_losses == {name: pytest.approx(value, rel=1e-5) for name, value in losses.items()}
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    targets = torch.cat(
        [torch.from_numpy(row["labels"])[1:] for row in map(data(5).__getitem__, range(5))]
    )
    assert F.cross_entropy(wanted, targets.long()).item() == pytest.approx(losses["loss"], rel=1e-5)


def test_an_evaluation_does_not_count_as_a_step_without_labels(tmp_path):
    samples = [{"id": str(n), "input_ids": [1, 5, 6], "spoken": n} for n in range(2)]
    with pytest.warns(UserWarning, match="1 of 2 samples have no label"):
        rows = TokenizedSamples(rows_of(samples), LAYOUT)
    trainer = make_trainer(
        tmp_path, eval_strategy="steps", eval_steps=1, per_device_eval_batch_size=1
    )
    trainer.eval_dataset = rows
    assert trainer.train().metrics["steps_without_labels"] == 0


def test_a_row_of_several_sequences_keeps_its_labels(tmp_path):
    """Of 7 sequences in batches of two, the second process has one that is new, and one that is repeated."""
    rows = PackedSamples(data(7), 20)
    trainer = make_trainer(tmp_path, rows=rows, collator=FlatCollator())
    batch = trainer.data_collator([rows[0], rows[1]])
    labels = batch["labels"].clone()
    trainer.accelerator.gradient_state = types.SimpleNamespace(
        end_of_dataloader=True, active_dataloader=types.SimpleNamespace(dataset=range(7))
    )
    trainer.args = types.SimpleNamespace(world_size=2, process_index=1, dataloader_drop_last=False)
    trainer._forget_repeats(batch)
    assert torch.equal(batch["labels"], labels)


def _refuse(rank: int, folder: str) -> None:
    uneven = {"even_batches": False}
    with pytest.raises(
        ValueError, match=r"accelerator_config\.even_batches must be true on several"
    ):
        make_trainer(folder, accelerator_config=uneven)
    # Five rows are a batch of four and a rest: neither loader has more on one process.
    options = {"dataloader_drop_last": True, "per_device_train_batch_size": 4}
    trainer = make_trainer(
        folder, rows=data(5), accelerator_config={**uneven, "split_batches": True}, **options
    )
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(
        ValueError, match="0 batches to evaluate: the data set has 5 sequences, and"
    ):
        trainer.evaluate(data(5))


def test_what_two_processes_refuse(tmp_path):
    run_ranks(_refuse, str(tmp_path))
