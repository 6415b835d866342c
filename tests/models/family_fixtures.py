"""A tiny random text model of each family, with what its family brings: windows, biases, scales, several ends."""

import torch
import transformers
from model_fixtures import BOI, EOI, GRID, IMAGE, LAYOUT, MERGES, PAD

from being_vl.models.families import FAMILIES, Family
from being_vl.models.loading import extend_text_model

NAMES = [family.model_type for family in FAMILIES]
PADDED_ROWS = 12  # of the base's matrices, beyond the 100 ids of its tokenizer
WINDOW = 6
_BOTH_KINDS_OF_LAYERS = ("qwen2", "qwen3", "smollm3", "gemma3_text")


def family_named(model_type: str) -> Family:
    return next(family for family in FAMILIES if family.model_type == model_type)


def base_config(model_type: str, *, rows: int = 100 + PADDED_ROWS, **fields):
    """The stock configuration; layers 0 and 1 have a window and none where a family mixes them."""
    family = family_named(model_type)
    kind = getattr(transformers, family.stock_class).config_class
    fields = {
        "vocab_size": rows,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 0,
        **fields,
    }
    if hasattr(kind, "head_dim"):
        fields["head_dim"] = 8
    if hasattr(kind, "sliding_window"):
        fields["sliding_window"] = WINDOW
    if family.base_type in _BOTH_KINDS_OF_LAYERS:
        fields |= {"use_sliding_window": True, "max_window_layers": 1}
        fields["layer_types"] = ["sliding_attention", "full_attention"]
    if family.base_type == "gemma3_text":
        fields["final_logit_softcapping"] = 5.0
    return kind(**fields)


def base_model(model_type: str, *, tied: bool = False, **fields):
    torch.manual_seed(0)
    config = base_config(model_type, tie_word_embeddings=tied, **fields)
    return getattr(transformers, family_named(model_type).stock_class)(config).eval()


def extended(base, **fields):
    """`base` with the vocabulary LAYOUT and the merge rules MERGES."""
    fields = {"image_init": "normal", "image_grid_size": GRID, "merges": MERGES, **fields}
    model = extend_text_model(
        base,
        LAYOUT,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        generator=torch.Generator().manual_seed(0),
        **fields,
    )
    return model.eval()
