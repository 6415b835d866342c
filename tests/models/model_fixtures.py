"""Tiny language models and merge rules for the tests of model, generation and neighbours."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from being_vl import BeingVLForCausalLM, ImageBPE, VocabularyLayout

torch.set_num_threads(1)  # more threads only wait for one another at this size

TEXT_SIZE = 100
CODEBOOK_SIZE = 16
# Shapes: 1x2, 2x2 corner, its double, 1x2 of equal codes, 2x1 of equal codes.
MERGES = np.array(
    [[0, 1, 0, 1], [16, 2, 1, 0], [17, 17, 0, 2], [3, 3, 0, 1], [4, 4, 1, 0]], dtype=np.int32
)
LAYOUT = VocabularyLayout(TEXT_SIZE, 4, CODEBOOK_SIZE, len(MERGES))
PAD, IMAGE, BOI, EOI = range(TEXT_SIZE, TEXT_SIZE + 4)
GRID = (4, 5)


def text_model(
    *, tied: bool = False, seed: int = 0, dtype=torch.float32, head_dim: int = 8
) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=TEXT_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=head_dim,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config).to(dtype).eval()


def being_vl_model(
    *, tied: bool = False, seed: int = 0, dtype=torch.float32, head_dim: int = 8, **fields
):
    """A random model whose vocabulary is LAYOUT and whose merge rules are MERGES."""
    fields = {"image_init": "normal", "image_grid_size": GRID, "merges": MERGES, **fields}
    return BeingVLForCausalLM.from_text_model(
        text_model(tied=tied, seed=seed, dtype=dtype, head_dim=head_dim),
        LAYOUT,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        image_token_id=IMAGE,
        pad_token_id=PAD,
        generator=torch.Generator().manual_seed(seed),
        **fields,
    )


def random_ids(*shape: int, high: int = LAYOUT.size, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, high, shape, generator=torch.Generator().manual_seed(seed))


def generated_grids(sequences: torch.Tensor, grid_size=GRID) -> list[np.ndarray]:
    """The last image of each sequence, decoded; raises where there is none or it is not legal."""
    bpe = ImageBPE(MERGES, CODEBOOK_SIZE)
    grids = []
    for ids in sequences.tolist():
        begin = len(ids) - ids[::-1].index(BOI)
        end = ids.index(EOI, begin)
        visual_ids = np.array([LAYOUT.visual_id(token_id) for token_id in ids[begin:end]])
        grids.append(bpe.decode(visual_ids, *grid_size))
    return grids
