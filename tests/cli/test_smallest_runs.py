"""Every command once, at its smallest, each on what the ones before it made: pictures → … → a checkpoint that answers.

It needs no optional package: where a command does, the sentence that says so is the answer that is wanted.
"""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import smollm_tokenizer, text_model
from PIL import Image

from being_vl import BeingVLVQConfig, BeingVLVQModel
from being_vl.cli import COMMANDS, main

# Commands in the order in which each finds its input; {f} is the folder, …/ what an earlier one wrote.
RUNS = {
    "env": "",
    "train-vq": "--kind patch --images {f}/pictures --resolution 32 --workers 0 --device cpu --output {f}/vq",
    "convert-vq": "{f}/vqgan.ckpt --resolution 16 --output {f}/converted",
    "encode": "--quantizer {f}/vq --images {f}/pictures --workers 0 --device cpu --output {f}/codes",
    "train-bpe": "--codes {f}/codes --num-merges 4 --output {f}/bpe",
    "convert": "{f}/authors.pkl --output {f}/legacy",
    "inspect": "{f}/bpe --output {f}/tokens.png",
    "stats": "{f}/bpe --codes {f}/codes",
    "init": "--base {f}/base --quantizer {f}/vq --bpe {f}/bpe --output {f}/start",
    "tokenize": "--checkpoint {f}/start --data {f}/chats.json --codes {f}/codes --workers 1 --output {f}/rows",
    "train": "--checkpoint {f}/start --data {f}/rows --stage pretrain --max_steps 1 --use_cpu true --bf16 false "
    "--report_to none --output_dir {f}/model",
    "ablate": "--base {f}/base --quantizer {f}/vq --codes {f}/codes --sft-data {f}/chats.json --test-data "
    "{f}/chats.json --merges 2 --regimes sft --seeds 0 --sft.max_steps 1 --output {f}/ablation",
    "eval": "{f}/model --tasks pope --data pope={f}/pictures --limit 2 --device cpu",
    "results": "{f}/model",
    "chat": "{f}/model --max-new-tokens 2 --device cpu",
    "card": "{f}/model",
    "push": "{f}/model tester/model --dry-run",
    "export": "{f}/model --output {f}/plain",
    "demo": "{f}/model",
    "serve": "{f}/model",
    "quickstart": "--output {f}/quickstart",
}
# Commands that need a package of an extra, and what tests them where it is installed.
OPTIONAL = {
    "demo": ("gradio", "tests/demo/test_demo.py"),
    "serve": ("fastapi", "tests/serving/test_serve_command.py"),
    "quickstart": ("easy_vqa", "tests/studies/test_quickstart.py"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    random = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for number in range(8):
        pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{number}.png")
    asked = [{"image": f"{i}.png", "text": "Is it red?", "label": "yes"} for i in range(2)]
    lines = "".join(json.dumps(row) + "\n" for row in asked)
    (folder / "pictures" / "coco_pope_random.json").write_text(lines)
    sizes = {"base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "embed_dim": 8}
    model = BeingVLVQModel(BeingVLVQConfig(**sizes, num_embeddings=16, resolution=16))
    torch.save({"state_dict": model.state_dict()}, folder / "vqgan.ckpt")
    (folder / "authors.pkl").write_bytes(pickle.dumps([((0, 1), 16), ((16, 2), 17)]))
    tokenizer = smollm_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    text_model(tokenizer).save_pretrained(folder / "base")
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    chats = [{"id": i, "image": f"{i}.png", "conversations": said} for i in range(8)]
    (folder / "chats.json").write_text(json.dumps(chats))
    return folder


@pytest.fixture(scope="module")
def statuses(folder) -> dict[str, int]:
    """The exit status of each command that was run."""
    statuses = {}
    for name, arguments in RUNS.items():
        if name in OPTIONAL and importlib.util.find_spec(OPTIONAL[name][0]):
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stdin", io.StringIO("What is it?\n"))
            statuses[name] = main([name, *arguments.format(f=folder).split()])
    return statuses


def test_no_command_is_left_out():
    assert set(RUNS) == set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in OPTIONAL])
def test_runs(statuses, name):
    assert statuses[name] == 0


@pytest.mark.parametrize("name", OPTIONAL)
def test_what_it_needs_is_said(statuses, name, folder, capsys):
    if name not in statuses:
        pytest.skip(f"{OPTIONAL[name][0]} is installed: {OPTIONAL[name][1]} runs the command")
    assert statuses[name] == 2
    capsys.readouterr()
    assert main([name, *RUNS[name].format(f=folder).split()]) == 2
    assert "pip install " in capsys.readouterr().err


WITH_OUTPUT = {
    **{name: argv for name, argv in RUNS.items() if "--output" in argv},
    "eval": f"{RUNS['eval']} --output {{f}}/x",
    "stats": f"{RUNS['stats']} --output {{f}}/x",
    "results": "--lmms-eval {f}/x.json --output {f}/x",
}


@pytest.mark.parametrize("name", WITH_OUTPUT)
@pytest.mark.parametrize("below", ["", "below/it"])
def test_an_output_that_is_a_file(tmp_path, capsys, name, below):
    """Said before anything is read or made, and nothing happens to the file."""
    (tmp_path / "file").write_text("mine")
    argv = WITH_OUTPUT[name].format(f=tmp_path).split()
    option = next(word for word in argv if word.startswith("--output"))
    argv[argv.index(option) + 1] = given = str(tmp_path / "file" / below)
    if name == "inspect" and not below:
        argv[argv.index(option) + 1] = given = str(tmp_path)
    assert main([name, *argv]) == 2
    said = "is a file, and a folder is needed"
    said = (
        f"{given}: is a folder, and a file" if given == str(tmp_path) else f"{tmp_path}/file {said}"
    )
    error = capsys.readouterr().err
    assert (
        error.startswith(f"being-vl {name}: error: {option} {given}: ") and error.count("\n") == 1
    )
    assert said in error
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
