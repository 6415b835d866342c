"""llama.cpp reads what export writes: the same ids, every token of the vocabulary, no image in a text.

Runs where `pip install "being-vl[gguf]" xllamacpp` was said; `.ci/engines` does so in an environment of its own.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
import torch
from serving_fixtures import checkpoint, prompts

from being_vl.cli import main
from being_vl.serving.gguf import export_gguf
from being_vl.serving.plain import image_token_ids

pytest.importorskip("conversion", reason='needs pip install "being-vl[gguf]"')
engine = pytest.importorskip("xllamacpp", reason="needs pip install xllamacpp")

LLAMA_CPP_FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma3_text", "smollm3", "olmo2"]
NEW = 16


class Server:
    """llama.cpp's own HTTP server on a file."""

    def __init__(self, file: Path):
        options = engine.CommonParams()
        options.model.path = str(file)
        options.n_ctx, options.n_parallel, options.warmup = 512, 1, False
        options.cpuparams.n_threads = 1
        self._server = engine.Server(options)
        self.address = self._server.listening_address

    def ask(self, path: str, **fields) -> dict:
        request = urllib.request.Request(
            f"{self.address}/{path}",
            json.dumps(fields).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def greedy(self, ids: list[int]) -> list[int]:
        answer = self.ask(
            "completion", prompt=ids, n_predict=NEW, temperature=0, return_tokens=True,
            cache_prompt=False, ignore_eos=True,
        )  # fmt: skip
        return answer["tokens"]


@pytest.mark.parametrize("base_type", LLAMA_CPP_FAMILIES)
def test_greedy_ids_are_ours(base_type: str, tmp_path: Path) -> None:
    model, processor = checkpoint(base_type)
    file = tmp_path / "model.gguf"
    export_gguf(model, processor.tokenizer, file, weight_type="f32", pre_tokenizer="smollm")
    server = Server(file)
    ends = processor.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    equal, asked = 0, prompts(processor, 20)
    for ids in asked:
        with torch.no_grad():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, suppress_tokens=ends
            )
        ours, theirs = out[0, len(ids) :].tolist(), server.greedy(ids)
        assert not set(theirs) & set(image_token_ids(model))
        equal += ours == theirs
        assert ours == theirs or is_near_tie(model, ids, ours, theirs)
    assert equal >= 17  # of 20


def is_near_tie(model, ids: list[int], ours: list[int], theirs: list[int]) -> bool:
    """Whether the first ids that differ have logits that another order of additions can turn."""
    first = next(i for i, pair in enumerate(zip(ours, theirs, strict=True)) if len(set(pair)) == 2)
    with torch.no_grad():
        logits = model(torch.tensor([ids + ours[:first]])).logits[0, -1]
    return bool((logits[ours[first]] - logits[theirs[first]]).abs() < 0.02)


def test_phi_3_is_refused_in_one_sentence(tmp_path: Path) -> None:
    model, processor = checkpoint("phi3")
    with pytest.raises(ValueError, match="sentencepiece file of a Phi3ForCausalLM"):
        export_gguf(model, processor.tokenizer, tmp_path / "model.gguf", pre_tokenizer="smollm")
    assert not list(tmp_path.iterdir())


def test_every_added_token_goes_both_ways(tmp_path: Path) -> None:
    model, processor = checkpoint("llama")
    tokenizer = processor.tokenizer
    file = tmp_path / "model.gguf"
    export_gguf(model, tokenizer, file, weight_type="q8_0", pre_tokenizer="smollm")
    server = Server(file)
    for text, token_id in tokenizer.get_added_vocab().items():
        asked = server.ask("tokenize", content=text, parse_special=True, add_special=False)
        assert asked["tokens"] == [token_id], text
    pieces = server.ask(
        "tokenize", content="What is in the picture?", add_special=False, with_pieces=True
    )["tokens"]
    expected = tokenizer.encode("What is in the picture?", add_special_tokens=False)
    assert [piece["id"] for piece in pieces] == expected


def test_chat_template_is_the_checkpoint_s(tmp_path: Path) -> None:
    model, processor = checkpoint("llama")
    file = tmp_path / "model.gguf"
    export_gguf(model, processor.tokenizer, file, pre_tokenizer="smollm")
    messages = [{"role": "user", "content": "What is in the picture?"}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    asked = Server(file).ask("apply-template", messages=messages)["prompt"]
    assert asked.removeprefix(processor.tokenizer.bos_token) == text.removeprefix(
        processor.tokenizer.bos_token
    )


def test_command(tmp_path: Path, capsys) -> None:
    model, processor = checkpoint("qwen2", tied=True)
    model.save_pretrained(tmp_path / "checkpoint")
    processor.save_pretrained(tmp_path / "checkpoint")
    options = ["export", str(tmp_path / "checkpoint"), "--format", "gguf", "--output"]
    file = str(tmp_path / "model.gguf")
    assert main([*options, file]) == 2
    assert "does not recognise the text tokenizer" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [tmp_path / "checkpoint"]
    assert main([*options, file, "--pre-tokenizer", "smollm", "--weight-type", "f16"]) == 0
    assert Path(file).stat().st_size > 100_000
    assert main([*options, file, "--pre-tokenizer", "smollm"]) == 2
    assert "exists" in capsys.readouterr().err
