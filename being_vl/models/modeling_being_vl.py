"""ids → embeddings → hidden states → logits: a Llama whose vocabulary also holds image tokens.

Source: Being-VL ("From Pixels to Tokens", ICLR 2025), on transformers' Llama. Parameters, their names and
their arithmetic are Llama's, so a stock LlamaForCausalLM loads the same checkpoint with the same logits.
It differs in training: rows of the embeddings can be frozen, and the loss can be computed from only the
positions that have a label.
"""

import copy
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple

from ..bpe.image_bpe import ImageBPE
from ..hub.pushing import PushesCheckpoint, model_source
from ..vocabulary import VocabularyLayout
from .configuration_being_vl import BeingVLConfig
from .frozen_rows import RowFreezingEmbedding, RowFreezingLinear
from .generation_being_vl import BeingVLGenerationMixin
from .image_grid_positions import GridPositionEmbedding
from .image_grid_positions import image_token_positions as positions_in_grids
from .image_rows import ImageInit, check_image_init
from .text_model_extension import extended_config, extended_state

_IGNORE_INDEX = -100


class BeingVLModel(LlamaModel):
    """Llama's decoder without a head, over the vocabulary of text, special and image tokens."""

    config: BeingVLConfig

    def __init__(self, config: BeingVLConfig):
        super().__init__(config)
        self.embed_tokens = RowFreezingEmbedding.of(self.embed_tokens)
        self.grid_positions = (
            GridPositionEmbedding(config.max_grid_size, config.hidden_size)
            if config.image_positions == "grid"
            else None
        )

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, GridPositionEmbedding):
            module.reset_parameters()
        else:
            super()._init_weights(module)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        image_token_positions: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Llama's forward; `image_token_positions`, (batch, length, 2) long, only with grid positions.

        A boolean 4D mask means the same on eager attention as on sdpa; Llama's eager attention adds it.
        """
        if (
            isinstance(attention_mask, torch.Tensor)
            and attention_mask.ndim == 4
            and attention_mask.dtype == torch.bool
            and self.config._attn_implementation == "eager"
        ):
            least = torch.finfo(self.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=self.dtype).masked_fill(
                ~attention_mask, least
            )
        if self.grid_positions is not None and image_token_positions is not None:
            if inputs_embeds is None:
                inputs_embeds, input_ids = self.embed_tokens(input_ids), None
            inputs_embeds = inputs_embeds + self.grid_positions(image_token_positions)
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )


class BeingVLForCausalLM(BeingVLGenerationMixin, PushesCheckpoint, LlamaForCausalLM):
    """Llama's causal language model over the vocabulary of text, special and image tokens."""

    config: BeingVLConfig

    def __init__(self, config: BeingVLConfig):
        # LlamaForCausalLM would allocate a LlamaModel only for it to be replaced.
        super(LlamaForCausalLM, self).__init__(config)
        self.model = BeingVLModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = RowFreezingLinear(config.hidden_size, config.vocab_size, bias=False)
        self._frozen_rows: str | None = None
        self.post_init()

    def _checkpoint_source(self) -> tuple[str, str | None] | None:
        return model_source(self)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        image_token_positions: torch.Tensor | None = None,
        label_logits_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Llama's forward, with two more arguments.

        Args:
            input_ids: (batch, length) long, token ids.
            attention_mask: (batch, length), or on sdpa and eager (batch, 1, length, key_length): boolean
                with True where a query may look, or float and added to the attention scores.
            position_ids: (batch, length) long.
            labels: (batch, length) long, −100 where there is nothing to predict; shifted inside.
            logits_to_keep: the number of last positions, or the positions, to compute logits for.
            image_token_positions: (batch, length, 2) long, row and column of each image token in its grid
                and −1 elsewhere; for `config.image_positions="grid"` alone. Left out, it is computed
                from the ids, on the CPU, by `config.image_grid_size`.
            label_logits_only: compute logits only where the next token has a label, which costs next to
                nothing for answer-only labels on a large vocabulary. The loss is the same; `logits`
                has shape (num_labels, vocab_size), in row-major order of the positions.

        Raises:
            ValueError: `label_logits_only` without labels or together with `logits_to_keep`; grid
                positions wanted and not given where they cannot be computed.
        """
        if image_token_positions is None and self.config.image_positions == "grid":
            image_token_positions = self._positions_from_ids(input_ids, past_key_values)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_token_positions=image_token_positions,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if label_logits_only:
            if not (isinstance(logits_to_keep, int) and logits_to_keep == 0):
                raise ValueError("label_logits_only and logits_to_keep exclude each other")
            shift_labels = _shifted(labels, kwargs.get("shift_labels"))
            has_label = shift_labels != _IGNORE_INDEX
            hidden_states = hidden_states[has_label.to(hidden_states.device)]
            kwargs["shift_labels"] = shift_labels[has_label]
        elif isinstance(logits_to_keep, int):
            hidden_states = hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
        else:
            hidden_states = hidden_states[:, logits_to_keep]
        logits = self.lm_head(hidden_states)

        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_token_positions: torch.Tensor | None = None,
        image_grid_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers', with the grid positions of the ids that go in, where the model has any."""
        inputs = super().prepare_inputs_for_generation(
            input_ids,
            next_sequence_length=next_sequence_length,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        if self.config.image_positions == "grid" and inputs.get("input_ids") is not None:
            positions = self._grid_positions(
                input_ids, image_grid_size, known=image_token_positions, strict=False
            )
            inputs["image_token_positions"] = positions[:, -inputs["input_ids"].shape[1] :]
        return inputs

    def _positions_from_ids(
        self, input_ids: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor | None:
        """Positions for a forward that was given none."""
        layout = self.config.layout
        if input_ids is None:
            return None
        if not ((input_ids >= layout.first_code_id) & (input_ids < layout.size)).any():
            return None
        if past_key_values is not None and past_key_values.get_seq_length() > 0:
            raise ValueError("image_token_positions must be given with image tokens behind a cache")
        return self._grid_positions(input_ids, None)

    def _grid_positions(
        self,
        input_ids: torch.Tensor,
        image_grid_size: tuple[int, int] | None,
        *,
        known: torch.Tensor | None = None,
        strict: bool = True,
    ) -> torch.Tensor:
        config = self.config
        size = image_grid_size if image_grid_size is not None else config.image_grid_size
        if size is None:
            raise ValueError(
                "image_token_positions must be given, or image_grid_size set in the configuration"
            )
        return positions_in_grids(
            input_ids,
            config.layout,
            self.image_bpe,
            tuple(size),
            boi_token_id=config.boi_token_id,
            eoi_token_id=config.eoi_token_id,
            known=known,
            strict=strict,
        )

    @classmethod
    def from_text_model(
        cls,
        text_model: LlamaForCausalLM,
        layout: VocabularyLayout,
        *,
        boi_token_id: int,
        eoi_token_id: int,
        image_token_id: int,
        pad_token_id: int | None = None,
        image_grid_size: tuple[int, int] | None = None,
        image_positions: Literal["grid"] | None = None,
        image_init: ImageInit = "normal",
        image_init_std: float | None = None,
        codebook: torch.Tensor | None = None,
        merges: np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> "BeingVLForCausalLM":
        """A model that is `text_model` on text, and has new rows for special and image tokens.

        All parameters are copied, bit for bit; those of the first T ids keep their place in the
        embedding and in the head. Rows of `text_model` beyond T (padding) are dropped.

        Args:
            text_model: any Llama, with a tied or an untied head.
            layout: the vocabulary; `layout.text_size` is the size of the text tokenizer.
            boi_token_id, eoi_token_id, image_token_id: see [`BeingVLConfig`].
            pad_token_id: replaces the text model's.
            image_grid_size: (height, width) of the images to generate by default.
            image_positions: see [`BeingVLConfig`].
            image_init: how the new rows start, see `image_rows.new_rows`: `"normal"`, `"mean_text"`,
                `"codebook"` (needs `codebook` and `merges`) or `"constituents"` (needs `merges`).
            image_init_std: see `image_rows.new_rows`; by default that of the text rows.
            codebook: (K, dim) code vectors of the VQ-GAN.
            merges: (M, 4) merge rules, `ImageBPE.merges`.
            generator: a CPU generator for the new rows.

        Raises:
            TypeError: `text_model` is no LlamaForCausalLM.
            ValueError: T exceeds the rows of `text_model`, or an initialisation lacks its source.
        """
        if not isinstance(text_model, LlamaForCausalLM):
            raise TypeError(
                f"text_model must be a LlamaForCausalLM, got {type(text_model).__name__}"
            )
        num_text_rows = text_model.get_input_embeddings().weight.shape[0]
        if layout.text_size > num_text_rows:
            raise ValueError(
                f"layout.text_size is {layout.text_size}, but the text model has {num_text_rows} rows"
            )
        check_image_init(image_init, layout, codebook, merges)
        config = extended_config(
            text_model,
            layout,
            boi_token_id=boi_token_id,
            eoi_token_id=eoi_token_id,
            image_token_id=image_token_id,
            image_grid_size=image_grid_size,
            image_positions=image_positions,
            **({} if pad_token_id is None else {"pad_token_id": pad_token_id}),
        )
        state = extended_state(
            text_model,
            config,
            image_init,
            std=image_init_std,
            codebook=codebook,
            merges=merges,
            generator=generator,
        )
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
        if merges is not None:
            merges = np.asarray(merges)
            # Rules without offsets are the paper's pairs; in rules of shapes, one offset is never 0.
            is_pairs = len(merges) > 0 and not merges[:, 2:].any()
            model.image_bpe = ImageBPE(
                merges, layout.codebook_size, merge_rule="pair" if is_pairs else "shape"
            )
        # Buffers that are in no state dict; on the meta device they have no values to keep.
        model.model.rotary_emb = copy.deepcopy(text_model.model.rotary_emb)
        model.generation_config = copy.deepcopy(text_model.generation_config)
        if pad_token_id is not None:
            model.generation_config.pad_token_id = pad_token_id
        return model.train(text_model.training)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Llama's, kept in step with the layout: a size below it cuts the last merges off, and so on.

        Rows beyond the layout are padding; for more image tokens there is `resize_image_embeddings`.
        """
        embeddings = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        layout = self.config.layout.cut_to(self.config.vocab_size)
        if layout != self.config.layout:
            self.config.layout = layout
            self.image_bpe = None
        self.set_output_embeddings(RowFreezingLinear.of(self.get_output_embeddings()))
        self._set_frozen_rows(self._frozen_rows)
        return embeddings

    def resize_image_embeddings(
        self, num_image_tokens: int, *, generator: torch.Generator | None = None
    ) -> nn.Embedding:
        """Give the vocabulary `num_image_tokens` visual ids, K codes and the rest merges.

        Rows that stay keep their values; rows that come are drawn from a normal distribution with the
        standard deviation of the text rows. Rows of padding are dropped, and so is `image_bpe`, which
        no longer fits: set it anew.

        Args:
            num_image_tokens: K + M, as of `ImageBPE.vocab_size`.
            generator: a CPU generator for the new rows.

        Returns:
            The input embedding.

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
        matrices = [embeddings.weight]
        if not self.config.tie_word_embeddings:
            matrices.append(self.get_output_embeddings().weight)
        for matrix in matrices if size > old.size else []:
            std = matrix[: old.text_size].detach().float().std().cpu()
            rows = std * torch.randn(size - old.size, matrix.shape[1], generator=generator)
            with torch.no_grad():
                matrix[old.size :] = rows.to(matrix)
        return embeddings

    def freeze_text_embeddings(self) -> None:
        """Hold the text rows, [0, T), of the embedding and of the head still while the rest trains.

        The special, code and merge rows train: all of them are new. The rest of the model is left as it
        is; freeze it with `requires_grad_(False)`. A frozen row gets a gradient of exactly zero, by a
        stop-gradient in the forward; parameters that weight decay must not touch are in
        `frozen_row_parameter_names`.
        """
        self._set_frozen_rows("text")

    def freeze_image_embeddings(self) -> None:
        """Hold the code and merge rows of the embedding and of the head still while the rest trains."""
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
        self._frozen_rows = which
        for holder in (self.get_input_embeddings(), self.get_output_embeddings()):
            holder.frozen_rows = spans[which]
            if which is not None:
                holder.weight.requires_grad_(True)


def _shifted(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> torch.Tensor:
    """What each position predicts, (batch, length); −100 where nothing."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise ValueError("label_logits_only needs labels")
    return F.pad(labels[:, 1:], (0, 1), value=_IGNORE_INDEX)


__all__ = ["BeingVLForCausalLM", "BeingVLModel"]
