"""A plain export in stock transformers: equal logits, no image token in a text, nothing of ours left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from serving_fixtures import checkpoint, prompts

from being_vl.models.families import FAMILIES
from being_vl.serving.plain import export_checkpoint, image_token_ids


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.base_type)
def test_stock_class_answers_as_ours(family, tmp_path: Path) -> None:
    model, processor = checkpoint(family.base_type)
    export_checkpoint(model, processor.tokenizer, tmp_path / "plain")
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(stock).__name__ == family.stock_class
    for ids in prompts(processor, 6):
        ids = torch.tensor([ids])
        with torch.no_grad():
            assert torch.equal(stock(ids).logits, model(ids).logits)
            ours = model.generate(ids, max_new_tokens=12, do_sample=False)
            theirs = stock.generate(ids, max_new_tokens=12, do_sample=False)
        assert torch.equal(theirs, ours)
        assert not set(theirs[0, ids.shape[1] :].tolist()) & set(image_token_ids(model))


def test_the_folder_says_what_engines_ask_for(tmp_path: Path) -> None:
    model, processor = checkpoint("llama")
    export_checkpoint(model, processor.tokenizer, tmp_path / "plain")
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "plain").glob("*.json")}
    suppressed = read["generation_config.json"]["suppress_tokens"]
    allowed = read["allowed_token_ids.json"]
    assert sorted([*suppressed, *allowed]) == list(range(model.config.vocab_size))
    assert suppressed == image_token_ids(model)
    assert read["text_request.json"]["allowed_token_ids"] == allowed
    ours = {"is_local", "local_files_only", "text_vocab_size", "processor_class", "auto_map"}
    assert not ours & set(read["tokenizer_config.json"])
    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "plain")
    assert len(tokenizer) == len(processor.tokenizer)
