"""Tokenizers with the turn markers and the chat templates of real bases, as TRL ships them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from checkpoint_fixtures import smollm_tokenizer
from tokenizers import AddedToken

TRL = importlib.util.find_spec("trl")
TEMPLATES = Path(TRL.origin).parent / "chat_templates" if TRL else None
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% else %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
CASES = {
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "qwen3": ["<|im_start|>", "<|im_end|>"],
    "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "phi3": ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
    "phi3_5": ["<|user|>", "<|assistant|>", "<|end|>", "<|system|>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "mistral": ["[INST]", "[/INST]", "</s>"],
}


def base_tokenizer(name: str):
    """A tokenizer with the family's turn markers and its template; Qwen has no BOS."""
    tokenizer = smollm_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in CASES[name]])
    tokenizer.chat_template = MISTRAL
    if name != "mistral":
        tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text("utf-8")
    if name.startswith("qwen"):
        tokenizer.bos_token = None
    else:
        tokenizer.eos_token = "</s>" if name == "mistral" else "<|endoftext|>"
    return tokenizer
