"""`being-vl init` and `being-vl export`: from a text model to a checkpoint, and to a plain Llama."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import (
    TEXT_TOKENIZERS,
    image_bpe,
    patch_vq,
    random_grids,
    text_model,
    tiny_checkpoint,
)
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from being_vl import BeingVLForCausalLM, BeingVLImageProcessor, BeingVLProcessor, ImageBPE
from being_vl.cli import main
from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint
from being_vl.hub.remote_code import add_remote_code
from being_vl.serving.plain import export_checkpoint

FAMILIES = sorted(TEXT_TOKENIZERS)


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    """Folders as a user has them: base-<family>, vq, bpe."""
    folder = tmp_path_factory.mktemp("parts")
    for family, build in TEXT_TOKENIZERS.items():
        tokenizer = build()
        tokenizer.save_pretrained(folder / f"base-{family}")
        text_model(tokenizer, tied=family != "llama-2").save_pretrained(folder / f"base-{family}")
    patch_vq().save_pretrained(folder / "vq")
    image_bpe().save_pretrained(folder / "bpe")
    return folder


def command(parts: Path, output: Path, family: str, *more: str) -> list[str]:
    named = {"--base": f"base-{family}", "--quantizer": "vq", "--bpe": "bpe"}
    paths = [argument for name, path in named.items() for argument in (name, str(parts / path))]
    return ["init", *paths, "--output", str(output), *more]


@pytest.mark.parametrize("family", FAMILIES)
def test_init_keeps_text_bit_for_bit(parts: Path, tmp_path: Path, capsys, family: str) -> None:
    assert main(command(parts, tmp_path / "out", family, "--json")) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    base = LlamaForCausalLM.from_pretrained(parts / f"base-{family}").eval()
    base_tokenizer = AutoTokenizer.from_pretrained(parts / f"base-{family}")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert (type(model), type(processor)) == (BeingVLForCausalLM, BeingVLProcessor)
    assert summary["vocab_size"] == model.config.vocab_size == len(processor.tokenizer)
    assert model.config.layout == processor.tokenizer.layout
    text = "Is the red square above the circle?"
    ids = base_tokenizer(text, return_tensors="pt").input_ids
    assert processor(text=text, return_tensors="pt")["input_ids"].tolist() == ids.tolist()
    with torch.no_grad():
        hidden = model.model(ids).last_hidden_state
        assert torch.equal(hidden, base.model(ids).last_hidden_state)
        # The same numbers meet the same rows; a product of another width may round its last bit otherwise.
        logits = model(ids).logits[..., : len(base_tokenizer)]
        torch.testing.assert_close(logits, base(ids).logits, rtol=0, atol=1e-6)
    rows = model.get_output_embeddings().weight[: len(base_tokenizer)]
    assert torch.equal(rows, base.get_output_embeddings().weight)
    greedy = {"max_new_tokens": 8, "do_sample": False}
    generated = model.generate(ids, generation_mode="text", **greedy)
    assert generated.tolist() == base.generate(ids, **greedy).tolist()
    assert "base-" in (tmp_path / "out" / "init.yaml").read_text()


def test_init_from_a_config_file_and_again(parts: Path, tmp_path: Path) -> None:
    """The saved options make the same checkpoint; flags override them."""
    first = command(parts, tmp_path / "one", "smollm", "--image-init", "codebook", "--seed", "3")
    assert main(first) == 0
    again = [
        "init",
        "--config",
        str(tmp_path / "one" / "init.yaml"),
        "--output",
        str(tmp_path / "two"),
    ]
    assert main(again) == 0
    assert main([*again[:-1], str(tmp_path / "three"), "--seed", "4"]) == 0
    weights = [
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "three")
    ]
    assert weights[0] == weights[1] != weights[2]


def test_init_with_the_authors_special_tokens(parts: Path, tmp_path: Path) -> None:
    assert main(command(parts, tmp_path / "out", "llama-3", "--special-tokens", "llama-3.1")) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    text_size = model.config.text_vocab_size
    ids = [model.config.eoi_token_id, model.config.image_token_id, model.config.boi_token_id]
    assert ids == [text_size + 2, text_size + 3, text_size + 4]


def test_init_takes_a_template_and_an_image_processor(parts: Path, tmp_path: Path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages[0].content }}")
    BeingVLImageProcessor(do_center_crop=False, size_divisor=4).save_pretrained(tmp_path / "images")
    more = ["--chat-template", str(template), "--image-processor", str(tmp_path / "images")]
    assert main(command(parts, tmp_path / "out", "llama-2", *more)) == 0
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"
    assert processor.image_processor.do_center_crop is False
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert config.image_grid_size is None  # images of any size


def test_bad_input_is_one_line_and_status_2(parts: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    ImageBPE(np.zeros((0, 4), dtype=np.int64), 5).save_pretrained(tmp_path / "bpe5")
    for arguments, message in (
        (command(parts, tmp_path / "full", "llama-3"), "not an empty folder"),
        (command(parts, tmp_path / "x", "llama-3", "--bpe", str(tmp_path / "bpe5")), "16 codes"),
        (command(parts, tmp_path / "x", "llama-3", "--bpe", str(tmp_path / "none")), "none"),
        (
            command(parts, tmp_path / "x", "llama-3", "--base", str(parts / "vq")),
            "being_vl_patch_vq",
        ),
        (["export", str(parts / "vq"), "--output", str(tmp_path / "x")], "being_vl"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith(f"being-vl {arguments[0]}: error: ") and message in error
        assert not (tmp_path / "x").exists()


def test_nothing_is_left_of_a_failed_save(tmp_path: Path, monkeypatch) -> None:
    model, processor = tiny_checkpoint("smollm")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(processor, "save_pretrained", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(model, processor, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_more_codes_than_the_bpe_knows(tmp_path: Path) -> None:
    tokenizer = TEXT_TOKENIZERS["smollm"]()
    other = ImageBPE(np.zeros((0, 4), dtype=np.int64), 5)
    with pytest.raises(ValueError, match="16 codes, but the image BPE was trained on 5"):
        init_checkpoint(text_model(tokenizer), tokenizer, patch_vq(), other)


# ---- export

_PLAIN = """
import sys; sys.modules["being_vl"] = None  # as where it is not installed
import hashlib, json
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
folder, ids = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits
print(json.dumps({
    "model": type(model).__name__,
    "tokenizer": type(tokenizer).__name__,
    "extra": AutoConfig.from_pretrained(folder).being_vl,
    "logits": hashlib.sha256(logits.numpy().tobytes()).hexdigest(),
    "text_ids": tokenizer("A red square <image>").input_ids,
    "chat": tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False),
    "text": tokenizer.decode(ids, skip_special_tokens=True),
    "plain": {name: AutoTokenizer.from_pretrained(name)("A red square <image>").input_ids for name in sys.argv[3:]},
}))
"""


@pytest.mark.parametrize("tied", [True, False])
def test_an_export_is_a_plain_llama(tmp_path: Path, tied: bool) -> None:
    model, processor = tiny_checkpoint("llama-3", tied=tied)
    export_checkpoint(model, processor.tokenizer, tmp_path / "plain")
    batch = processor(text="<image> red?", image_codes=random_grids(1), return_tensors="pt")
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path / "plain", attn_implementation="eager"
    ).eval()
    assert type(plain) is LlamaForCausalLM
    assert set(plain.state_dict()) == set(model.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(**batch).logits, model.eval()(**batch).logits)
    assert type(AutoTokenizer.from_pretrained(tmp_path / "plain")) is PreTrainedTokenizerFast


def test_without_the_package_an_export_and_a_plain_tokenizer_load(
    parts: Path, tmp_path: Path
) -> None:
    """One process for both: the command's export, and the tokenizer of a checkpoint without code."""
    import hashlib

    assert main(command(parts, tmp_path / "checkpoint", "llama-3")) == 0
    assert main(["export", str(tmp_path / "checkpoint"), "--output", str(tmp_path / "plain")]) == 0
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "checkpoint")
    ids = processor(text="<image> red?", image_codes=random_grids(1))["input_ids"][0]
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            _PLAIN,
            str(tmp_path / "plain"),
            json.dumps(ids),
            str(tmp_path / "checkpoint"),
        ],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    text_ids = processor.tokenizer("A red square <image>").input_ids
    chat = processor.apply_chat_template([{"role": "user", "content": "Hi"}])
    assert seen["model"] == "LlamaForCausalLM"
    assert seen["logits"] == hashlib.sha256(logits.numpy().tobytes()).hexdigest()
    assert seen["extra"]["text_vocab_size"] == model.config.text_vocab_size
    assert (seen["text_ids"], seen["chat"], seen["text"]) == (text_ids, chat, " red?")
    assert seen["plain"] == {str(tmp_path / "checkpoint"): text_ids}


