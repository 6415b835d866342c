"""ids → embeddings and hidden states → logits, with some rows of the matrix frozen.

Source: nn.Embedding and nn.Linear. They differ in one attribute, `frozen_rows`: while gradients are
computed, these rows enter the forward as constants, so no gradient reaches them. A stop-gradient in the
forward sees the gathered matrix under ZeRO-3 and FSDP2 too, where a hook on the parameter does not.
The gradient of a frozen row is exactly zero, which no optimizer turns into a step; decoupled weight decay
still shrinks it, so the matrix belongs in a group without weight decay.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding


class FreezesRows(nn.Module):
    """A layer whose rows `[start, stop)` do not move while `frozen_rows = (start, stop)`."""

    frozen_rows: tuple[int, int] | None = None
    weight: nn.Parameter


class RowFreezingEmbedding(FreezesRows, nn.Embedding):
    """nn.Embedding with rows that can be frozen."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = super().forward(input)
        if self.frozen_rows is None or not torch.is_grad_enabled():
            return rows
        start, stop = self.frozen_rows
        moves = (input < start) | (input >= stop)
        return torch.where(moves.unsqueeze(-1), rows, rows.detach())


class RowFreezingScaledEmbedding(RowFreezingEmbedding, Gemma3TextScaledWordEmbedding):
    """Gemma's embedding, which multiplies its rows by √hidden_size, with rows that can be frozen."""


class RowFreezingLinear(FreezesRows, nn.Linear):
    """nn.Linear without bias, with output rows that can be frozen."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if self.frozen_rows is None or not torch.is_grad_enabled():
            return super().forward(input)
        start, stop = self.frozen_rows
        parts = [F.linear(input, self.weight[start:stop].detach())]
        if start > 0:
            parts.insert(0, F.linear(input, self.weight[:start]))
        if stop < self.weight.shape[0]:
            parts.append(F.linear(input, self.weight[stop:]))
        return torch.cat(parts, dim=-1)


_ABLE: dict[type[nn.Module], type[FreezesRows]] = {
    nn.Embedding: RowFreezingEmbedding,
    Gemma3TextScaledWordEmbedding: RowFreezingScaledEmbedding,
    nn.Linear: RowFreezingLinear,
}


def able_to_freeze(layer: nn.Module) -> FreezesRows:
    """The same layer, whose class becomes the one of its kind that can freeze rows.

    A new layer around the same parameter would lose what else a text model's layer holds: its scale, its
    buffers, its hooks and transformers' marks.

    Raises:
        TypeError: a kind of layer that has no such class.
    """
    if isinstance(layer, FreezesRows):
        return layer
    if type(layer) not in _ABLE:
        raise TypeError(
            f"rows of a {type(layer).__name__} cannot be frozen: freeze them before an adapter wraps the layer"
        )
    layer.__class__ = _ABLE[type(layer)]
    return layer  # type: ignore[return-value]
