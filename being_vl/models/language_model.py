"""ids → embeddings → hidden states → logits: what being_vl adds to a text model of any family.

Source: Being-VL ("From Pixels to Tokens", ICLR 2025), on transformers' models. Parameters, their names and
their arithmetic are the text model's, whose own forward is called, so its stock class loads the same
checkpoint with the same logits. It differs in training: rows of the embeddings can be frozen, and the loss
can be computed from only the positions that have a label.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import fields as fields_of
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from ..bpe.image_bpe import ImageBPE
from ..hub.part import ModelPart
from ..vocabulary import VocabularyLayout
from .attention_masks import block_masks
from .configuration_being_vl import ImageVocabularyConfig
from .families import ImageInit
from .frozen_rows import able_to_freeze
from .generation_being_vl import BeingVLGenerationMixin
from .image_grid_positions import GridPositionEmbedding
from .image_grid_positions import image_token_positions as positions_in_grids
from .image_rows import check_image_init
from .text_model_extension import extended_config, extended_state
from .vocabulary_rows import VocabularyRows

_IGNORE_INDEX = -100


def _after_those_of(stock: Callable[..., Any], method: Callable[..., Any]) -> Callable[..., Any]:
    """`method`, which takes keywords alone, with the parameters of `stock` before its own.

    transformers looks into signatures: for the columns of a Trainer, for what `generate` may pass. Names
    of parameters change between its versions (`past_key_values` became `cache`), so they are read.
    """
    kinds = inspect.Parameter
    theirs, ours = (list(inspect.signature(one).parameters.values()) for one in (stock, method))
    theirs = [one for one in theirs if one.kind is not kinds.VAR_KEYWORD]
    ours = [one for one in ours if one.kind in (kinds.KEYWORD_ONLY, kinds.VAR_KEYWORD)]
    names = [parameter.name for parameter in theirs[1:]]

    @functools.wraps(method)
    def following(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(names):
            raise TypeError(f"{method.__name__} takes {len(names)} arguments, got {len(args)}")
        return method(self, **dict(zip(names, args, strict=False)), **kwargs)

    following.__signature__ = inspect.Signature([*theirs, *ours])  # type: ignore[attr-defined]
    return following


class BeingVLDecoder(ModelPart):
    """A mixin before a text model's decoder: rows that can be frozen, vectors of grid positions."""

    stock_class: type[PreTrainedModel]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if BeingVLDecoder in cls.__bases__:
            cls.stock_class = cls.__bases__[-1]
            forward = _after_those_of(cls.stock_class.forward, cls.forward)
            cls.forward = forward  # type: ignore[method-assign]

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        able_to_freeze(self.embed_tokens)
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
        *,
        image_token_positions: torch.Tensor | None = None,
        label_positions: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The text model's forward, with two more arguments.

        Args:
            attention_mask: as of the text model; a 4D mask may be boolean on eager attention too, and
                layers with a sliding window see no further than it through a 4D mask.
            image_token_positions: (batch, length, 2) long, only with grid positions.
            label_positions: (batch, length) bool; `last_hidden_state` then has shape (1, number of True,
                hidden_size), in row-major order.
        """
        # Continuous batching passes masks already cut to each layer's window.
        if "read_index" not in kwargs:
            kwargs["attention_mask"] = block_masks(
                kwargs.get("attention_mask"), kwargs.get("position_ids"), self.config, self.dtype
            )
        if self.grid_positions is not None and image_token_positions is not None:
            if kwargs.get("inputs_embeds") is None:
                kwargs["inputs_embeds"] = self.embed_tokens(kwargs.pop("input_ids"))
            vectors = self.grid_positions(image_token_positions)
            kwargs["inputs_embeds"] = kwargs["inputs_embeds"] + vectors
        outputs = super().forward(**kwargs)
        if label_positions is not None:
            hidden_states = outputs.last_hidden_state
            outputs.last_hidden_state = hidden_states[label_positions.to(hidden_states.device)][
                None
            ]
        return outputs


class BeingVLLanguageModel(BeingVLGenerationMixin, VocabularyRows, ModelPart):
    """A mixin before a text model with a head, over the vocabulary of text, special and image tokens.

    A family's class is this mixin before transformers' class, its `stock_class`, with the name of the
    [`BeingVLDecoder`] under the head.
    """

    stock_class: type[PreTrainedModel]
    decoder_class: type[BeingVLDecoder]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if BeingVLLanguageModel in cls.__bases__:
            stock = cls.stock_class = cls.__bases__[-1]
            for name in ("forward", "prepare_inputs_for_generation"):
                setattr(cls, name, _after_those_of(getattr(stock, name), getattr(cls, name)))

    def __init__(self, config: Any):
        # The stock class would allocate a decoder only for it to be replaced.
        super(self.stock_class, self).__init__(config)
        self.model = self.decoder_class(config)
        self.vocab_size = config.vocab_size
        self.lm_head = able_to_freeze(nn.Linear(config.hidden_size, config.vocab_size, bias=False))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        *,
        image_token_positions: torch.Tensor | None = None,
        loss_logits_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """The text model's forward, with two more arguments.

        Args:
            input_ids, position_ids: (batch, length) long.
            attention_mask: (batch, length), or on sdpa and eager (batch, 1, length, key_length): boolean
                with True where a query may look, or float and added to the attention scores.
            labels: (batch, length) long, −100 where there is nothing to predict; shifted inside.
            logits_to_keep: the number of last positions, or the positions, to compute logits for.
            image_token_positions: (batch, length, 2) long, row and column of each image token in its grid
                and −1 elsewhere; for `config.image_positions="grid"` alone. Left out, it is computed
                from the ids, on the CPU, by `config.image_grid_size`.
            loss_logits_only: compute logits only where the next token has a label, which costs next to nothing
                for answer-only labels on a large vocabulary. The loss is the same; `logits` has shape
                (num_labels, vocab_size), in row-major order of the positions.

        Returns:
            `logits` (batch, length, vocab_size), over token ids, and, with labels, `loss` in nats per label.

        Raises:
            ValueError: `loss_logits_only` without labels or together with `logits_to_keep`; grid
                positions wanted and not given where they cannot be computed.
        """
        if image_token_positions is None and self.config.image_positions == "grid":
            cache = kwargs.get("cache", kwargs.get("past_key_values"))
            image_token_positions = self._positions_from_ids(kwargs.get("input_ids"), cache)
        if image_token_positions is not None:
            kwargs["image_token_positions"] = image_token_positions
        if not loss_logits_only:
            return super().forward(**kwargs, return_dict=True)
        keep = kwargs.get("logits_to_keep", 0)
        if not (isinstance(keep, int) and keep == 0):
            raise ValueError("loss_logits_only and logits_to_keep exclude each other")
        shift_labels = _shifted(kwargs.get("labels"), kwargs.get("shift_labels"))
        has_label = shift_labels != _IGNORE_INDEX
        kwargs["shift_labels"] = shift_labels[has_label]
        outputs = super().forward(**kwargs, label_positions=has_label, return_dict=True)
        outputs.logits = outputs.logits[0]
        return outputs

    def prepare_inputs_for_generation(
        self,
        *,
        image_token_positions: torch.Tensor | None = None,
        image_grid_size: tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """transformers', with the grid positions of the ids that go in, where the model has any."""
        input_ids = kwargs["input_ids"]
        inputs = super().prepare_inputs_for_generation(**kwargs)
        if self.config.image_positions == "grid" and inputs.get("input_ids") is not None:
            positions = self._grid_positions(
                input_ids, image_grid_size, known=image_token_positions, strict=False
            )
            inputs["image_token_positions"] = positions[:, -inputs["input_ids"].shape[1] :]
        return inputs

    def _positions_from_ids(
        self, input_ids: torch.Tensor | None, cache: Cache | None
    ) -> torch.Tensor | None:
        """Positions for a forward that was given none."""
        layout = self.config.layout
        if input_ids is None:
            return None
        if not ((input_ids >= layout.first_code_id) & (input_ids < layout.size)).any():
            return None
        if cache is not None and cache.get_seq_length() > 0:
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
        text_model: PreTrainedModel,
        layout: VocabularyLayout,
        *,
        image_init: ImageInit = "mean_text",
        image_init_std: float | None = None,
        codebook: torch.Tensor | None = None,
        merges: np.ndarray | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        **fields: Any,
    ) -> "BeingVLLanguageModel":
        """A model that is `text_model` on text, and has new rows for special and image tokens.

        All parameters are copied, bit for bit; those of the first T ids keep their place in the embedding and in
        the head. Rows of `text_model` beyond T (padding) are dropped.

        Args:
            text_model: a model of the family's stock class, with a tied or an untied head.
            layout: the vocabulary; `layout.text_size` is the size of the text tokenizer.
            image_init, image_init_std, codebook, merges, generator: how the new rows start, see
                `image_rows.new_rows`; `"mean_text"` leaves the probabilities of text alone, the others do not.
            fields: of [`ImageVocabularyConfig`], `boi_token_id`, `eoi_token_id` and `image_token_id` among them, and
                `pad_token_id`, which replaces the text model's.

        Raises:
            TypeError: `text_model` is of another class, or a field is unknown.
            ValueError: T exceeds the rows of `text_model`, or an initialisation lacks its source.
        """
        if not isinstance(text_model, cls.stock_class):
            raise TypeError(
                f"text_model must be a {cls.stock_class.__name__}, got {type(text_model).__name__}"
            )
        known = {"pad_token_id", *(field.name for field in fields_of(ImageVocabularyConfig))}
        if unknown := sorted(fields.keys() - known):
            raise TypeError(f"{unknown[0]} is no field of {ImageVocabularyConfig.__name__}")
        embeddings: Any = text_model.get_input_embeddings()
        num_text_rows = embeddings.weight.shape[0]
        if layout.text_size > num_text_rows:
            raise ValueError(
                f"layout.text_size is {layout.text_size}, but the text model has {num_text_rows} rows"
            )
        check_image_init(image_init, layout, codebook, merges)
        fields = {name: value for name, value in fields.items() if value is not None}
        config = extended_config(cls.config_class, text_model, layout, **fields)
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
        # Frequencies and scales are in no state dict; on the meta device they have no values.
        for name, buffer in text_model.named_buffers():
            holder, _, own_name = name.rpartition(".")
            setattr(model.get_submodule(holder), own_name, buffer.clone())
        model.generation_config = copy.deepcopy(text_model.generation_config)
        if "pad_token_id" in fields:
            model.generation_config.pad_token_id = fields["pad_token_id"]
        return model.train(text_model.training)


def _shifted(labels: torch.Tensor | None, shift_labels: torch.Tensor | None) -> torch.Tensor:
    """What each position predicts, (batch, length); −100 where nothing."""
    if shift_labels is not None:
        return shift_labels
    if labels is None:
        raise ValueError("loss_logits_only needs labels")
    return F.pad(labels[:, 1:], (0, 1), value=_IGNORE_INDEX)
