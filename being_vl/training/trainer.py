"""sequences → weights: `Trainer` with what image tokens need of it.

Differs from transformers' `Trainer` in five things: the embeddings take no weight decay (decay would move
frozen rows, and drains the rows of rare tokens); logits are computed only where there is a label; labels
may be weighted by their kind; logs tell the kinds apart; and at every save frozen rows are compared with
what they were. The order of sequences grouped by length is that of `samples`, which a resumed run repeats.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, IterableDataset, Sampler
from transformers import Trainer, TrainerCallback, trainer_pt_utils
from transformers.trainer_utils import EvalLoopOutput, has_length

from .checkpoints import checkpoint_folders
from .collators import flex_block_mask
from .frozen_check import FrozenRowsCheck
from .logs import COUNTS, CountingCollator, TokenMeter, count_labels, kinds_of
from .packing import PackedSamples, SharedImageSamples
from .resume import ExactResumeMixin
from .samples import IGNORE_INDEX, LengthGroupedSampler, TokenizedSamples
from .streaming import StreamedSamples

# The weight of a step without a label, or with weights of zero alone: its loss is zero, not 0/0.
_SILENT = torch.finfo(torch.float32).tiny


class TrainingDiverged(ValueError):
    """The loss, or a weight, is no finite number; the step is named, and what is left of the run."""


class BeingVLTrainer(ExactResumeMixin, Trainer):
    """A `Trainer` for [`BeingVLLanguageModel`]; its arguments are `Trainer`'s and one more.

    Args:
        label_weights: weights of the loss of labels by their kind: text, code, merge. The loss is the
            weighted mean over the labels of all batches of a step, on all processes.

    Raises:
        ValueError: a loss function or `dispatch_batches` is given, or as of [`ExactResumeMixin`].
    """

    def __init__(
        self,
        model: Any = None,
        *args: Any,
        label_weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        **kwargs: Any,
    ):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is taken: logits are computed where labels are")
        if model is not None:
            self._use_cache = model.config.use_cache
        super().__init__(model, *args, compute_loss_func=self._weighted_loss, **kwargs)
        loaders = self.accelerator.dataloader_config
        if loaders.dispatch_batches:
            raise ValueError(
                "accelerator_config.dispatch_batches must not be true: each process counts the tokens of its batches"
            )
        loaders.dispatch_batches = False  # None would be true for an IterableDataset
        config = self.model.config
        # `Trainer` sets it to `args.use_cache`, False, and checkpoints would keep that.
        config.use_cache = self._use_cache
        self.layout = config.layout
        collate: Any = self.data_collator
        self.data_collator = CountingCollator(collate, config.layout, config.boi_token_id)
        self.label_weights = label_weights
        # It would count a loss of NaN as 0; here the run stops instead.
        self.args.logging_nan_inf_filter = False
        self._first_bad_step: torch.Tensor | None = None
        self._silent_steps = torch.zeros(())
        self._wants_logits = False
        # By whether the model trains.
        self._meters = {training: TokenMeter(label_weights) for training in (True, False)}
        self._frozen_check: FrozenRowsCheck | None = None
        self.add_callback(_TakeFingerprints(self))

    def call_model_init(self, trial: Any = None) -> nn.Module:
        """`Trainer.call_model_init`, which remembers `use_cache`."""
        model: Any = super().call_model_init(trial)
        self._use_cache = model.config.use_cache
        return model

    def settings_of_the_run(self) -> dict[str, Any]:
        """What decides the weights beside the arguments: see `ExactResumeMixin`."""
        return {**super().settings_of_the_run(), "label_weights": list(self.label_weights)}

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """The names that weight decay applies to: `Trainer`'s, without both embedding matrices."""
        embeddings = {
            id(parameter)
            for module in (model.get_input_embeddings(), model.get_output_embeddings())
            for parameter in module.parameters()
        }
        kept_out = {n for n, p in model.named_parameters() if id(p) in embeddings}
        return [n for n in super().get_decay_parameter_names(model) if n not in kept_out]

    def get_train_dataloader(self) -> DataLoader:
        """`Trainer.get_train_dataloader`; a stream, which is of this process alone, is not shared out again."""
        if not isinstance(self.train_dataset, StreamedSamples):
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            drop_last=self.args.dataloader_drop_last,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def _run_epoch(self, *, epoch: int, **kwargs: Any) -> None:  # type: ignore[override]
        """`Trainer`'s; a stream is told what of it will be passed over."""
        if isinstance(self.train_dataset, StreamedSamples):
            goes_on = kwargs["resume_from_checkpoint"] is not None
            is_first = goes_on and epoch == kwargs["epochs_trained"]
            batches = kwargs["steps_trained_in_current_epoch"] if is_first else 0
            self.train_dataset.start(epoch, batches * self._train_batch_size)
        super()._run_epoch(epoch=epoch, **kwargs)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        dataset = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        if isinstance(dataset, TokenizedSamples | PackedSamples | SharedImageSamples):
            step = self.args.train_batch_size * self.args.gradient_accumulation_steps
            return LengthGroupedSampler(dataset.lengths, step, seed=seed)
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, trainer_pt_utils.LengthGroupedSampler):
            return sampler
        return LengthGroupedSampler(sampler.lengths, sampler.batch_size, seed=seed)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[dict[str, Any]], Any]:
        """`Trainer.get_batch_samples`, counting what is in the batches of a step."""
        meter = self._meters[True]
        meter.start()
        num_items: Any
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            meter.add_counts(batch[COUNTS])
        if batches:  # a stream may have ended
            self._silent_steps = self._silent_steps.to(num_items.device) + (num_items == _SILENT)
        return batches, num_items

    def _forget_repeats(self, batch: dict[str, Any]) -> None:
        """Take the labels off the sequences that the last batch repeats, so that all processes have as many.

        accelerate fills the last global batch with sequences from the beginning of the epoch, so that each process
        has a batch of one size; in the order of the processes, the first ones are new. Their number is computed here
        since accelerate's `remainder` is -1 in an epoch that is resumed.
        """
        args, state = self.args, self.accelerator.gradient_state
        loader: Any = state.active_dataloader  # None where a stream is of this process alone
        if args.world_size == 1 or args.dataloader_drop_last or loader is None:
            return
        if isinstance(loader.dataset, IterableDataset) or "cu_seq_lens_q" in batch:
            return  # how many are new is not known; or a row is several sequences
        if not state.end_of_dataloader:
            return
        labels = batch["labels"]
        count = len(loader.dataset) % (len(labels) * args.world_size)
        new = count - args.process_index * len(labels)
        if count == 0 or new >= len(labels):
            return
        labels[max(new, 0) :] = IGNORE_INDEX
        batch[COUNTS] = replace(batch[COUNTS], labels=count_labels(labels, self.layout))

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """The sum of the weights of all labels of a step, over all processes: what the loss is divided by."""
        if batch_samples:
            self._forget_repeats(batch_samples[-1])
        total = sum(
            weight * count
            for batch in batch_samples
            for weight, count in zip(self.label_weights, batch[COUNTS].labels, strict=True)
        )
        total = torch.tensor(float(total), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        return total.clamp_min(_SILENT)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`Trainer.training_step`, which remembers the first step whose loss is not finite."""
        loss = super().training_step(*args, **kwargs)
        # On the device: whether it is finite is read at logs and saves, so that no step waits for it.
        bad = torch.where(torch.isfinite(loss), math.inf, self.state.global_step + 1.0)
        known = self._first_bad_step
        self._first_bad_step = bad if known is None else torch.minimum(known, bad)
        return loss

    def check_losses(self) -> None:
        """Raises TrainingDiverged if a loss since training began is not finite; for all processes together."""
        bad = self._first_bad_step
        step = math.inf if bad is None else self.accelerator.gather(bad.reshape(1)).min().item()
        if math.isfinite(step):
            raise self._diverged("the loss is", int(step))

    def check_finite(self) -> None:
        """Raises TrainingDiverged if a loss or a weight that trains is not finite; for all together."""
        self.check_losses()
        trained = ((name, p) for name, p in self.model.named_parameters() if p.requires_grad)
        names = [name for name, p in trained if not _is_finite(p)]
        count = torch.tensor([len(names)], device=self.accelerator.device)
        if self.accelerator.gather(count).sum().item():
            raise self._diverged(f"{names[0]} is" if names else "weights of another process are")

    def _diverged(self, what: str, step: int | None = None) -> TrainingDiverged:
        left = "no checkpoint was saved before it"
        if kept := checkpoint_folders(self.args.output_dir):
            left = f"the last checkpoint before it is {kept[0]}"
        trained = (p.dtype for p in self.model.parameters() if p.requires_grad)
        advice = "lower learning_rate or max_grad_norm"
        if torch.float16 in trained and not self.is_deepspeed_enabled:
            advice = "load the weights with dtype float32 (in float16, Adam's epsilon of 1e-8 is 0)"
        return TrainingDiverged(
            f"step {self.state.global_step if step is None else step}: {what} not finite. Nothing was saved of it, "
            f"and {left}; {advice}, in another output_dir"
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """As `ExactResumeMixin.train`.

        Raises:
            ValueError: as it does; or there is no step to take.
            TrainingDiverged: the loss or a weight is not finite.
        """
        count = len(self.train_dataset) if isinstance(self.train_dataset, Sized) else None
        # A stream is of this process alone; `split_batches` shares a batch out.
        is_one = isinstance(self.train_dataset, StreamedSamples) or self.accelerator.split_batches
        step = self.args.train_batch_size * (1 if is_one else self.args.world_size)
        if count is not None and self.args.dataloader_drop_last and count < step:
            raise ValueError(
                f"dataloader_drop_last leaves 0 steps: {count} sequences are fewer than a batch of {step}"
            )
        output = super().train(*args, **kwargs)
        if self.state.global_step == 0:
            raise ValueError(
                f"0 steps: num_train_epochs is {self.args.num_train_epochs}, max_steps {self.args.max_steps}"
            )
        if silent := int(self._silent_steps.item()):
            message = f"{silent} of {self.state.global_step} steps had no label and learned nothing"
            warnings.warn(message, stacklevel=2)
        return output._replace(metrics={**output.metrics, "steps_without_labels": silent})

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """`Trainer.compute_loss`, with logits of shape (num_labels, vocab_size) in the outputs.

        Where `predict` or `compute_metrics` asks for logits, they are those of all positions, as `Trainer`'s are.
        """
        inputs = {name: value for name, value in inputs.items() if name != COUNTS}
        if "segment_ids" in inputs:
            inputs["attention_mask"] = flex_block_mask(inputs.pop("segment_ids"))
        shift_labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        self._meter = self._meters[model.training]
        # A cache would make transformers take packed samples for one.
        more = {
            "shift_labels": shift_labels,
            "loss_logits_only": not self._wants_logits,
            "use_cache": False,
        }
        return super().compute_loss(model, {**inputs, **more}, *args, **kwargs)

    def _weighted_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None
    ) -> torch.Tensor:
        logits, targets = outputs.logits, labels[:, 1:]
        is_label = targets != IGNORE_INDEX
        if self._wants_logits:
            logits = logits[:, :-1][is_label]
        targets = targets[is_label]
        smoothing = self.args.label_smoothing_factor
        losses = F.cross_entropy(
            logits.float(), targets, reduction="none", label_smoothing=smoothing
        )
        kinds = kinds_of(targets, self.layout)
        self._meter.add_losses(losses.detach(), kinds)
        weights = torch.tensor(self.label_weights, device=losses.device)[kinds]
        if num_items_in_batch is None:
            num_items_in_batch = weights.sum().clamp_min(_SILENT)
        return (losses * weights).sum() / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`; training logs also hold the figures of `TokenMeter.read`."""
        if "loss" in logs or "train_loss" in logs:
            self.check_losses()
        if "loss" in logs:
            logs = {**self._meters[True].read(self.accelerator), **logs}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._meters[True].pause():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, dataloader: DataLoader, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`, with the loss over labels instead of over batches, and by kind.

        Raises:
            ValueError: there is no batch.
            TrainingDiverged: the loss is not finite.
        """
        if has_length(dataloader) and not len(dataloader):
            raise ValueError(
                f"0 batches to evaluate: the data set has {self.num_examples(dataloader)} sequences, and "
                f"dataloader_drop_last is {self.args.dataloader_drop_last}"
            )
        self._meters[False] = meter = TokenMeter(self.label_weights)
        with self._full_eval_by_autocast():
            output = super().evaluation_loop(dataloader, *args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        figures = meter.read(self.accelerator)
        if not math.isfinite(figures.get("loss", 0.0)):
            raise self._diverged("the loss of the evaluation is")
        named = {f"{prefix}_{name}": value for name, value in figures.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    @contextmanager
    def _full_eval_by_autocast(self) -> Iterator[None]:
        """bf16_full_eval and fp16_full_eval without `Trainer`'s cast of the model, which would stay."""
        args = self.args
        given = args.bf16_full_eval, args.fp16_full_eval
        args.bf16_full_eval = args.fp16_full_eval = False
        dtype = torch.bfloat16 if given[0] else torch.float16
        try:
            with torch.autocast(self.accelerator.device.type, dtype, enabled=any(given)):
                yield
        finally:
            args.bf16_full_eval, args.fp16_full_eval = given

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """`Trainer.prediction_step`; sequences that the last batch repeats have no labels."""
        self._forget_repeats(inputs)
        self._wants_logits = not prediction_loss_only
        try:
            return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)
        finally:
            self._wants_logits = False

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._meters[True].pause():
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`, after a check of the frozen rows.

        Raises:
            FrozenRowsMoved: a frozen row has moved since training began; it and its layer are named.
            TrainingDiverged: the loss or a weight is not finite.
        """
        self.check_finite()
        self.check_frozen_rows()
        super().save_model(output_dir, _internal_call)

    def check_frozen_rows(self) -> None:
        """Raises FrozenRowsMoved if a frozen row has moved since training began; for all processes together."""
        if self._frozen_check is not None:
            self._frozen_check.verify()


def _is_finite(parameter: torch.Tensor) -> bool:
    """Of the part that this process holds."""
    if isinstance(parameter, DTensor):
        parameter = parameter.to_local()
    parameter = getattr(parameter, "ds_tensor", parameter)  # ZeRO-3's part
    return bool(torch.isfinite(parameter.detach()).all())


class _TakeFingerprints(TrainerCallback):
    """Takes fingerprints when training begins, after DeepSpeed or autocast have set the dtype of the rows."""

    def __init__(self, trainer: BeingVLTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer._frozen_check = FrozenRowsCheck(trainer.accelerator.unwrap_model(trainer.model))
