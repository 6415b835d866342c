"""images in memory → a VQ-GAN, in one call.

The defaults follow hub_configs/vq/easy-vqa-64.yaml.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
from transformers import TrainerCallback, set_seed

from ...quantizers.configuration_being_vl_vq import BeingVLVQConfig
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.modeling_being_vl_vq import BeingVLVQModel
from .data import CachedImages, pixels_from_uint8
from .module import VQLossConfig, VQTrainingModule
from .trainer import VQTrainer, VQTrainingArguments


def fit_vq_model(
    images: np.ndarray,
    config: BeingVLVQConfig,
    *,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    progress: Callable[[float], Any] | None = None,
) -> BeingVLVQModel:
    """Train a small VQ-GAN on images in memory, on the CPU; [`VQTrainer`] takes all else.

    Args:
        images: uint8 (N, H, W, 3), of sides that `config.downsampling` divides.
        seconds: train for so long; the result then depends on the machine.
        steps: or for so many steps.
        progress: called after each step with the share of the training that is behind.

    Returns:
        the model, in evaluation mode.
    """
    if (seconds is None) == (steps is None):
        raise ValueError(f"give seconds or steps, got seconds={seconds} and steps={steps}")
    processor = BeingVLImageProcessor()
    set_seed(seed)
    module = VQTrainingModule(
        BeingVLVQModel(config), VQLossConfig(reconstruction="l2", ema_decay=0.97)
    )
    stopwatch = _Stopwatch(progress)
    with tempfile.TemporaryDirectory() as folder:
        arguments = VQTrainingArguments(
            output_dir=folder, max_steps=steps or 10**7, max_seconds=seconds, seed=seed,
            per_device_train_batch_size=4, learning_rate=4e-3, adam_beta2=0.95,
            lr_scheduler_type="cosine", warmup_steps=min(30, (steps or 300) // 10),
            autoencoder_fraction=0.2, save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        data = CachedImages(pixels_from_uint8(images, processor))
        trainer = VQTrainer(
            module, arguments, train_dataset=data, processor=processor, callbacks=[stopwatch]
        )
        stopwatch.trainer = trainer
        trainer.train()
    return module.model.eval()


class _Stopwatch(TrainerCallback):
    """Ends a run of `max_seconds`, and reports how far any run is."""

    def __init__(self, progress: Callable[[float], Any] | None):
        self.trainer: VQTrainer  # set once it exists: callbacks come before it
        self._progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        done = self.trainer.progress()
        if self._progress is not None:
            self._progress(done)
        if args.max_seconds is not None and done >= 1.0:
            control.should_training_stop = True
