"""Training a VQ-GAN: losses, codebook, metrics, resuming, presets."""

from __future__ import annotations

import json
import math
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio
from torch import nn

from being_vl import BeingVLImageProcessor, BeingVLVQConfig, BeingVLVQModel
from being_vl.cli import main as being_vl_command
from being_vl.cli.train_vq import make_parser
from being_vl.quantizers.metrics import ReconstructionMetrics, inception_network
from being_vl.training.vq.codebook import CodebookTracker, fit_codebook
from being_vl.training.vq.data import CachedImages, augment, pixels_from_uint8
from being_vl.training.vq.losses import (
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    load_perceptual_loss,
)
from being_vl.training.vq.module import VQLossConfig, VQTrainingModule
from being_vl.training.vq.run import fit_vq_model
from being_vl.training.vq.trainer import VQTrainer, VQTrainingArguments

PRESETS = sorted((Path(__file__).parents[2] / "hub_configs" / "vq").glob("*.yaml"))
PROCESSOR = BeingVLImageProcessor()
SIZES = {
    "resolution": 16, "base_channels": 8, "channel_multiplier": [1, 1], "num_res_blocks": 1,
    "latent_channels": 8, "embed_dim": 4, "num_embeddings": 16, "norm_num_groups": 4,
}  # fmt: skip


def tiny_config() -> BeingVLVQConfig:
    return BeingVLVQConfig(**SIZES)


def pictures(count: int = 24) -> np.ndarray:
    """Squares of one of three colours on another, uint8 (count, 16, 16, 3)."""
    rng = np.random.default_rng(0)
    colours = np.array([[250, 250, 240], [20, 40, 200], [200, 30, 10]], np.uint8)
    images = np.empty((count, 16, 16, 3), np.uint8)
    for image in images:
        ground, figure = rng.permutation(3)[:2]
        image[:] = colours[ground]
        top, left = rng.integers(0, 8, 2)
        image[top : top + 8, left : left + 8] = colours[figure]
    return images


def tiny_module(**losses) -> VQTrainingModule:
    torch.manual_seed(0)
    return VQTrainingModule(BeingVLVQModel(tiny_config()), VQLossConfig(**losses))


def pixels(count: int = 24) -> torch.Tensor:
    return pixels_from_uint8(pictures(count), BeingVLImageProcessor())


# ---------------------------------------------------------------- codebook


def test_moving_averages_worked_by_hand():
    """K = 2, D = 1, decay 0.5, start (0), (10) with 2 uses each; latents 1, 2, 3 → code 0, 10 → 1.

    counts: (2·½ + 3·½, 2·½ + 1·½) = (2.5, 1.5); sums: (0·½ + 6·½, 20·½ + 10·½) = (3, 15);
    codebook: (3 / 2.5, 15 / 1.5) = (1.2, 10).
    """
    tracker = CodebookTracker(2, 1, decay=0.5, moves_codebook=True, dead_share=0.0)
    codebook = torch.tensor([[0.0], [10.0]])
    tracker.start(codebook, rows_per_step=4)
    revived = tracker.update(
        codebook, torch.tensor([[1.0], [2.0], [3.0], [10.0]]), torch.tensor([0, 0, 0, 1])
    )
    assert revived == 0
    torch.testing.assert_close(tracker.counts, torch.tensor([2.5, 1.5]))
    torch.testing.assert_close(codebook, torch.tensor([[1.2], [10.0]]), rtol=1e-4, atol=0)


@pytest.mark.parametrize("moves_codebook", [True, False])
def test_a_dead_code_takes_the_place_of_a_latent(moves_codebook):
    tracker = CodebookTracker(3, 1, decay=0.0, moves_codebook=moves_codebook, dead_share=0.5)
    codebook = torch.tensor([[1.0], [2.0], [99.0]])
    tracker.start(codebook, rows_per_step=6)
    latents = torch.tensor([[1.0], [1.0], [2.0], [2.0]])
    assert tracker.update(codebook, latents, torch.tensor([0, 0, 1, 1])) == 1
    assert float(codebook[2]) == pytest.approx(1.0, abs=1e-3) or float(codebook[2]) == (
        pytest.approx(2.0, abs=1e-3)
    )
    torch.testing.assert_close(codebook[:2], torch.tensor([[1.0], [2.0]]), rtol=1e-3, atol=0)


