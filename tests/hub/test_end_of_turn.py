"""What a model learns to end its turn with is what `generate` stops at."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_fixtures import TEXT_TOKENIZERS, image_bpe, patch_vq, smollm_tokenizer, text_model
from transformers import AutoModelForCausalLM

from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def base_without_a_chat():
    """As Qwen2's and SmolLM2's bases: a ChatML template beside `<|endoftext|>` as the end."""
    tokenizer = smollm_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML
    return tokenizer


def test_the_end_of_the_turn_ends_an_answer(tmp_path):
    tokenizer = base_without_a_chat()
    end, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    model, processor = init_checkpoint(text_model(tokenizer), tokenizer, patch_vq(), image_bpe())
    assert model.generation_config.eos_token_id == [end, turn]
    save_checkpoint(model, processor, tmp_path / "checkpoint")
    written = json.loads((tmp_path / "checkpoint" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [end, turn]
    # A model that says "x", ends its turn, and would go on.
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint")
    (x,) = tokenizer("x").input_ids
    said = iter([x, turn, x, x, x])

    def forced(input_ids, scores):
        scores = torch.full_like(scores, -torch.inf)
        scores[:, next(said)] = 0
        return scores

    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=True,
        return_dict=True, return_tensors="pt",
    )  # fmt: skip
    ids = model.generate(**prompt, max_new_tokens=5, do_sample=False, logits_processor=[forced])
    assert ids[0, prompt["input_ids"].shape[1] :].tolist() == [x, turn]


@pytest.mark.parametrize("family", TEXT_TOKENIZERS)
def test_bases_that_end_there_keep_their_setting(family):
    tokenizer = TEXT_TOKENIZERS[family]()
    base = text_model(tokenizer)
    model, _ = init_checkpoint(base, tokenizer, patch_vq(), image_bpe())
    assert model.generation_config.eos_token_id == base.generation_config.eos_token_id


def test_a_template_for_other_turns_changes_nothing():
    tokenizer = base_without_a_chat()
    template = "{{ raise_exception('tools alone') }}{% generation %}{% endgeneration %}"
    base = text_model(tokenizer)
    model, _ = init_checkpoint(base, tokenizer, patch_vq(), image_bpe(), chat_template=template)
    assert model.generation_config.eos_token_id == base.generation_config.eos_token_id