def test_grid_positions_cannot_be_exported(tmp_path: Path) -> None:
    model, processor = tiny_checkpoint("llama-3")
    model.config.image_positions = "grid"
    with pytest.raises(ValueError, match="image_positions='grid'"):
        export_checkpoint(model, processor.tokenizer, tmp_path / "plain")


# ---- remote code


def test_remote_code_goes_into_every_kind_of_folder(tmp_path: Path) -> None:
    _, processor = tiny_checkpoint("smollm")
    processor.save_pretrained(tmp_path / "processor")
    modules = add_remote_code(tmp_path / "processor")
    assert {
        "processing_being_vl.py",
        "image_bpe.py",
        "vq_model/modeling_being_vl_patch_vq.py",
    } <= set(modules)
    assert all((tmp_path / "processor" / name).is_file() for name in modules)
    assert add_remote_code(tmp_path / "processor") == modules  # again changes nothing
    patch_vq().save_pretrained(tmp_path / "vq")
    quantizer = set(add_remote_code(tmp_path / "vq"))  # it, what pushes it, and nothing of the rest
    assert {"modeling_being_vl_patch_vq.py", "hub_part.py", "hub_pushing.py"} <= quantizer
    assert not {"image_bpe.py", "modeling_being_vl.py", "processing_being_vl.py"} & quantizer
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no config.json"):
        add_remote_code(tmp_path / "empty")
    tokenizer = TEXT_TOKENIZERS["smollm"]()
    text_model(tokenizer).save_pretrained(tmp_path / "llama")
    with pytest.raises(ValueError, match="model_type is 'llama'"):
        add_remote_code(tmp_path / "llama")


def test_register_for_auto_class_works_as_everywhere(tmp_path: Path, monkeypatch) -> None:
    _, processor = tiny_checkpoint("smollm")
    for part in (BeingVLProcessor, type(processor.tokenizer), BeingVLImageProcessor):
        monkeypatch.setattr(part, "_carries_code", False)
        part.register_for_auto_class()
    processor.save_pretrained(tmp_path)
    processor_config = json.loads((tmp_path / "processor_config.json").read_text())
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert processor_config["auto_map"]["AutoProcessor"] == "processing_being_vl.BeingVLProcessor"
    assert (
        tokenizer_config["auto_map"]["AutoTokenizer"][0] == "tokenization_being_vl.BeingVLTokenizer"
    )
    assert {path.name for path in tmp_path.glob("*.py")} >= {
        "image_bpe.py",
        "vocabulary.py",
        "quantizers_quantizing.py",
    }
