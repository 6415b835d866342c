"""rows → weights: `Trainer` with what image tokens need of it.

Differs from transformers' `Trainer` in five things: the embeddings take no weight decay (decay would move
frozen rows, and drains the rows of rare tokens); logits are computed only where there is a label; labels
may be weighted by their kind; logs tell the kinds apart; and at every save frozen rows are compared with
what they were. The order of rows grouped by length is that of `sampling`, which a resumed run repeats.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, trainer_pt_utils
from transformers.trainer_utils import EvalLoopOutput

from .frozen_check import FrozenRowsCheck
from .logs import TokenMeter
from .packing import PackedSamples, SharedImageSamples, flex_block_mask
from .resume import ExactResumeMixin
from .samples import (
    COUNTS,
    IGNORE_INDEX,
    CountingCollator,
    LengthGroupedSampler,
    TokenizedSamples,
    kinds_of,
)


class BeingVLTrainer(ExactResumeMixin, Trainer):
    """A `Trainer` for [`BeingVLLanguageModel`]; its arguments are `Trainer`'s and one more.

    Args:
        label_weights: weights of the loss of labels by their kind: text, code, merge. The loss is the
            weighted mean over the labels of all batches of a step, on all processes.

    Raises:
        ValueError: a loss function is given, one process drives several devices, or settings of DeepSpeed
            or FSDP are refused by `distributed`.
    """

    def __init__(
        self, *args: Any, label_weights: tuple[float, float, float] = (1.0, 1.0, 1.0), **kwargs: Any
    ):
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func is taken: logits are computed where labels are")
        super().__init__(*args, compute_loss_func=self._weighted_loss, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"one process must train on one device, got {self.args.n_gpu}: run under accelerate launch or "
                "torchrun, or set CUDA_VISIBLE_DEVICES"
            )
        if self.args.label_names is None:
            # transformers takes every argument of the forward with "label" in its name for labels.
            self.label_names = ["labels"]
        config = self.model.config
        self.layout = config.layout
        self.data_collator = CountingCollator(
            self.data_collator, config.layout, config.boi_token_id
        )
        self.label_weights = label_weights
        # By whether the model trains.
        self._meters = {training: TokenMeter(label_weights) for training in (True, False)}
        self._frozen_check: FrozenRowsCheck | None = None
        self.add_callback(_TakeFingerprints(self))

    def settings_of_the_run(self) -> dict[str, Any]:
        """What decides the weights beside the arguments: see `ExactResumeMixin`."""
        return {**super().settings_of_the_run(), "label_weights": list(self.label_weights)}

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The names that weight decay applies to: `Trainer`'s, without both embedding matrices."""
        embeddings = {
            id(parameter)
            for module in (model.get_input_embeddings(), model.get_output_embeddings())
            for parameter in module.parameters()
        }
        kept_out = {n for n, p in model.named_parameters() if id(p) in embeddings}
        return [n for n in super().get_decay_parameter_names(model) if n not in kept_out]

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
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        for batch in batches:
            meter.add_counts(batch[COUNTS])
        return batches, num_items

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor:
        """The sum of the weights of all labels of a step, over all processes: what the loss is divided by."""
        total = sum(
            weight * count
            for batch in batch_samples
            for weight, count in zip(self.label_weights, batch[COUNTS].labels, strict=True)
        )
        total = torch.tensor(float(total), device=device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum()
        # A step without a label, or with weights of zero alone, has a loss of zero, not of 0/0.
        return total.clamp_min(torch.finfo(total.dtype).tiny)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """`Trainer.compute_loss`, with logits of shape (num_labels, vocab_size) in the outputs."""
        inputs = {name: value for name, value in inputs.items() if name != COUNTS}
        if "segment_ids" in inputs:
            inputs["attention_mask"] = flex_block_mask(inputs.pop("segment_ids"))
        shift_labels = F.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        self._meter = self._meters[model.training]
        # A cache would make transformers take packed samples for one.
        more = {"shift_labels": shift_labels, "label_logits_only": True, "use_cache": False}
        return super().compute_loss(model, {**inputs, **more}, *args, **kwargs)

    def _weighted_loss(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None
    ) -> torch.Tensor:
        targets = labels[:, 1:]
        targets = targets[targets != IGNORE_INDEX]
        smoothing = self.args.label_smoothing_factor
        losses = F.cross_entropy(
            outputs.logits.float(), targets, reduction="none", label_smoothing=smoothing
        )
        kinds = kinds_of(targets, self.layout)
        self._meter.add_losses(losses.detach(), kinds)
        weights = torch.tensor(self.label_weights, device=losses.device)[kinds]
        if num_items_in_batch is None:
            num_items_in_batch = weights.sum().clamp_min(torch.finfo(weights.dtype).tiny)
        return (losses * weights).sum() / num_items_in_batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """`Trainer.log`; training logs also hold the figures of `TokenMeter.read`."""
        if "loss" in logs:
            logs = {**self._meters[True].read(self.accelerator), **logs}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with self._meters[True].pause():
            return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop`, with the loss over labels instead of over batches, and by kind."""
        self._meters[False] = meter = TokenMeter(self.label_weights)
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs.get("metric_key_prefix", "eval")
        figures = meter.read(self.accelerator)
        output.metrics.update({f"{prefix}_{name}": value for name, value in figures.items()})
        return output

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        with self._meters[True].pause():
            super()._save_checkpoint(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """`Trainer.save_model`, after a check of the frozen rows.

        Raises:
            FrozenRowsMoved: a frozen row has moved since training began; it and its layer are named.
        """
        self.check_frozen_rows()
        super().save_model(output_dir, _internal_call)

    def check_frozen_rows(self) -> None:
        """Raises FrozenRowsMoved if a frozen row has moved since training began; for all processes together."""
        if self._frozen_check is not None:
            self._frozen_check.verify()


class _TakeFingerprints(TrainerCallback):
    """When training begins: after DeepSpeed or autocast have given the rows the type they keep."""

    def __init__(self, trainer: BeingVLTrainer):
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        trainer._frozen_check = FrozenRowsCheck(trainer.accelerator.unwrap_model(trainer.model))