def test_the_codebook_starts_at_the_clusters_of_the_latents():
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
    torch.manual_seed(0)
    latents = centres.repeat(50, 1) + 0.01 * torch.randn(200, 2)
    codebook = fit_codebook(latents, 4, seed=0)
    assert torch.cdist(centres, codebook).min(1).values.max() < 0.1
    torch.testing.assert_close(fit_codebook(latents, 4, seed=0), codebook, rtol=0, atol=0)
    few = fit_codebook(centres[[0, 0, 1]], 4, seed=0)  # fewer distinct latents than codes
    assert {tuple(row) for row in few.tolist()} == {(0.0, 0.0), (5.0, 0.0)}


# ---------------------------------------------------------------- losses


def test_each_adversary_gets_its_own_gradient():
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, base_channels=4, num_layers=2)
    real, fake = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16, requires_grad=True)
    generator_loss(judge, fake).backward()
    assert fake.grad.abs().sum() > 0
    assert all(p.grad is None for p in judge.parameters())
    fake.grad = None
    discriminator_loss(judge, real, fake).backward()
    assert fake.grad is None
    *others, last_bias = judge.parameters()
    assert all(p.grad.abs().sum() > 0 for p in others)
    assert float(last_bias.grad) == pytest.approx(0.0)  # real and fake pull it apart alike


def test_the_hinge_loss_worked_by_hand():
    """Logits are the pixels: real 0.5 → 1 − 0.5; fake 3 → 1 + 3; half the sum is 2.25."""
    loss = discriminator_loss(
        nn.Identity(), torch.full((1, 1, 1, 1), 0.5), torch.full((1, 1, 1, 1), 3.0)
    )
    assert float(loss) == pytest.approx(2.25)


def test_the_judgement_of_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    judge = PatchDiscriminator(3, base_channels=4, num_layers=3)
    images = torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(judge(images)[:1], judge(images[:1]), rtol=1e-4, atol=1e-5)


def test_the_adaptive_weight_worked_by_hand():
    """∂(3w)/∂w = 3, ∂(½w)/∂w = ½: the weight is 3 / (½ + 1e-4)."""
    last = torch.tensor(2.0, requires_grad=True)
    weight = adaptive_weight(3 * last, 0.5 * last, last)
    assert float(weight) == pytest.approx(3 / 0.5001)
    assert not weight.requires_grad


class _Backbone(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip


def test_the_perceptual_loss_compares_the_stages_of_a_backbone(monkeypatch, tmp_path):
    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return _Backbone()

    monkeypatch.setitem(sys.modules, "timm", types.SimpleNamespace(create_model=create_model))
    torch.save(_Backbone().state_dict(), tmp_path / "weights.pth")
    judge = load_perceptual_loss("timm:small", str(tmp_path / "weights.pth"))
    assert asked == [("small", False)]
    assert len(judge.stages) == 2  # what follows the last pooling is nothing
    real = torch.rand(2, 3, 16, 16) * 2 - 1
    fake = (real + 0.1 * torch.randn_like(real)).requires_grad_()
    assert float(judge(real, real)) == 0.0
    loss = judge(fake, real)
    loss.backward()
    assert float(loss.detach()) > 0
    assert fake.grad.abs().sum() > 0
    module = VQTrainingModule(
        BeingVLVQModel(tiny_config()), VQLossConfig(perceptual_weight=1.0), judge
    )
    assert float(module(pixels(2))["perceptual"]) > 0
    assert not any("stages" in name for name in module.state_dict())


def test_a_perceptual_loss_that_cannot_be_had_says_why(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm is not installed: pip install timm"):
        load_perceptual_loss("timm:vgg16")
    with pytest.raises(ValueError, match="torchvision:NAME or timm:NAME, got 'vgg16'"):
        load_perceptual_loss("vgg16")
    with pytest.raises(
        ValueError, match=r"perceptual_weight is 1.0, but perceptual_backbone is not"
    ):
        tiny_module(perceptual_weight=1.0)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"reconstruction": "l3"}, "reconstruction must be one of .* got 'l3'"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\), got 1.0"),
        ({"commitment_weight": -1.0}, "commitment_weight must not be negative, got -1.0"),
        ({"discriminator_layers": 0}, "discriminator_layers must be at least 1, got 0"),
    ],
)
def test_losses_are_checked(losses, message):
    with pytest.raises(ValueError, match=message):
        VQLossConfig(**losses)


# ---------------------------------------------------------------- module


