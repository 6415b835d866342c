"""images → a VQ-GAN: training with `Trainer`.

Source: the recipe of taming-transformers (Esser et al. 2021): reconstruction, commitment, a codebook that
learns, a discriminator that joins late. It differs in its start: the autoencoder first learns without
quantization, then k-means of its latents is the codebook, so that every code is in use from the first
quantized step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, Trainer, TrainingArguments

from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.metrics import ReconstructionMetrics, evaluate_reconstruction
from ...quantizers.modeling_being_vl_vq import BeingVLVQModel
from ..logs import check_report_to
from ..resume import ExactResumeMixin
from .codebook import fit_codebook
from .data import augment
from .module import VQTrainingModule

_CODEBOOK_ROWS_PER_CODE = 32


@dataclass
class VQTrainingArguments(TrainingArguments):
    """`TrainingArguments` with what the training of a VQ-GAN adds.

    Args:
        autoencoder_fraction: the share of the training before anything is quantized.
        random_flip: mirror training images left and right at random.
        random_crop: train on random squares of so many pixels a side; None takes images whole.
        discriminator_learning_rate: that of the discriminator; by default `learning_rate`.
    """

    autoencoder_fraction: float = field(default=0.1)
    random_flip: bool = field(default=False)
    random_crop: int | None = field(default=None)
    discriminator_learning_rate: float | None = field(default=None)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_report_to(self)
        if not 0 <= self.autoencoder_fraction < 1:
            raise ValueError(
                f"autoencoder_fraction must be in [0, 1), got {self.autoencoder_fraction}"
            )


class VQTrainer(ExactResumeMixin, Trainer):
    """Trains a [`VQTrainingModule`]; `evaluate` measures reconstruction, not a loss.

    Args:
        train_dataset, eval_dataset: items `{"pixel_values": (3, H, W)}`.
        processor: whose pixel values the metrics compare.
        metrics: makes an empty `ReconstructionMetrics`; by default PSNR and use of the codebook.
    """

    def __init__(
        self,
        model: VQTrainingModule,
        args: VQTrainingArguments,
        *,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        processor: BeingVLImageProcessor,
        metrics: Callable[[], ReconstructionMetrics] | None = None,
    ):
        args.remove_unused_columns = False
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(model=model, args=args, **data)
        side = args.random_crop or min(train_dataset[0]["pixel_values"].shape[1:])
        if model.discriminator is not None and side < model.discriminator.smallest_side:
            raise ValueError(
                f"discriminator_layers is {model.loss_config.discriminator_layers}, which needs images of "
                f"{model.discriminator.smallest_side} pixels a side or more, got {side}"
            )
        self.remove_callback(PrinterCallback)  # standard output is for the caller
        self._module = model
        self._metrics = metrics or (
            lambda: ReconstructionMetrics(
                model.model.config.num_embeddings, processor, ssim=False, device=args.device
            )
        )
        self._terms: dict[str, torch.Tensor] = {}
        self._term_steps = 0
        self._batch_of_step = (-1, 0)

    @property
    def vq_model(self) -> BeingVLVQModel:
        """The model in training."""
        return self._module.model

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        inputs = {"pixel_values": self._augmented(inputs["pixel_values"])}
        done, module = self.state.global_step / self.state.max_steps, self._module
        if done >= self.args.autoencoder_fraction and not module.quantizes:
            self._start_codebook(inputs["pixel_values"])
        module.adversarial = done >= module.loss_config.adversarial_start
        return super().training_step(model, inputs, *args, **kwargs)

    def _augmented(self, pixel_values: torch.Tensor) -> torch.Tensor:
        args, step = self.args, self.state.global_step
        if not args.random_flip and args.random_crop is None:
            return pixel_values
        last_step, batch = self._batch_of_step  # gradient accumulation: several batches a step
        self._batch_of_step = (step, batch + 1 if step == last_step else 0)
        seed = (args.seed, *self._batch_of_step, args.process_index)
        return augment(pixel_values, flip=args.random_flip, crop=args.random_crop, seed=seed)

    def compute_loss(  # type: ignore[override]
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        outputs = model(**inputs)
        if not outputs["loss"].isfinite():  # said at once: Trainer's log counts NaN as 0
            raise ValueError(
                f"step {self.state.global_step + 1}: the loss is {float(outputs['loss'].detach())}; training has "
                "diverged (a lower learning rate helps), and its last checkpoint is the last good one"
            )
        for name, value in outputs.items():
            if name != "loss":
                self._terms[name] = self._terms.get(name, 0.0) + value
        self._term_steps += 1
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the means of the loss's terms since the last log."""
        if "loss" in logs and self._term_steps:
            means = {name: float(value) / self._term_steps for name, value in self._terms.items()}
            logs = {**logs, **means}
            self._terms, self._term_steps = {}, 0
        super().log(logs, start_time)

    def evaluate(  # type: ignore[override]
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Reconstruct the evaluation set; PSNR and the rest, as of `ReconstructionMetrics`."""
        was_training = self._module.training
        self._module.eval()
        batches = self.get_eval_dataloader(eval_dataset)
        pixels = (batch["pixel_values"].to(self.args.device) for batch in batches)
        values = evaluate_reconstruction(self._module.model, pixels, self._metrics())
        self._module.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in values.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """The usual one, with a learning rate of its own for the discriminator."""
        optimizer = super().create_optimizer(model)
        rate = self.args.discriminator_learning_rate
        if self._module.discriminator is not None and rate is not None:
            judges = {id(p) for p in self._module.discriminator.parameters()}
            for group in list(optimizer.param_groups):
                moved = [p for p in group["params"] if id(p) in judges]
                group["params"] = [p for p in group["params"] if id(p) not in judges]
                if moved:
                    optimizer.add_param_group({**group, "params": moved, "lr": rate})
        return optimizer

    @torch.no_grad()
    def _start_codebook(self, batch: torch.Tensor) -> None:
        """k-means of latents of training images; every process does the same."""
        module, args = self._module, self.args
        side = module.model.config.downsampling
        cells = batch.shape[2] // side * (batch.shape[3] // side)
        wanted = _CODEBOOK_ROWS_PER_CODE * module.model.config.num_embeddings
        generator = torch.Generator().manual_seed(args.seed)
        order = torch.randperm(len(self.train_dataset), generator=generator)
        chosen = order[: max(1, -(-wanted // cells))].tolist()
        loader = DataLoader(
            torch.utils.data.Subset(self.train_dataset, chosen),
            batch_size=args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
        )
        latents = (module.latents(part["pixel_values"].to(args.device)) for part in loader)
        rows = torch.cat([z.permute(0, 2, 3, 1).flatten(0, 2).cpu() for z in latents])
        codebook = fit_codebook(rows, module.model.config.num_embeddings, seed=args.seed)
        codebook = codebook.to(args.device)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(codebook, 0)
        module.start_codebook(codebook, len(batch) * cells * args.world_size)
