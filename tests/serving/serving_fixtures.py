"""Small extended checkpoints of each family, with logits far enough apart for another engine's rounding."""

from __future__ import annotations

import numpy as np
import torch
import transformers
from checkpoint_fixtures import image_bpe, patch_vq, smollm_tokenizer

from being_vl.hub.checkpoint import init_checkpoint
from being_vl.models.families import FAMILIES

SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "sliding_window": 256,
    "query_pre_attn_scalar": 64,  # of Gemma: llama.cpp takes head_dim, as the published sizes have it
}


def checkpoint(base_type: str, *, tied: bool = False):
    """(model, processor) of a random base of a family, a tokenizer of SmolLM's kind."""
    tokenizer = smollm_tokenizer()
    family = next(family for family in FAMILIES if family.base_type == base_type)
    config = transformers.AutoConfig.for_model(
        base_type,
        vocab_size=len(tokenizer),
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES,
    )
    torch.manual_seed(0)
    base = getattr(transformers, family.stock_class)(config).eval()
    model, processor = init_checkpoint(
        base, tokenizer, patch_vq(), image_bpe(), image_init="normal",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    model.generation_config.eos_token_id = None  # answers of one length
    return model.eval(), processor


def prompts(processor, count: int, seed: int = 0) -> list[list[int]]:
    """Token ids of prompts with no, one and two images."""
    from checkpoint_fixtures import random_grids

    tokenizer = processor.tokenizer
    grids = random_grids(2 * count, seed=seed)
    words = [
        "What",
        " is",
        " in",
        " the",
        " picture",
        " red",
        " square",
        " above",
        " blue",
        " circle",
    ]
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(words, 6)) for _ in range(count)]
    made = []
    for number in range(count):
        ids = tokenizer.encode(texts[number], add_special_tokens=False)
        for image in range(number % 3):
            (codes,) = tokenizer.encode_codes([grids[2 * number + image]])
            ids += [tokenizer.boi_token_id, *codes.tolist(), tokenizer.eoi_token_id]
            ids += tokenizer.encode(texts[number - 1 - image], add_special_tokens=False)
        made.append(ids)
    return made
