"""`train-vq --kind`: each kind trains from a folder of pictures, and what diverges stops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from being_vl import BeingVLImageProcessor
from being_vl.cli import main as command
from being_vl.training.vq.losses import entropy_loss
from being_vl.training.vq.presets import preset

KINDS = ["patch", "vqgan", "fsq", "lfq"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for number in range(12):
        pixels = random.integers(0, 256, (70, 80 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_pictures_is_enough(pictures, tmp_path, kind):
    flags = ["--images", str(pictures), "--kind", kind, "--resolution", "64", "--device", "cpu"]
    flags += [] if kind == "patch" else ["--steps", "2", "--workers", "0"]
    flags += ["--eval-count", "2", "--ssim", "false"]
    assert command(["train-vq", *flags, "--output", str(tmp_path / "vq")]) == 0
    model = AutoModel.from_pretrained(tmp_path / "vq").eval()
    processor = BeingVLImageProcessor.from_pretrained(tmp_path / "vq")
    pixels = processor(Image.open(pictures / "00.png"), return_tensors="pt")["pixel_values"]
    codes = model.encode(pixels)
    assert codes.shape == (1, 16, 16) and codes.max() < model.config.num_embeddings
    assert model.decode(codes).shape == (1, 3, 64, 64)
    assert (tmp_path / "vq" / "metrics.json").exists()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_defaults_by_resolution(kind, resolution):
    config = preset(kind, resolution).config
    assert config.resolution == resolution
    cells = resolution // config.downsampling
    assert 16 <= cells <= 32
    if kind == "fsq":
        assert config.num_embeddings == math.prod(config.levels)


def test_the_levels_and_bits_of_the_papers():
    assert preset("fsq", 256).config.num_embeddings == 64_000
    assert preset("fsq", 64).config.levels == [8, 5, 5, 5]
    assert preset("lfq", 256).config.num_embeddings == 2**13


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--kind", "patch", "--model.embed_dim", "9"], "--model.embed_dim sets a size"),
        (["--resolution", "64", "--model.embed_dim", "9"], "give one or the other"),
        (
            ["--kind", "fsq", "--model.embed_dim", "9"],
            "--kind is fsq, but --model.quantizer codebook",
        ),
        (["--resolution", "65"], "multiple of 8"),
        (["--kind", "patch", "--random-crop", "32"], "--random-crop is of training by steps"),
        (["--kind", "patch", "--random-flip", "true"], "--random-flip is of training by steps"),
        (["--kind", "patch", "--steps", "9"], "--steps is of training by steps"),
        (["--kind", "patch", "--dtype", "bfloat16"], "--dtype is of training by steps"),
        (
            ["--kind", "patch", "--losses.ema_decay", "0.5"],
            "--losses.ema_decay is of training by steps",
        ),
        (["--kind", "patch", "--rfid-weights", "x"], "--rfid-weights is of training by steps"),
    ],
)
def test_options_that_exclude_each_other_are_refused(pictures, tmp_path, capsys, flags, message):
    arguments = ["train-vq", "--images", str(pictures), "--output", str(tmp_path / "vq"), *flags]
    assert command(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_training_that_diverges_stops_and_saves_nothing(pictures, tmp_path, capsys):
    flags = ["--images", str(pictures), "--resolution", "64", "--device", "cpu", "--workers", "0"]
    flags += ["--steps", "20", "--learning-rate", "1e30", "--max-grad-norm", "0"]
    assert command(["train-vq", *flags, "--output", str(tmp_path / "vq")]) == 2
    assert "training has diverged" in capsys.readouterr().err
    assert not (tmp_path / "vq" / "model.safetensors").exists()


def test_the_entropy_loss_by_hand():
    """Sure bits (entropy 0) half on and half off (entropy ln 2) give −ln 2; unsure ones, all at 0, have both
    entropies ln 2 and give 0; sure bits that are all on have neither."""
    sure = torch.tensor([1.0, -1.0]).view(1, 1, 1, 2)
    assert entropy_loss(sure).item() == pytest.approx(-math.log(2), abs=1e-4)
    assert entropy_loss(torch.zeros(1, 3, 2, 2)).item() == pytest.approx(0.0, abs=1e-6)
    assert entropy_loss(torch.ones(1, 3, 2, 2)).item() == pytest.approx(0.0, abs=1e-4)
