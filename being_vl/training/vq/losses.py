"""reconstruction ↔ image: the adversarial and perceptual losses of a VQ-GAN.

Source: taming-transformers (Esser et al. 2021): hinge losses, a patch discriminator (Isola et al. 2017),
the adaptive weight λ = ‖∇ reconstruction‖ / (‖∇ adversarial‖ + 1e-4) at the decoder's last layer. They
differ in that the discriminator normalises by groups, so that its judgement of an image does not depend
on the batch or on the number of devices, and in that the perceptual loss compares the features of any
torchvision or timm backbone, without LPIPS's learned weights, which cannot be had without a download.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

_SLOPE = 0.2
_INVERSE_TEMPERATURE = 100.0  # of the entropy loss
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class PatchDiscriminator(nn.Module):
    """pixels (B, C, H, W) → one logit a patch, (B, 1, h, w); positive for real ones.

    Args:
        base_channels: channels after the first convolution; doubled by each layer up to eightfold.
        num_layers: convolutions of stride 2; three see patches of 70×70 pixels.
    """

    def __init__(self, in_channels: int, *, base_channels: int = 64, num_layers: int = 3) -> None:
        super().__init__()
        self.smallest_side = 3 * 2**num_layers  # of pixels that still leave one patch
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, base_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(_SLOPE, inplace=True),
        ]
        channels = base_channels
        for index in range(1, num_layers + 1):
            out_channels = base_channels * min(2**index, 8)
            stride = 2 if index < num_layers else 1
            layers += [
                nn.Conv2d(channels, out_channels, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_groups(out_channels), out_channels),
                nn.LeakyReLU(_SLOPE, inplace=True),
            ]
            channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)  # as in pix2pix

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.layers(pixels)


def _groups(channels: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)


def generator_loss(discriminator: nn.Module, fake: torch.Tensor) -> torch.Tensor:
    """−mean logit of the reconstruction; its gradient reaches the reconstruction alone."""
    frozen = {name: value.detach() for name, value in discriminator.named_parameters()}
    return -torch.func.functional_call(discriminator, frozen, (fake,)).mean()


def discriminator_loss(
    discriminator: nn.Module, real: torch.Tensor, fake: torch.Tensor
) -> torch.Tensor:
    """The hinge loss; its gradient reaches the discriminator alone."""
    on_real = F.relu(1.0 - discriminator(real.detach())).mean()
    on_fake = F.relu(1.0 + discriminator(fake.detach())).mean()
    return 0.5 * (on_real + on_fake)


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_layer: torch.Tensor
) -> torch.Tensor:
    """How much the adversarial loss must count to pull the last layer as hard as reconstruction does."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (of_adversarial,) = torch.autograd.grad(adversarial_loss, last_layer, retain_graph=True)
    weight = of_reconstruction.norm() / (of_adversarial.norm() + 1e-4)
    return weight.clamp(0.0, 1e4).detach()


def entropy_loss(latents: torch.Tensor) -> torch.Tensor:
    """Mean entropy of a cell's bits less the entropy of the bits over all cells, in nats a bit.

    Lookup-free quantization (Yu et al. 2024, section 3.1) has the same over the codes of all D bits. The bits
    of one cell are independent, so there the entropies add up; over all cells they are taken for independent,
    as in binary spherical quantization (Zhao et al. 2024), which spares 2 to the power of D probabilities.

    `latents` are (B, D, h, w), whose signs are the bits.
    """
    # A softmax over −1 and 1 by squared distance, whose difference is 4 z.
    on = torch.sigmoid(4 * _INVERSE_TEMPERATURE * latents.float()).transpose(0, 1).flatten(1)

    def entropy(p: torch.Tensor) -> torch.Tensor:
        return torch.special.entr(p) + torch.special.entr(1 - p)

    # Entropy has an infinite slope at 0 and 1, where a sure bit stands.
    sure = on.clamp(1e-6, 1 - 1e-6)
    return entropy(sure).mean() - entropy(sure.mean(1)).mean()


class PerceptualLoss(nn.Module):
    """Mean squared difference of unit-length features after each of a backbone's stages."""

    mean: torch.Tensor  # of the pixels (0…1) that the backbone was trained on
    std: torch.Tensor

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages).requires_grad_(False).eval()
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)  # a fixed judge: no dropout, no running statistics

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Pixels in −1…1, (B, 3, H, W) both → a scalar."""
        with torch.no_grad():
            wanted = list(self._features(real))
        terms = [
            (got - want).square().sum(1).mean()
            for got, want in zip(self._features(fake), wanted, strict=True)
        ]
        return torch.stack(terms).sum()

    def _features(self, pixels: torch.Tensor) -> Iterator[torch.Tensor]:
        hidden = ((pixels + 1) / 2 - self.mean) / self.std
        for stage in self.stages:
            hidden = stage(hidden)
            yield F.normalize(hidden.float(), dim=1, eps=1e-10)


def load_perceptual_loss(backbone: str, weights: str | None = None) -> PerceptualLoss:
    """A perceptual loss by the name of its backbone."""
    library, _, name = backbone.partition(":")
    if library not in ("torchvision", "timm") or not name:
        raise ValueError(
            f"perceptual_backbone must be torchvision:NAME or timm:NAME, got {backbone!r}"
        )
    try:
        if library == "torchvision":
            import torchvision

            network = torchvision.models.get_model(name, weights=None if weights else "DEFAULT")
        else:
            import timm

            network = timm.create_model(name, pretrained=weights is None)
    except ImportError as error:
        raise ImportError(
            f"perceptual_backbone is {backbone!r}, but {library} is not installed: pip install {library}, or "
            "leave perceptual_backbone out"
        ) from error
    if weights is not None and weights.endswith(".safetensors"):
        network.load_state_dict(load_file(weights))
    elif weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    features = getattr(network, "features", None)
    if not isinstance(features, nn.Sequential):
        raise ValueError(
            f"perceptual_backbone {backbone!r}: {type(network).__name__} has no sequence `features`; VGG and "
            "AlexNet have one"
        )
    return PerceptualLoss(_split_at_pools(features))


def _split_at_pools(features: nn.Sequential) -> list[nn.Module]:
    """One stage from each pooling to the next, so that a stage ends before its resolution is lost."""
    stages: list[list[nn.Module]] = [[]]
    for module in features:
        if isinstance(module, nn.MaxPool2d) and stages[-1]:
            stages.append([])
        if isinstance(module, nn.ReLU):
            module.inplace = False  # it would write over the features that are compared
        stages[-1].append(module)
    return [nn.Sequential(*stage) for stage in stages if len(stage) > 1]
