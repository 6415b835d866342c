"""What a part is called in the error when it does not load, with no network."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from being_vl import ImageBPE
from being_vl.cli import main


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def bpe(tmp_path):
    grids = np.zeros((2, 4, 4), np.int32)
    ImageBPE.train(grids, num_merges=3, codebook_size=2).save_pretrained(tmp_path / "bpe")
    return str(tmp_path / "bpe")


@pytest.mark.parametrize(
    "argv, option",
    [
        (["encode", "--quantizer", "TYPO", "--images", "pictures", "--output", "out"], "--quantizer TYPO"),
        (["init", "--base", "TYPO", "--quantizer", "q", "--bpe", "b", "--output", "out"], "--base TYPO"),
        (["chat", "TYPO"], "checkpoint TYPO"),
        (["convert-vq", "some/TYPO", "--output", "out"], "source some/TYPO"),
        (["export", "TYPO", "--output", "out"], "checkpoint TYPO"),
        (["eval", "TYPO", "--tasks", "reconstruction", "--output", "out"], "checkpoint TYPO"),
    ],
)  # fmt: skip
def test_a_misspelt_part_is_named(argv, option, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "a.png")
    assert main(argv) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"being-vl {argv[0]}: error: {option}: no folder of that name")


@pytest.mark.parametrize(
    "name, message",
    [
        ("codes.npy", "must be a folder with image_bpe.json, or that file"),
        ("empty", "the folder has no image_bpe.json"),
        ("nothing", "no such folder or file"),
    ],
)
def test_what_is_no_vocabulary(name, message, bpe, tmp_path, capsys):
    np.save(tmp_path / "codes.npy", np.zeros((2, 4, 4), np.int32))
    (tmp_path / "empty").mkdir()
    assert main(["stats", str(tmp_path / name), "--codes", bpe]) == 2
    assert f"bpe {tmp_path / name}: {message}" in capsys.readouterr().err


@pytest.mark.parametrize(
    "device, message",
    [
        ("gpu", "--device gpu: Expected one of cpu, cuda"),
        ("cuda:99", "--device cuda:99: this machine has "),
        ("cpu:x", "--device cpu:x: Invalid device string"),
    ],
)
def test_a_device_that_is_not_there_is_named(device, message, tmp_path, capsys):
    flags = ["--images", str(tmp_path), "--output", str(tmp_path / "out"), "--quantizer", "q"]
    assert main(["encode", *flags, "--device", device]) == 2
    error = capsys.readouterr().err
    assert message in error and "unexpected" not in error


def test_a_whole_checkpoint_is_no_quantizer(tmp_path, capsys):
    (tmp_path / "vq_model").mkdir()
    for folder in (tmp_path, tmp_path / "vq_model"):
        (folder / "config.json").write_text('{"model_type": "being_vl"}')
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    flags = ["--images", str(tmp_path), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["encode", *flags, "--quantizer", str(tmp_path)]) == 2
    assert f"its quantizer is {tmp_path}/vq_model" in capsys.readouterr().err


def test_tokenize_wants_a_checkpoint_that_init_made(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    flags = ["--data", "rows.json", "--codes", "codes", "--output", str(tmp_path / "out")]
    assert main(["tokenize", *flags, "--checkpoint", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"--checkpoint {tmp_path}: the folder has no processor_config.json" in error


def test_an_image_needs_a_quantizer(bpe, tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert main(["inspect", bpe, "--image", str(tmp_path / "a.png")]) == 2
    assert (
        "is a vocabulary without a quantizer: --image needs --quantizer" in capsys.readouterr().err
    )


def test_a_file_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["chat", str(tmp_path / "file")]) == 2
    assert "must be a folder or an id on the Hub, got a file" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["train-bpe"], ["stats"]])
def test_what_is_no_array_of_codes(command, bpe, tmp_path, capsys):
    np.savez(tmp_path / "codes.npz", np.zeros((2, 4, 4), np.int32))
    np.save(tmp_path / "codes.npy", np.array([np.zeros((2, 2)), np.zeros((3, 3))], object))
    about = [bpe] if command == ["stats"] else ["--output", str(tmp_path / "out")]
    for name, message in (
        ("codes.npz", "codes.npz: an archive of arrays; expected an .npy array of integers (N, H, W)"),
        ("codes.npy", "codes.npy: an array of Python objects"),
    ):  # fmt: skip
        assert main([*command, *about, "--codes", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err


def test_fewer_merges_than_asked_are_explained(tmp_path, capsys):
    np.save(tmp_path / "codes.npy", np.arange(32, dtype=np.int32).reshape(2, 4, 4))
    flags = ["--codes", str(tmp_path / "codes.npy"), "--codebook-size", "32", "--num-merges", "5"]
    assert main(["train-bpe", *flags, "--output", str(tmp_path / "out")]) == 0
    error = capsys.readouterr().err
    assert "warning: 0 of the 5 merges asked for: no further pair of tokens" in error
