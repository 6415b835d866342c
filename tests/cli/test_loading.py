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
