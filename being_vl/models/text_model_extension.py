"""text model → the configuration and the parameters of the Being-VL model that it becomes.

Source: the expansion step of Being-VL-0.5. It differs in that nothing of the text model is changed, not even
by a bit: every parameter is copied, and new rows are appended.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..vocabulary import VocabularyLayout
from .families import ImageInit
from .image_rows import new_rows
from .quiet_rows import quiet_shift

_OF_THE_TEXT_MODEL_ALONE = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "model_type",
    "quantization_config",  # a GGUF file's: its weights are plain numbers once they are loaded
    "transformers_version",
)


def extended_config(
    config_class: type[PreTrainedConfig],
    text_model: PreTrainedModel,
    layout: VocabularyLayout,
    **fields: Any,
) -> Any:
    """The text model's configuration with the layout's sizes, and `fields`."""
    text = text_model.config.to_dict()
    for name in _OF_THE_TEXT_MODEL_ALONE:
        text.pop(name, None)
    config = config_class(
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


def extended_state(
    text_model: PreTrainedModel,
    config: Any,
    image_init: ImageInit,
    **init: Any,
) -> dict[str, torch.Tensor]:
    """A state dict for `config`: copies of the text model's tensors, with new rows after the first T.

    `init` is as of [`image_rows.new_rows`]; an untied head draws rows of its own. Rows of the
    head that start as the mean text row are shifted by [`quiet_rows.quiet_shift`].

    Raises:
        ValueError: the text model's weights are quantized, or its head has a bias.
    """
    if getattr(text_model.get_output_embeddings(), "bias", None) is not None:
        raise ValueError("text_model: a head with a bias cannot be extended")
    for name, tensor in text_model.state_dict().items():
        if not tensor.is_floating_point():
            raise ValueError(
                f"text_model: {name} has dtype {tensor.dtype}, but rows are added to plain weights: load it "
                "without quantization"
            )

    def extended(matrix: torch.Tensor, *, is_head: bool) -> torch.Tensor:
        text_rows = matrix[: config.text_vocab_size].detach()
        rows = new_rows(text_rows, config.layout, image_init, **init)
        if is_head and image_init == "mean_text":
            rows += quiet_shift(text_model, config.text_vocab_size, rows)
        return torch.cat([text_rows, rows.to(text_rows)])

    state = {
        name: tensor.detach().clone()
        for name, tensor in text_model.state_dict().items()
        if name not in ("model.embed_tokens.weight", "lm_head.weight")
    }
    embeddings: Any = text_model.get_input_embeddings()
    state["model.embed_tokens.weight"] = extended(
        embeddings.weight, is_head=config.tie_word_embeddings
    )
    state["lm_head.weight"] = (
        state["model.embed_tokens.weight"]
        if config.tie_word_embeddings
        else extended(text_model.get_output_embeddings().weight, is_head=True)
    )
    if config.image_positions == "grid":
        table = torch.zeros(config.max_grid_size, config.hidden_size).to(state["lm_head.weight"])
        state["model.grid_positions.rows"] = table
        state["model.grid_positions.columns"] = table.clone()
    return state
