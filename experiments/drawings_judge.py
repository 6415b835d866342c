"""drawings → how they are judged: a classifier of their kinds, and a distance between two sets of them.

Both see drawings of 64×64 pixels at half their size. The classifier is trained here on training drawings. The distance
is that of KID (Bińkowski et al., 2018) on features of a network of random weights instead of Inception's, which cannot
be had from a package; its values compare with each other alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def small(drawings: np.ndarray) -> torch.Tensor:
    """Uint8 (n, side, side, 3) → float (n, 3, side / 2, side / 2): 1 is ink, 0 the white ground."""
    pixels = 1 - torch.tensor(drawings).permute(0, 3, 1, 2).float() / 255
    return F.avg_pool2d(pixels, 2)


def layers(widths: Sequence[int]) -> nn.Sequential:
    """Convolutions of 3×3 pixels, each but the first halving the side."""
    found: list[nn.Module] = []
    for depth, (before, width) in enumerate(zip((3, *widths), widths, strict=False)):
        stride = 2 if depth else 1
        found += [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*found)


class Judge:
    """A classifier of the kinds of drawings.

    Args:
        drawings: uint8 (n, side, side, 3).
        kinds: of each.
        epochs: over the drawings, each moved by up to two small pixels and mirrored or not.
    """

    def __init__(self, drawings: np.ndarray, kinds: Sequence[str], epochs: int, seed: int = 0):
        self.kinds = sorted(set(kinds))
        inputs, labels = small(drawings), self._labels(kinds)
        torch.manual_seed(seed)
        side = inputs.shape[-1] // 4
        head = [nn.AvgPool2d(side // 2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4 * 64, len(self.kinds))]  # fmt: skip
        self.network = nn.Sequential(layers((16, 32, 64)), *head)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=3e-3, weight_decay=0.05)
        batches = -(-len(inputs) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, 3e-3, total_steps=epochs * batches
        )
        for _ in range(epochs):
            for chosen in torch.randperm(len(inputs)).split(64):
                batch = F.pad(inputs[chosen], (2, 2, 2, 2))
                top, left = torch.randint(5, (2,)).tolist()
                batch = batch[:, :, top : top + inputs.shape[2], left : left + inputs.shape[3]]
                if torch.rand(()) < 0.5:
                    batch = batch.flip(3)
                loss = F.cross_entropy(self.network(batch), labels[chosen], label_smoothing=0.1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        self.network.eval()

    def _labels(self, kinds: Sequence[str]) -> torch.Tensor:
        numbers = {kind: number for number, kind in enumerate(self.kinds)}
        return torch.tensor([numbers[kind] for kind in kinds])

    @torch.inference_mode()
    def accuracy(self, drawings: np.ndarray, kinds: Sequence[str]) -> float:
        """Share in % of the drawings whose kind it says."""
        said = self.network(small(drawings)).argmax(1)
        return 100 * (said == self._labels(kinds)).float().mean().item()


class RandomFeatures:
    """Features of a network of random weights, brought to mean 0 and deviation 1 on the drawings given."""

    def __init__(self, drawings: np.ndarray, seed: int = 0):
        torch.manual_seed(seed)
        self.network = nn.Sequential(layers((32, 64, 128)), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.network.train()  # batch norm takes its statistics here, once
        with torch.no_grad():
            self.network(small(drawings))
        self.network.eval()
        self.mean, self.std = torch.zeros(1), torch.ones(1)
        found = self(drawings)
        self.mean, self.std = found.mean(0), found.std(0) + 1e-6

    @torch.inference_mode()
    def __call__(self, drawings: np.ndarray) -> torch.Tensor:
        """Float (n, features)."""
        found = torch.cat([self.network(part) for part in small(drawings).split(256)])
        return (found - self.mean) / self.std


def kernel_distance(first: torch.Tensor, second: torch.Tensor) -> float:
    """KID's unbiased squared maximum mean discrepancy of two sets of features, (n, features) each."""

    def kernel(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return ((a @ b.T) / a.shape[1] + 1).double() ** 3

    def within(a: torch.Tensor) -> torch.Tensor:
        same = kernel(a, a)
        return (same.sum() - same.diagonal().sum()) / (len(a) * (len(a) - 1))

    return (within(first) + within(second) - 2 * kernel(first, second).mean()).item()
