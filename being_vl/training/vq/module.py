"""pixels → loss: what `Trainer` sees of a VQ-GAN in training.

Source: taming-transformers' VQLPIPSWithDiscriminator. It differs in that quantizer, discriminator and
moving averages are one module with one forward pass, whose checkpoint is therefore whole, and whose two
adversaries take their steps at the same time (their gradients never mix), as data parallelism wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ...quantizers.modeling_being_vl_vq import BeingVLVQModel, Decoder
from .codebook import CodebookTracker
from .losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    discriminator_loss,
    entropy_loss,
    generator_loss,
)


@dataclass(frozen=True)
class VQLossConfig:
    """What is minimised, and how the codebook learns.

    Args:
        reconstruction: mean absolute or mean squared error of the pixels.
        commitment_weight: pulls latents to their codes (β of van den Oord et al. 2017).
        codebook: how the codebook learns: moving averages of its latents, or gradients.
        ema_decay: of the moving averages.
        dead_code_share: a code that is used less than this share of the mean is dead, and takes the
            place of a latent of the step; 0 never revives.
        adversarial_weight: of the discriminator's judgement, times the adaptive weight; 0 for none.
        adversarial_start: the step from which it counts, as a fraction of the training.
        discriminator_channels: channels of its first layer.
        discriminator_layers: its layers of stride 2.
        perceptual_weight: of the perceptual loss; 0 for none.
        entropy_weight: of the entropy loss of lookup-free codes, which wants each cell sure of its bits
            and all codes used alike.
    """

    reconstruction: Literal["l1", "l2"] = "l1"
    commitment_weight: float = 0.25
    codebook: Literal["ema", "gradient"] = "ema"
    ema_decay: float = 0.99
    dead_code_share: float = 0.03
    adversarial_weight: float = 0.0
    adversarial_start: float = 0.5
    discriminator_channels: int = 64
    discriminator_layers: int = 3
    perceptual_weight: float = 0.0
    entropy_weight: float = 0.1

    def __post_init__(self) -> None:
        for name in ("reconstruction", "codebook"):
            allowed = ("l1", "l2") if name == "reconstruction" else ("ema", "gradient")
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")
        for name in ("commitment", "adversarial", "perceptual", "entropy"):
            if (weight := getattr(self, f"{name}_weight")) < 0:
                raise ValueError(f"{name}_weight must not be negative, got {weight}")
        for name in ("ema_decay", "dead_code_share", "adversarial_start"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("discriminator_channels", "discriminator_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class VQTrainingModule(nn.Module):
    """The model with all that trains it; `forward(pixel_values)` gives the loss and its terms.

    Until `start_codebook` has been called it is a plain autoencoder: nothing is quantized.
    """

    def __init__(
        self, model: BeingVLVQModel, config: VQLossConfig, perceptual: PerceptualLoss | None = None
    ) -> None:
        super().__init__()
        if model.decoder is None:
            raise ValueError("has_decoder must be true: training reconstructs images")
        if (perceptual is None) != (config.perceptual_weight == 0):
            raise ValueError(
                f"perceptual_weight is {config.perceptual_weight}, but perceptual_backbone is "
                f"{'not ' if perceptual is None else ''}given: give both or neither"
            )
        self.model: Any = model  # whose modules are attributes that type checkers do not know
        self.loss_config = config
        self.codebook: CodebookTracker | None = (
            None  # nothing to learn for finite scalars and signs
        )
        if model.config.quantizer == "codebook":
            self.codebook = CodebookTracker(
                model.config.num_embeddings,
                model.config.embed_dim,
                decay=config.ema_decay,
                moves_codebook=config.codebook == "ema",
                dead_share=config.dead_code_share,
            )
            self._codebook_weight.requires_grad_(config.codebook == "gradient")
        self.discriminator: PatchDiscriminator | None = None
        if config.adversarial_weight:
            self.discriminator = PatchDiscriminator(
                model.config.out_channels,
                base_channels=config.discriminator_channels,
                num_layers=config.discriminator_layers,
            )
        # A judge, not a part of the model: kept out of checkpoints, and so out of the modules.
        self._perceptual = [perceptual]
        self.adversarial = False  # set by the trainer once its time has come

    def start_codebook(self, codebook: torch.Tensor, rows_per_step: int) -> None:
        """Quantize from now on, with this codebook (K, D)."""
        assert self.codebook is not None
        with torch.no_grad():
            self._codebook_weight.copy_(codebook)
        self.codebook.start(self._codebook_weight, rows_per_step)

    @property
    def quantizes(self) -> bool:
        """Whether latents are quantized yet; a learned codebook must have been started."""
        return self.codebook is None or bool(self.codebook.ready)

    @property
    def _codebook_weight(self) -> torch.Tensor:
        return self.model.quantize.embedding.weight

    @property
    def _decoder(self) -> Decoder:
        assert self.model.decoder is not None  # checked when this module was made
        return self.model.decoder

    def latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixels (B, C, H, W) → latents (B, D, h, w), not quantized."""
        return self.model.quantize.bound(self.model.quant_conv(self.model.encoder(pixel_values)))

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        """The loss and, detached, its terms; in training, the codebook moves too."""
        config = self.loss_config
        terms: dict[str, torch.Tensor] = {}
        if self.quantizes:
            output = self.model(pixel_values)
            reconstruction = output.reconstruction
            loss = self._quantizer_loss(output, terms)
        else:
            z = self.latents(pixel_values)
            reconstruction = self._decoder(self.model.post_quant_conv(z))
            loss = pixel_values.new_zeros(())
        difference = reconstruction.float() - pixel_values.float()
        error = torch.abs if config.reconstruction == "l1" else torch.square
        fit = error(difference).mean()
        terms["reconstruction"] = fit
        if self._perceptual[0] is not None:
            judge = self._perceptual[0].to(pixel_values.device)
            terms["perceptual"] = judge(reconstruction, pixel_values)
            fit = fit + config.perceptual_weight * terms["perceptual"]
        loss = loss + fit
        if self.discriminator is not None and self.adversarial:
            loss = loss + self._adversarial_loss(
                self.discriminator, pixel_values, reconstruction, fit, terms
            )
        return {"loss": loss, **{name: value.detach() for name, value in terms.items()}}

    def _quantizer_loss(self, output: Any, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        config, kind = self.loss_config, self.model.config.quantizer
        if kind == "fsq":  # bounded latents stay near their levels by themselves
            return output.commitment_loss.new_zeros(())
        terms["commitment"] = output.commitment_loss
        loss = config.commitment_weight * output.commitment_loss
        if kind == "lfq":
            terms["entropy"] = entropy_loss(output.z)
            return loss + config.entropy_weight * terms["entropy"]
        if config.codebook == "gradient":
            loss = loss + output.codebook_loss
        if self.training:
            assert self.codebook is not None
            rows = output.z.detach().permute(0, 2, 3, 1).flatten(0, 2)
            self.codebook.update(self._codebook_weight.data, rows, output.codes.flatten())
        return loss

    def _adversarial_loss(
        self,
        discriminator: PatchDiscriminator,
        real: torch.Tensor,
        fake: torch.Tensor,
        fit: torch.Tensor,
        terms: dict[str, torch.Tensor],
    ) -> torch.Tensor:
        judged = generator_loss(discriminator, fake)
        terms["adversarial"] = judged
        terms["discriminator"] = discriminator_loss(discriminator, real, fake)
        weight = judged.new_ones(())
        if torch.is_grad_enabled():
            weight = adaptive_weight(fit, judged, self._decoder.last_layer)
            terms["adaptive_weight"] = weight
        return self.loss_config.adversarial_weight * weight * judged + terms["discriminator"]
