"""The k-means quantizer: interface, exactness, errors."""

from __future__ import annotations

import pytest
import torch

from being_vl import BeingVLPatchVQConfig, BeingVLPatchVQModel


def drawings(count: int, side: int = 16, seed: int = 0) -> torch.Tensor:
    """Flat backgrounds with one flat rectangle, (count, 3, side, side) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 1, 1, generator=generator).repeat(1, 1, side, side) * 2 - 1
    for image in images:
        top, left = torch.randint(0, side // 2, (2,), generator=generator).tolist()
        image[:, top : top + side // 2, left : left + side // 2] = torch.rand(
            3, 1, 1, generator=generator
        )
    return images


@pytest.fixture(scope="module")
def fitted():
    model = BeingVLPatchVQModel(
        BeingVLPatchVQConfig(num_embeddings=32, patch_size=4, resolution=16)
    )
    error = model.fit(drawings(200), seed=0)
    return model, error


def test_codes_are_the_nearest_patches(fitted):
    model, _ = fitted
    pixels = drawings(8, seed=1)
    codes = model.encode(pixels)
    assert codes.shape == (8, 4, 4) and codes.dtype == torch.long
    for (b, row, col), code in zip(
        torch.cartesian_prod(*map(torch.arange, codes.shape)).tolist(),
        codes.flatten().tolist(),
        strict=True,
    ):
        patch = pixels[b, :, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].reshape(-1)
        distances = (model.get_codebook() - patch).square().sum(1)
        assert distances[code] == pytest.approx(float(distances.min()), abs=1e-5)


def test_decode_then_encode_is_exact(fitted):
    model, _ = fitted
    codes = torch.randint(0, 32, (3, 4, 5), generator=torch.Generator().manual_seed(2))
    assert model.decode(codes).shape == (3, 3, 16, 20)
    assert torch.equal(model.encode(model.decode(codes)), codes)


def test_equal_patches_get_equal_codes_anywhere(fitted):
    model, _ = fitted
    pixels = drawings(1).repeat(1, 1, 2, 2)
    codes = model.encode(pixels)[0]
    assert torch.equal(codes[:4, :4], codes[4:, 4:])


def test_fit_is_repeatable_and_helps(fitted):
    model, error = fitted
    other = BeingVLPatchVQModel(model.config)
    start = (other(drawings(50)) - drawings(50)).square().mean()
    other.fit(drawings(200), seed=0)
    assert torch.equal(other.get_codebook(), model.get_codebook())
    assert float((other(drawings(50)) - drawings(50)).square().mean()) < float(start) / 3
    assert error >= 0


def test_half_precision_weights_keep_fp32_distances(fitted):
    model, _ = fitted
    half = BeingVLPatchVQModel(model.config).to(torch.bfloat16)
    half.codebook.data.copy_(model.codebook)
    pixels = drawings(20, seed=3)
    exact = BeingVLPatchVQModel(model.config)
    exact.codebook.data.copy_(half.codebook.float())
    assert torch.equal(half.encode(pixels), exact.encode(pixels))


def test_save_and_load(fitted, tmp_path):
    model, _ = fitted
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = BeingVLPatchVQModel.from_pretrained(tmp_path)
    pixels = drawings(8, seed=1)
    assert torch.equal(loaded.encode(pixels), model.encode(pixels))


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda m: m.encode(torch.zeros(1, 3, 10, 16)),
            r"multiples of 4 .* got 10×16",
        ),
        (lambda m: m.encode(torch.zeros(3, 16, 16)), r"got \(3, 16, 16\)"),
        (lambda m: m.decode(torch.zeros(4, 4, dtype=torch.long)), r"codes must be \(batch, h, w\)"),
        (
            lambda m: m.decode(torch.full((1, 2, 2), 32)),
            r"codes must be in \[0, 32\), got 32 to 32",
        ),
        (lambda m: m.fit(torch.zeros(2, 3, 8, 8)), "1 distinct patches cannot fill 32 codes"),
        (
            lambda m: BeingVLPatchVQConfig(patch_size=0),
            "patch_size must be a positive integer, got 0",
        ),
        (lambda m: BeingVLPatchVQConfig(in_channels=[3]), r"in_channels must be .*, got \[3\]"),
    ],
)
def test_errors(fitted, call, message):
    with pytest.raises(ValueError, match=message):
        call(BeingVLPatchVQModel(fitted[0].config))
