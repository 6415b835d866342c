"""Frozen rows must not have moved: a fingerprint of each, taken when training begins and compared at saves.

A row's fingerprint is its bits in 64-bit arithmetic, so any change of a single number is found, and
others with a probability of 1 − 2⁻⁶⁴; it takes 8 bytes a row instead of a copy of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..frozen_rows import RowFreezingEmbedding, RowFreezingLinear

_ROWS_AT_ONCE = 4096
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAMED_ROWS = 5


class FrozenRowsMoved(RuntimeError):
    """Rows that were frozen have other values than when training began."""


class FrozenRowsCheck:
    """Fingerprints of a model's frozen rows.

    All processes of a sharded run must make it, and call `verify`, together: rows are gathered.

    Args:
        model: a model with `RowFreezing` layers; it may be sharded by DeepSpeed or FSDP2.
    """

    def __init__(self, model: nn.Module):
        self._model = model
        self._taken = {name: _fingerprints(layer) for name, layer in self._frozen_layers().items()}

    def _frozen_layers(self) -> dict[str, RowFreezingEmbedding | RowFreezingLinear]:
        layers = {}
        seen: set[int] = set()
        for name, module in self._model.named_modules():
            if isinstance(module, RowFreezingEmbedding | RowFreezingLinear):
                if module.frozen_rows is not None and id(module.weight) not in seen:
                    seen.add(id(module.weight))  # a tied head is the same matrix
                    layers[name] = module
        return layers

    def verify(self) -> None:
        """Raises FrozenRowsMoved, naming layer and rows, if a frozen row has changed by a bit."""
        layers = self._frozen_layers()
        for name, before in self._taken.items():
            now = _fingerprints(layers[name])
            moved = (now != before).nonzero().flatten()
            if len(moved):
                start = layers[name].frozen_rows[0]
                shown = ", ".join(str(start + int(i)) for i in moved[:_NAMED_ROWS])
                more = f" and {len(moved) - _NAMED_ROWS} more" if len(moved) > _NAMED_ROWS else ""
                raise FrozenRowsMoved(
                    f"{name}.weight: rows {shown}{more} are frozen and have moved; nothing was saved. Weight "
                    "decay, an optimizer of its own or a fused loss that bypasses the layer does that"
                )


def _fingerprints(layer: RowFreezingEmbedding | RowFreezingLinear) -> torch.Tensor:
    """int64 (frozen rows,), on the CPU."""
    start, stop = layer.frozen_rows
    with torch.no_grad(), gathered(layer.weight) as weight:
        parts = [
            _row_bits(weight[first : min(first + _ROWS_AT_ONCE, stop)])
            for first in range(start, stop, _ROWS_AT_ONCE)
        ]
        return torch.cat(parts).cpu() if parts else torch.empty(0, dtype=torch.long)


def _row_bits(rows: torch.Tensor) -> torch.Tensor:
    """(rows, columns) of any dtype → int64 (rows,): odd multiples of the bits, summed modulo 2⁶⁴."""
    bits = rows.contiguous().view(_BITS[rows.element_size()]).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(2**62), 2**62, (bits.shape[1],), generator=generator) * 2 + 1
    return (bits * factors.to(bits.device)).sum(dim=1)


@contextmanager
def gathered(parameter: nn.Parameter) -> Iterator[torch.Tensor]:
    """The whole of a parameter, to read, where DeepSpeed ZeRO-3 or FSDP2 hold a part in each process."""
    if isinstance(parameter, DTensor):
        yield parameter.full_tensor()
    elif hasattr(parameter, "ds_id"):  # DeepSpeed's mark on a parameter that ZeRO-3 has partitioned
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            yield parameter
    else:
        yield parameter