def test_before_the_codebook_it_is_an_autoencoder_and_then_it_quantizes():
    module, batch = tiny_module(), pixels(4)
    before = module.model.get_codebook().clone()
    assert "commitment" not in module(batch)
    torch.testing.assert_close(module.model.get_codebook(), before, rtol=0, atol=0)
    rows = module.latents(batch).permute(0, 2, 3, 1).flatten(0, 2)
    module.start_codebook(fit_codebook(rows.detach(), 16, seed=0), len(rows))
    terms = module(batch)
    assert float(terms["commitment"]) > 0
    terms["loss"].backward()
    assert module.model.encoder.conv_in.weight.grad.abs().sum() > 0  # straight through
    assert module.model.get_codebook().grad is None  # moving averages move it
    assert not torch.equal(module.codebook.counts, torch.full((16,), len(rows) / 16))


def test_a_codebook_can_learn_by_gradients():
    module, batch = tiny_module(codebook="gradient"), pixels(4)
    module.start_codebook(torch.randn(16, 4), 256)
    before = module.model.get_codebook().detach().clone()
    module.eval()(batch)["loss"].backward()
    assert module.model.get_codebook().grad.abs().sum() > 0
    torch.testing.assert_close(module.model.get_codebook().detach(), before, rtol=0, atol=0)


def test_the_adversaries_join_when_told():
    module, batch = (
        tiny_module(adversarial_weight=0.5, discriminator_channels=4, discriminator_layers=1),
        pixels(4),
    )
    assert "adversarial" not in module(batch)
    module.adversarial = True
    terms = module(batch)
    assert float(terms["adaptive_weight"]) > 0
    terms["loss"].backward()
    assert all(p.grad is not None for p in module.discriminator.parameters())


def test_a_model_without_a_decoder_cannot_be_trained():
    with pytest.raises(ValueError, match="has_decoder must be true"):
        VQTrainingModule(
            BeingVLVQModel(BeingVLVQConfig(**SIZES, has_decoder=False)), VQLossConfig()
        )


# ---------------------------------------------------------------- data and metrics


def test_augmentation_cuts_and_mirrors_by_its_seed():
    image = torch.arange(2 * 4 * 4.0).reshape(1, 2, 4, 4)

    def seen(seed):
        return tuple(augment(image, flip=True, crop=3, seed=(0, seed))[0, 0, 0].tolist())

    rows = [image[0, 0, r].tolist() for r in range(2)]
    expected = {tuple(row[c : c + 3][::d]) for row in rows for c in range(2) for d in (1, -1)}
    assert {seen(i) for i in range(100)} == expected
    assert seen(7) == seen(7)
    whole = augment(image, flip=False, crop=None, seed=(0,))
    assert torch.equal(whole, image)
    with pytest.raises(ValueError, match="random_crop is 5, but images are 4 × 4"):
        augment(image, flip=False, crop=5, seed=(0,))


def test_pixels_are_those_of_the_image_processor():
    processor = BeingVLImageProcessor(do_resize=False, do_center_crop=False)
    wanted = processor([Image.fromarray(p) for p in pictures(3)], return_tensors="pt")
    torch.testing.assert_close(pixels(3), wanted["pixel_values"], rtol=0, atol=1e-6)
    assert np.array_equal(PROCESSOR.to_uint8(pixels(3)).permute(0, 2, 3, 1).numpy(), pictures(3))
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, H, W, 3\), got float64"):
        pixels_from_uint8(pictures(3) / 255, processor)


def test_metrics_agree_with_scikit_image_and_arithmetic():
    real = pictures(6)
    noise = np.random.default_rng(1).integers(-9, 10, real.shape)
    fake = np.clip(real.astype(int) + noise, 0, 255).astype(np.uint8)
    processor = BeingVLImageProcessor()
    codes = torch.tensor([[[0, 0], [0, 0]], [[1, 1], [2, 3]]]).repeat(3, 1, 1)
    metrics = ReconstructionMetrics(8, PROCESSOR)
    for part in (slice(0, 4), slice(4, 6)):
        metrics.update(
            pixels_from_uint8(real[part], processor),
            pixels_from_uint8(fake[part], processor),
            codes[part],
        )
    got = metrics.compute()
    assert got["psnr"] == pytest.approx(peak_signal_noise_ratio(real, fake), abs=1e-6)
    each = [peak_signal_noise_ratio(a, b) for a, b in zip(real, fake, strict=True)]
    assert got["psnr_per_image"] == pytest.approx(np.mean(each), abs=1e-6)
    assert got["code_usage"] == 0.5
    # shares 4/8, 2/8, 1/8, 1/8: an entropy of 1.75 bits
    assert got["perplexity"] == pytest.approx(2**1.75)
    assert 0 < got["ssim"] < 1
    with pytest.raises(ValueError, match="no image to evaluate on"):
        ReconstructionMetrics(8, PROCESSOR, ssim=False).compute()


