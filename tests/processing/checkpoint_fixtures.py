"""Tiny text models and tokenizers of the three Llama families, built without network."""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers import trainers as tokenizer_trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from being_vl import (
    BeingVLForCausalLM,
    BeingVLPatchVQConfig,
    BeingVLPatchVQModel,
    BeingVLProcessor,
    ImageBPE,
)
from being_vl.hub.checkpoint import init_checkpoint

CORPUS = [
    "What is in the picture? A red square above a blue circle.",
    "Is the triangle to the left of the small green rectangle? Yes, it is.",
    "user assistant system describe this image <image> boi eoi visual 0123456789 pad",
    "Ünïcödé, 日本語, emoji 🙂 and\ttabs\n\nnewlines   spaces.",
] * 4

CODEBOOK_SIZE, NUM_MERGES, GRID = 16, 12, 4

_LLAMA_3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level_bpe(vocab_size: int, *, split_digits: bool = False) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=not split_digits))
    if split_digits:
        first = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    else:
        first = pre_tokenizers.Split(Regex(_LLAMA_3_SPLIT), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = tokenizer_trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def llama_3_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 3.1 Instruct: byte-level BPE, turn markers, no padding token, BOS by the post-processor."""
    tokenizer = _byte_level_bpe(400)
    names = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    bos = ("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))
    template = processors.TemplateProcessing(
        single=f"{bos[0]} $A", pair=f"{bos[0]} $A {bos[0]}:1 $B:1", special_tokens=[bos]
    )
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), template]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=names[0],
        eos_token=names[4],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def llama_2_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 and TinyLlama: sentencepiece-style BPE with byte fallback, no padding token."""
    alphabet = sorted({"▁" if char == " " else char for text in CORPUS[:3] for char in text})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *alphabet]
    merges = []
    for word in ("▁is", "▁the", "▁red", "▁a", "▁square", "▁blue", "▁picture"):
        for end in range(2, len(word) + 1):
            if word[:end] not in pieces:
                pieces.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in pieces[:3]]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=2048,
    )


def smollm_tokenizer() -> PreTrainedTokenizerFast:
    """As SmolLM2 Instruct: byte-level BPE, ChatML markers, `<|im_start|>` as BOS, a padding token."""
    tokenizer = _byte_level_bpe(400, split_digits=True)
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=8192,
    )


TEXT_TOKENIZERS = {
    "llama-3": llama_3_tokenizer,
    "llama-2": llama_2_tokenizer,
    "smollm": smollm_tokenizer,
}


def text_model(tokenizer: PreTrainedTokenizerFast, *, tied: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def image_bpe() -> ImageBPE:
    """Rules that a smooth grid uses: pairs of equal neighbours, then pairs of those."""
    rules = [(code, code, 0, 1) for code in range(NUM_MERGES // 2)]
    rules += [(CODEBOOK_SIZE + rank, CODEBOOK_SIZE + rank, 1, 0) for rank in range(NUM_MERGES // 2)]
    return ImageBPE(np.array(rules), CODEBOOK_SIZE)


def patch_vq() -> BeingVLPatchVQModel:
    torch.manual_seed(1)
    config = BeingVLPatchVQConfig(num_embeddings=CODEBOOK_SIZE, patch_size=4, resolution=4 * GRID)
    return BeingVLPatchVQModel(config).eval()


def random_grids(
    count: int, *, seed: int = 0, side: int = GRID, smooth: bool = False
) -> list[np.ndarray]:
    """Grids of codes, square; smooth ones merge much, others little."""
    rng = np.random.default_rng(seed)
    grids = [rng.integers(0, CODEBOOK_SIZE, (side, side)) for _ in range(count)]
    return [np.sort(grid % 3, axis=None).reshape(side, side) for grid in grids] if smooth else grids


def tiny_checkpoint(
    family: str = "llama-3", *, tied: bool = True
) -> tuple[BeingVLForCausalLM, BeingVLProcessor]:
    tokenizer = TEXT_TOKENIZERS[family]()
    return init_checkpoint(
        text_model(tokenizer, tied=tied),
        tokenizer,
        patch_vq(),
        image_bpe(),
        generator=torch.Generator().manual_seed(0),
    )
