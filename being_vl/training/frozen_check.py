"""Checks that frozen rows have not moved, by a fingerprint of each, taken at the start and compared at saves.

A row's fingerprint is its bits in 64-bit arithmetic, so any change of a single number is found, and
others with a probability of 1 − 2⁻⁶⁴; it takes 8 bytes a row instead of a copy of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ..models.frozen_rows import FreezesRows

_ROWS_AT_ONCE = 4096
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_NAMED_ROWS = 5


class FrozenRowsMoved(RuntimeError):
    """Rows that were frozen have other values than when training began."""


class FrozenRowsCheck:
    """Fingerprints of the frozen rows of a model, which may be sharded by DeepSpeed or FSDP2.

    All processes of a sharded run must make it, and call `verify`, together: rows are gathered.
    """

    def __init__(self, model: nn.Module):
        self._taken: list[_Taken] = []
        for name, module in model.named_modules():
            if not isinstance(module, FreezesRows) or module.frozen_rows is None:
                continue
            if any(module.weight is taken.layer.weight for taken in self._taken):
                continue  # a tied head is the same matrix
            prints = _fingerprints(module.weight, *module.frozen_rows)
            self._taken.append(_Taken(name, module, *module.frozen_rows, prints))

    def verify(self) -> None:
        """Raises FrozenRowsMoved, naming layer and rows, if a frozen row has changed by a bit."""
        for taken in self._taken:
            now = _fingerprints(taken.layer.weight, taken.start, taken.stop)
            moved = (now != taken.fingerprints).nonzero().flatten()
            if len(moved):
                shown = ", ".join(str(taken.start + int(i)) for i in moved[:_NAMED_ROWS])
                more = f" and {len(moved) - _NAMED_ROWS} more" if len(moved) > _NAMED_ROWS else ""
                raise FrozenRowsMoved(
                    f"{taken.name}.weight: rows {shown}{more} are frozen and have moved; nothing was saved. "
                    "Weight decay, an optimizer of its own or a fused loss that bypasses the layer does that"
                )


class _Taken(NamedTuple):
    name: str
    layer: FreezesRows
    start: int
    stop: int
    fingerprints: torch.Tensor


def _fingerprints(parameter: nn.Parameter, start: int, stop: int) -> torch.Tensor:
    """int64 (stop - start,), on the CPU."""
    with torch.no_grad(), gathered(parameter) as weight:
        parts = [_row_bits(rows) for rows in weight[start:stop].split(_ROWS_AT_ONCE)]
        return torch.cat(parts).cpu()


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