def test_equal_pictures_have_ssim_1_and_a_finite_psnr():
    metrics = ReconstructionMetrics(2, PROCESSOR)
    metrics.update(pixels(2), pixels(2), torch.zeros(2, 1, 1, dtype=torch.long))
    got = metrics.compute()
    assert got["ssim"] == pytest.approx(1.0, abs=1e-4)
    assert math.isfinite(got["psnr"]) and got["psnr"] > 90


def test_rfid_takes_the_network_of_the_user():
    class Features(nn.Module):
        num_features = 4

        def forward(self, images):
            return images.float().mean((2, 3)).repeat(1, 2)[:, :4]

    same = ReconstructionMetrics(2, PROCESSOR, ssim=False, fid_network=Features())
    other = ReconstructionMetrics(2, PROCESSOR, ssim=False, fid_network=Features())
    codes = torch.zeros(8, 1, 1, dtype=torch.long)
    same.update(pixels(8), pixels(8), codes)
    other.update(pixels(8), -pixels(8), codes)
    assert same.compute()["rfid"] == pytest.approx(0.0, abs=1e-2)
    assert other.compute()["rfid"] > 1


# ---------------------------------------------------------------- training


def tiny_trainer(folder: Path, steps: int, **arguments) -> VQTrainer:
    return VQTrainer(
        tiny_module(
            adversarial_weight=0.1,
            adversarial_start=0.6,
            discriminator_channels=4,
            discriminator_layers=1,
        ),
        VQTrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            discriminator_learning_rate=1e-4,
            autoencoder_fraction=0.4,
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            random_flip=True,
            random_crop=12,
            **arguments,
        ),
        train_dataset=CachedImages(pixels()),
        eval_dataset=CachedImages(pixels(8)),
        processor=PROCESSOR,
    )


@pytest.mark.parametrize("stop_at", [2, 6])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, stop_at):
    """Stopped before (2) and after (6 of 8) quantization and the adversaries began."""
    whole = tiny_trainer(tmp_path / "whole", 8, save_strategy="no")
    whole.train()
    tiny_trainer(tmp_path / "part", 8, save_steps=stop_at).train()
    checkpoint = tmp_path / "part" / f"checkpoint-{stop_at}"
    torch.manual_seed(123)  # the state must come from the checkpoint
    resumed = tiny_trainer(tmp_path / "part", 8, save_strategy="no")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    wanted = whole.model.state_dict()
    got = resumed.model.state_dict()
    assert bool(got["codebook.ready"])
    for name, tensor in wanted.items():
        torch.testing.assert_close(got[name], tensor, rtol=0, atol=0, msg=name)


