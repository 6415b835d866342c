"""ids → embeddings and hidden states → logits, with some rows of the matrix held still.

Source: nn.Embedding and nn.Linear. They differ in one attribute, `frozen_rows`: while gradients are
computed, these rows enter the forward as constants, so no gradient reaches them. A stop-gradient in the
forward sees the gathered matrix under ZeRO-3 and FSDP2 too, where a hook on the parameter does not.
The gradient of a frozen row is exactly zero, which no optimizer turns into a step; decoupled weight decay
still shrinks it, so the matrix belongs in a group without weight decay.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class RowFreezingEmbedding(nn.Embedding):
    """nn.Embedding whose rows `[start, stop)` do not move while `frozen_rows = (start, stop)`."""

    frozen_rows: tuple[int, int] | None = None

    @classmethod
    def of(cls, embedding: nn.Embedding) -> RowFreezingEmbedding:
        """The same layer around the same parameter."""
        layer = cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            padding_idx=embedding.padding_idx,
            device="meta",
        )
        layer.weight = embedding.weight
        return layer.train(embedding.training)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        rows = super().forward(input)
        if self.frozen_rows is None or not torch.is_grad_enabled():
            return rows
        start, stop = self.frozen_rows
        moves = (input < start) | (input >= stop)
        return torch.where(moves.unsqueeze(-1), rows, rows.detach())


class RowFreezingLinear(nn.Linear):
    """nn.Linear without bias whose output rows `[start, stop)` do not move while `frozen_rows` is set."""

    frozen_rows: tuple[int, int] | None = None

    @classmethod
    def of(cls, linear: nn.Linear) -> RowFreezingLinear:
        """The same layer around the same parameter."""
        if isinstance(linear, cls):
            return linear
        layer = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        layer.weight = linear.weight
        # transformers' mark on a layer that `post_init` must not initialise again.
        layer._is_hf_initialized = getattr(linear, "_is_hf_initialized", False)
        return layer.train(linear.training)

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
