"""A small text-only Llama and its tokenizer, the stand-in for a pretrained base model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from ...training.packing import IGNORE_INDEX

# Question, separator, answer: the shortest prompt that a tiny model can follow.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['content'] is string %}{% set text = message['content'] %}"
    "{% else %}{% set text %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endset %}{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ text }}{{ eos_token }}{% endgeneration %}"
    "{% else %}{{ text }}<sep>{% endif %}"
    "{% endfor %}"
)


def train_text_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of 512 tokens with `<pad>`, `<s>`, `</s>` and `<sep>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<pad>", "<s>", "</s>", "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens={"sep_token": "<sep>"}, chat_template=CHAT_TEMPLATE, padding_side="left",
    )  # fmt: skip


def text_model_config(tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """2 layers, 64 dimensions, 4 heads, untied; `initializer_range` 0.1 suits so small a width."""
    return LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, initializer_range=0.1, tie_word_embeddings=False,
        max_position_embeddings=1024, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def train_text_model(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, seed: int, steps: int
) -> LlamaForCausalLM:
    """A language model of the texts, trained from scratch with the plain `Trainer`, eight texts a step."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(text_model_config(tokenizer))
    chosen = random.Random(seed).sample(texts, min(len(texts), 8 * steps))  # as many as are seen
    rows = [
        {"input_ids": ids} for ids in tokenizer([f"<s>{text}</s>" for text in chosen])["input_ids"]
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        padded = tokenizer.pad(batch, padding_side="right", return_tensors="pt")
        labels = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, IGNORE_INDEX)
        return {**padded, "labels": labels}

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=1e-3,
            lr_scheduler_type="cosine", warmup_steps=0.05, adam_beta2=0.98, weight_decay=0.01,
            train_sampling_strategy="group_by_length", remove_unused_columns=False, seed=seed,
            use_cpu=True, dataloader_pin_memory=False, disable_tqdm=True, report_to="none",
            logging_strategy="no", save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model=model, args=args, train_dataset=rows, data_collator=collate)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return model
