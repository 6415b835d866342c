"""rows → weights: `Trainer` with what image tokens need of it.

Differs from transformers' `Trainer` in three things: the embeddings take no weight decay (decay would move
frozen rows, and drains the rows of rare tokens), logits are computed only where there is a label, and the
order of rows grouped by length is that of `sampling`, which a resumed run repeats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import Trainer, trainer_pt_utils

from .exact_resume import ExactResumeMixin
from .sampling import LengthGroupedSampler


class BeingVLTrainer(ExactResumeMixin, Trainer):
    """A `Trainer` for [`BeingVLForCausalLM`]; its arguments are `Trainer`'s."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """The names that weight decay applies to: `Trainer`'s, without both embedding matrices."""
        embeddings = {
            id(module.weight)
            for module in (model.get_input_embeddings(), model.get_output_embeddings())
        }
        kept_out = {n for n, p in model.named_parameters() if id(p) in embeddings}
        return [n for n in super().get_decay_parameter_names(model) if n not in kept_out]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        if not isinstance(sampler, trainer_pt_utils.LengthGroupedSampler):
            return sampler
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return LengthGroupedSampler(sampler.lengths, sampler.batch_size, seed=seed)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """`Trainer.compute_loss`, with logits of shape (num_labels, vocab_size) in the outputs."""
        return super().compute_loss(model, {**inputs, "label_logits_only": True}, *args, **kwargs)
