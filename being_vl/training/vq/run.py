"""images in memory → a VQ-GAN, in one call.

The defaults follow hub_configs/vq/easy-vqa-64.yaml.
"""

from __future__ import annotations

import tempfile

import numpy as np
from transformers import set_seed

from ...quantizers.configuration_being_vl_vq import BeingVLVQConfig
from ...quantizers.image_processing_being_vl import BeingVLImageProcessor
from ...quantizers.modeling_being_vl_vq import BeingVLVQModel
from .data import CachedImages, pixels_from_uint8
from .module import VQLossConfig, VQTrainingModule
from .trainer import VQTrainer, VQTrainingArguments


def fit_vq_model(
    images: np.ndarray, config: BeingVLVQConfig, *, steps: int, seed: int = 0
) -> BeingVLVQModel:
    """Train a small VQ-GAN on images in memory, on the CPU; [`VQTrainer`] takes all else.

    Args:
        images: uint8 (N, H, W, 3), of sides that `config.downsampling` divides.
        steps: of the optimizer; the first fifth of them trains a plain autoencoder.
        seed: of the weights, and of the order of the images.

    Returns:
        the model, in evaluation mode.
    """
    processor = BeingVLImageProcessor()
    set_seed(seed)
    module = VQTrainingModule(
        BeingVLVQModel(config), VQLossConfig(reconstruction="l2", ema_decay=0.97)
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = VQTrainingArguments(
            output_dir=folder, max_steps=steps, seed=seed,
            per_device_train_batch_size=4, learning_rate=4e-3, adam_beta2=0.95,
            lr_scheduler_type="cosine", warmup_steps=min(30, steps // 10),
            autoencoder_fraction=0.2, save_strategy="no", logging_strategy="no", report_to="none",
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        data = CachedImages(pixels_from_uint8(images, processor))
        VQTrainer(module, arguments, train_dataset=data, processor=processor).train()
    return module.model.eval()