def test_a_damaged_checkpoint_is_passed_over_or_refused(tmp_path):
    whole = tiny_trainer(tmp_path, 4, save_steps=2)
    whole.train()
    (tmp_path / "checkpoint-4" / "optimizer.pt").unlink()
    said = r"checkpoint-4: optimizer state \(optimizer\.pt\) is missing"
    with pytest.raises(ValueError, match=said):
        tiny_trainer(tmp_path, 4).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    resumed = tiny_trainer(tmp_path, 4, save_steps=2)
    with pytest.warns(UserWarning, match=f"{said}.*Going on from .*checkpoint-2"):
        resumed.train(resume_from_checkpoint=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_terms_are_logged_and_evaluation_measures_reconstruction(tmp_path):
    trainer = tiny_trainer(tmp_path, 8, save_strategy="no", logging_steps=4)
    assert {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3, 1e-4}
    trainer.train()
    first, second = [log for log in trainer.state.log_history if "reconstruction" in log]
    assert {"commitment", "adversarial", "discriminator"} <= set(second) - set(first)
    metrics = trainer.evaluate()
    assert {"eval_psnr", "eval_code_usage", "eval_perplexity"} <= set(metrics)
    assert trainer.state.log_history[-1]["eval_psnr"] == metrics["eval_psnr"]


def test_fit_vq_model_learns_and_repeats_itself():
    errors = []
    for steps in (5, 5, 120):
        model = fit_vq_model(pictures(), tiny_config(), steps=steps)
        assert not model.training
        with torch.inference_mode():
            errors.append(float((model(pixels()).reconstruction - pixels()).square().mean()))
    assert errors[0] == errors[1]
    assert errors[2] < 0.7 * errors[0]


# ---------------------------------------------------------------- command and presets


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_presets_load_through_the_real_parser(preset):
    lines = preset.read_text().splitlines()
    command = " ".join(line.strip("# \\") for line in lines[:8] if line.startswith("#"))
    assert f"train-vq --config hub_configs/vq/{preset.name}" in command
    needed = ["--output", "out", "--images", "images"]
    args = make_parser().parse_args(["--config", str(preset), *needed])
    BeingVLVQConfig(**args.model.as_dict())
    VQLossConfig(**args.losses.as_dict())
    options = yaml.safe_load(preset.read_text())
    for given, parsed in (
        (options, args), (options["model"], args.model), (options["losses"], args.losses),
    ):  # fmt: skip
        for name, value in given.items():
            assert isinstance(value, dict) or parsed[name] == value
            assert not isinstance(value, str) or not value[0].isdigit()  # 2e-5 would be a string


def test_unknown_keys_of_a_preset_are_refused(tmp_path, capsys):
    for text in ("nonsense: 1", "model: {nonsense: 1}", "losses: {nonsense: 1}"):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(SystemExit) as caught:
            make_parser().parse_args(["--config", str(tmp_path / "bad.yaml"), "--output", "x"])
        assert caught.value.code == 2
        assert "nonsense" in capsys.readouterr().err


def test_sizes_of_another_type_are_refused(tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("model: {resolution: wide}")
    for given in (["--model.resolution", "wide"], ["--config", str(tmp_path / "bad.yaml")]):
        with pytest.raises(SystemExit) as caught:
            make_parser().parse_args([*given, "--output", "x"])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "resolution" in error and "int" in error and "wide" in error


def test_the_command_trains_continues_and_refuses(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(pictures(12)):
        Image.fromarray(image).save(tmp_path / "images" / f"{i}.png")
    config = {
        "model": SIZES, "steps": 4, "batch_size": 4, "cache_images": True, "learning_rate": 1e-3, "weight_decay": 0.01,
    }  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))

    def run(*more: str) -> int:
        return being_vl_command(
            ["train-vq", "--config", str(tmp_path / "config.yaml"), "--images",
             str(tmp_path / "images"), "--output", str(tmp_path / "out"), "--device", "cpu",
             "--eval-count", "4", "--save-every", "2", "--json", *more]
        )  # fmt: skip

    assert run() == 0
    result = json.loads(capsys.readouterr().out)
    assert result["steps"] == 4 and result["eval_psnr"] > 0
    model = BeingVLVQModel.from_pretrained(tmp_path / "out")
    processor = BeingVLImageProcessor.from_pretrained(tmp_path / "out")
    batch = processor([Image.fromarray(pictures(1)[0])], return_tensors="pt")
    assert model.encode(batch["pixel_values"]).shape == (1, 8, 8)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result

    # Also in a folder begun when the name had an underscore
    settings = tmp_path / "out" / "train-vq.yaml"
    settings = settings.rename(settings.with_name("train_vq.yaml"))
    assert run("--resume", "false") == 2
    assert "holds a run, and --resume is false" in capsys.readouterr().err
    assert run("--steps", "5") == 2
    assert "steps is 4, but this run's is 5" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out" / "checkpoint-4")
    assert run() == 0
    assert list((tmp_path / "out").glob("*.yaml")) == [settings]
    again = BeingVLVQModel.from_pretrained(tmp_path / "out")
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_command_says_what_is_wrong_with_the_images(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    Image.fromarray(pictures(1)[0]).save(tmp_path / "images" / "b.png")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": SIZES, "cache_images": True}))
    flags = ["train-vq", "--config", str(tmp_path / "config.yaml"), "--device", "cpu"]
    images = ["--images", str(tmp_path / "images")]
    assert being_vl_command([*flags, *images, "--output", str(tmp_path / "one")]) == 2
    assert "a.png: not a readable image" in capsys.readouterr().err
    more = ["--output", str(tmp_path / "two"), "--eval-count", "2"]
    assert being_vl_command([*flags, *images, *more]) == 2
    assert "--eval-count must be less than the 2 images, got 2" in capsys.readouterr().err


def test_rfid_without_its_weights_or_library_says_so(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"rfid_weights: .*none\.pth: no such file"):
        inception_network(str(tmp_path / "none.pth"))
    (tmp_path / "some.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setattr("torchmetrics.image.fid._TORCH_FIDELITY_AVAILABLE", False)
    with pytest.raises(ImportError, match="rFID needs torchmetrics and torch-fidelity"):
        inception_network(str(tmp_path / "some.pth"))
