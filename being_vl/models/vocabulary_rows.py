"""vocabulary → rows of the embedding and of the head: resizing them, and which of them move.

Source: transformers' resizing; Being-VL-0's stage of training in which text rows stay. It differs from both
in that the layout of the vocabulary and the rows are changed together.
"""

from typing import Any

import torch
from torch import nn

from ..bpe.image_bpe import ImageBPE
from ..vocabulary import VocabularyLayout
from .frozen_rows import FreezesRows, able_to_freeze
from .image_rows import new_rows
from .quiet_rows import quiet_shift


class VocabularyRows:
    """A mixin for a model with a head and a `config` with [`ImageVocabularyConfig`]'s fields."""

    config: Any
    image_bpe: ImageBPE | None
    _frozen_rows: str | None = None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """transformers', kept in step with the layout: a size below it cuts the last merges off, and so on.

        Rows beyond the layout are padding; for more image tokens there is `resize_image_embeddings`.
        """
        embeddings = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        layout = self.config.layout.cut_to(self.config.vocab_size)
        if layout != self.config.layout:
            self.config.layout = layout
            self.image_bpe = None
        self._set_frozen_rows(self._frozen_rows)
        return embeddings

    def resize_image_embeddings(
        self, num_image_tokens: int, *, generator: torch.Generator | None = None
    ) -> nn.Embedding:
        """Give the vocabulary `num_image_tokens` visual ids, K codes and the rest merges; returns the input embedding.

        Rows that stay keep their values; rows that come start as `"mean_text"`, see `image_rows.new_rows`,
        and take no probability from text. Rows of padding are dropped, and so is `image_bpe`, which
        no longer fits: set it anew. `generator` is a CPU generator for the new rows.

        Raises:
            ValueError: `num_image_tokens` is less than K.
        """
        old = self.config.layout
        if num_image_tokens < old.codebook_size:
            raise ValueError(
                f"num_image_tokens must be at least codebook_size = {old.codebook_size}, got {num_image_tokens}"
            )
        size = old.first_code_id + num_image_tokens
        embeddings = self.resize_token_embeddings(size, mean_resizing=False)
        self.config.num_merges = num_image_tokens - old.codebook_size
        if num_image_tokens != old.num_image_tokens:
            self.image_bpe = None
        self._set_frozen_rows(self._frozen_rows)
        head = self.get_output_embeddings().weight
        for matrix in dict.fromkeys((embeddings.weight, head)) if size > old.size else ():
            come = VocabularyLayout(old.text_size, 0, 0, size - old.size)
            rows = new_rows(matrix[: old.text_size], come, "mean_text", generator=generator)
            if matrix is head:
                rows += quiet_shift(self, old.text_size, rows)
            with torch.no_grad():
                matrix[old.size :] = rows.to(matrix)
        return embeddings

    def freeze_text_embeddings(self) -> None:
        """Freeze the text rows, [0, T), of the embedding and of the head while the rest trains.

        The rest of the model is left as it is; freeze it with `requires_grad_(False)`. A frozen row gets a gradient
        of exactly zero, by a stop-gradient in the forward; parameters that weight decay must not touch are in
        `frozen_row_parameter_names`.
        """
        self._set_frozen_rows("text")

    def freeze_image_embeddings(self) -> None:
        """Freeze the code and merge rows of the embedding and of the head while the rest trains."""
        self._set_frozen_rows("image")

    def unfreeze(self) -> None:
        """Let all rows train again. `requires_grad` of other parameters is left as it is."""
        self._set_frozen_rows(None)

    @property
    def frozen_row_parameter_names(self) -> set[str]:
        """The parameters that hold frozen rows: an optimizer must not apply weight decay to them."""
        if self._frozen_rows is None:
            return set()
        holders = (self.get_input_embeddings().weight, self.get_output_embeddings().weight)
        return {
            name
            for name, parameter in self.named_parameters(remove_duplicate=False)
            if any(parameter is holder for holder in holders)
        }

    def _set_frozen_rows(self, which: str | None) -> None:
        layout = self.config.layout
        spans = {
            None: None,
            "text": (0, layout.text_size),
            "image": (layout.first_code_id, layout.size),
        }
        holders = [self.get_input_embeddings(), self.get_output_embeddings()]
        if which is not None:  # a new layer too, such as the head after a resize; both or none
            holders = [able_to_freeze(holder) for holder in holders]
        self._frozen_rows = which
        for holder in holders:
            for layer in holder.modules():  # what an adapter wraps is a module of its wrapper
                if isinstance(layer, FreezesRows):
                    layer.frozen_rows = spans[which]
            if which is not None:
                holder.weight.requires_grad_(True)
