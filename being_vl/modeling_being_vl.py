"""ids → embeddings → hidden states → logits: a Llama whose vocabulary also holds image tokens.

Source: Being-VL ("From Pixels to Tokens", ICLR 2025), on transformers' Llama. Parameters, their names and
their arithmetic are Llama's, so a stock LlamaForCausalLM loads the same checkpoint with the same logits.
It differs in training: rows of the embeddings can be frozen, and the loss can be computed from only the
positions that have a label.
"""

import copy

import numpy as np
import torch
from torch import nn
from transformers import Cache, LlamaForCausalLM, LlamaModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .configuration_being_vl import BeingVLConfig
from .frozen_rows import RowFreezingEmbedding, RowFreezingLinear
from .image_rows import ImageInit, check_image_init, new_rows
from .vocabulary import VocabularyLayout

_IGNORE_INDEX = -100


class BeingVLModel(LlamaModel):
    """Llama's decoder without a head, over the vocabulary of text, special and image tokens."""

    config: BeingVLConfig

    def __init__(self, config: BeingVLConfig):
        super().__init__(config)
        self.embed_tokens = RowFreezingEmbedding.of(self.embed_tokens)


class BeingVLForCausalLM(LlamaForCausalLM):
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

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        label_logits_only: bool = False,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Llama's forward, with one more argument.

        Args:
            input_ids: (batch, length) long, token ids.
            attention_mask: (batch, length), or on sdpa and eager (batch, 1, length, key_length): boolean
                with True where a query may look, or float and added to the attention scores.
            position_ids: (batch, length) long.
            labels: (batch, length) long, −100 where there is nothing to predict; shifted inside.
            logits_to_keep: the number of last positions, or the positions, to compute logits for.
            label_logits_only: compute logits only where the next token has a label, which costs next to
                nothing for answer-only labels on a large vocabulary. The loss is the same; `logits`
                has shape (num_labels, vocab_size), in row-major order of the positions.

        Raises:
            ValueError: `label_logits_only` without labels or together with `logits_to_keep`.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
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
            image_init: how the new rows start, see `image_rows.new_rows`: `"normal"`, `"mean_text"`,
                `"codebook"` (needs `codebook` and `merges`) or `"constituents"` (needs `merges`).
            image_init_std: see `image_rows.new_rows`; by default that of the text rows.
            codebook: (K, dim) code vectors of the VQ-GAN.
            merges: (M, 4) merge rules, `ImageBPE.merges`.
            generator: a CPU generator for the new rows; they are the same whatever the dtype.

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
        config = _extended_config(
            text_model,
            layout,
            boi_token_id=boi_token_id,
            eoi_token_id=eoi_token_id,
            image_token_id=image_token_id,
            image_grid_size=image_grid_size,
            **({} if pad_token_id is None else {"pad_token_id": pad_token_id}),
        )

        def extended(matrix: torch.Tensor) -> torch.Tensor:
            text_rows = matrix[: layout.text_size].detach()
            rows = new_rows(
                text_rows,
                layout,
                image_init,
                std=image_init_std,
                codebook=codebook,
                merges=merges,
                generator=generator,
            )
            return torch.cat([text_rows, rows.to(text_rows)])

        state = {name: tensor.detach().clone() for name, tensor in text_model.state_dict().items()}
        state["model.embed_tokens.weight"] = extended(text_model.get_input_embeddings().weight)
        state["lm_head.weight"] = (
            state["model.embed_tokens.weight"]
            if config.tie_word_embeddings
            else extended(text_model.get_output_embeddings().weight)
        )
        with torch.device("meta"):
            model = cls(config)
        model.load_state_dict(state, assign=True)
        model.tie_weights()
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
        mean_resizing: bool = False,
    ) -> nn.Embedding:
        """Llama's, kept in step with the layout: a size below it drops the last merges.

        Rows beyond the layout are padding. `mean_resizing` is off by default: it estimates a covariance
        over the whole vocabulary.

        Raises:
            ValueError: the size would cut into the codes.
        """
        layout = self.config.layout
        if new_num_tokens is not None and new_num_tokens < layout.first_merge_id:
            raise ValueError(
                f"new_num_tokens must be at least {layout.first_merge_id} to keep text, special tokens and "
                f"codes, got {new_num_tokens}"
            )
        embeddings = super().resize_token_embeddings(
            new_num_tokens, pad_to_multiple_of, mean_resizing
        )
        if self.config.vocab_size < layout.size:
            self.config.num_merges = self.config.vocab_size - layout.first_merge_id
        self.set_output_embeddings(RowFreezingLinear.of(self.get_output_embeddings()))
        self._set_frozen_rows(self._frozen_rows)
        return embeddings

    def resize_image_embeddings(
        self, num_image_tokens: int, *, generator: torch.Generator | None = None
    ) -> nn.Embedding:
        """Give the vocabulary `num_image_tokens` visual ids, K codes and the rest merges.

        Rows that stay keep their values; rows that come are drawn from a normal distribution with the
        standard deviation of the text rows. Rows of padding are dropped.

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


def _shifted(
    labels: torch.LongTensor | None, shift_labels: torch.LongTensor | None
) -> torch.LongTensor:
    """What each position predicts, (batch, length); −100 where nothing."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise ValueError("label_logits_only needs labels")
    return nn.functional.pad(labels[:, 1:], (0, 1), value=_IGNORE_INDEX)


def _extended_config(
    text_model: LlamaForCausalLM, layout: VocabularyLayout, **fields
) -> BeingVLConfig:
    """The text model's configuration with the layout's sizes."""
    text = text_model.config.to_dict()
    for name in (
        "model_type",
        "architectures",
        "transformers_version",
        "_name_or_path",
        "auto_map",
    ):
        text.pop(name, None)
    config = BeingVLConfig(
        **{
            **text,
            "vocab_size": layout.size,
            "text_vocab_size": layout.text_size,
            "num_special_tokens": layout.num_special_tokens,
            "codebook_size": layout.codebook_size,
            "num_merges": layout.num_merges,
            "dtype": text_model.dtype,
            **fields,
        }
    )
    config._attn_implementation = text_model.config._attn_implementation
    return config


__all__ = ["BeingVLForCausalLM", "BeingVLModel"]
