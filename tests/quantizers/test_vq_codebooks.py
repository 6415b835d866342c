"""Finite scalars, lookup-free codes and unit vectors: worked by hand, inverted, saved."""

from __future__ import annotations

import math

import pytest
import torch

from being_vl.quantizers.checks import NotFiniteError
from being_vl.quantizers.configuration_being_vl_vq import BeingVLVQConfig
from being_vl.quantizers.modeling_being_vl_vq import BeingVLVQModel

SIZES = {
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "latent_channels": 8,
    "resolution": 32,
    "norm_num_groups": 4,
}
KINDS = {
    "codebook": {"num_embeddings": 32, "embed_dim": 8},
    "unit": {"num_embeddings": 32, "embed_dim": 8, "l2_norm": True},
    "fsq": {"quantizer": "fsq", "levels": [8, 5, 4, 2]},
    "lfq": {"quantizer": "lfq", "embed_dim": 9},
}


def make_model(kind: str) -> BeingVLVQModel:
    torch.manual_seed(0)
    return BeingVLVQModel(BeingVLVQConfig(**SIZES, **KINDS[kind])).eval()


def test_finite_scalars_by_hand():
    """Levels 5 and 4. tanh(0) = 0 is the middle level 2 of 5; of 4 levels, whose digits stand at −2, −1, 0
    and 1, the shift keeps 0 at 0, digit 2. So the code of (0, 0) is 2 + 5 · 2 = 12, with the vector (0, 0).
    Far up: 2 → digit 4, and 1 → digit 3: 4 + 5 · 3 = 19, (2 / 2, 1 / 2). Far down: 0, (−1, −1)."""
    config = BeingVLVQConfig(**SIZES, quantizer="fsq", levels=[5, 4])
    assert (config.num_embeddings, config.embed_dim) == (20, 2)
    quantize = BeingVLVQModel(config).quantize
    z = torch.tensor([[0.0, 0.0], [9.0, 9.0], [-9.0, -9.0]]).T.view(1, 2, 1, 3)
    codes = quantize(z)
    assert codes.tolist() == [[[12, 19, 0]]]
    vectors = quantize.look_up(codes)[0, :, 0].T
    assert vectors.tolist() == [[0.0, 0.0], [1.0, 0.5], [-1.0, -1.0]]


def test_the_levels_of_the_paper():
    config = BeingVLVQConfig(quantizer="fsq", levels=[8, 8, 8, 5, 5, 5])
    assert (config.num_embeddings, config.embed_dim) == (64000, 6)


def test_lookup_free_codes_by_hand():
    """Signs (+, −, +) are the bits 1, 0, 1: 1 + 4 = 5."""
    quantize = BeingVLVQModel(BeingVLVQConfig(**SIZES, quantizer="lfq", embed_dim=3)).quantize
    z = torch.tensor([0.1, -2.0, 3.0]).view(1, 3, 1, 1)
    assert quantize(z).item() == 5
    assert quantize.look_up(torch.tensor([[[5]]])).flatten().tolist() == [1.0, -1.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_every_code_is_the_nearest_of_its_own_vector(kind):
    model = make_model(kind)
    size = model.config.num_embeddings
    vectors = model.get_codebook().detach().float()
    assert vectors.shape == (size, model.config.embed_dim)
    codes = torch.arange(size).view(1, 1, size)
    latents = vectors.T[None, :, None]
    if kind == "fsq":  # undo the bound, equation by equation
        levels = torch.tensor(model.config.levels).view(1, -1, 1, 1).float()
        half, offset = (levels - 1) * 1.001 / 2, (levels % 2 == 0) * 0.5
        digits = latents * (levels // 2)
        latents = ((digits + offset) / half).atanh() - (offset / half).atanh()
    assert torch.equal(model.quantize(latents), codes)


@pytest.mark.parametrize("kind", KINDS)
def test_codes_cover_pixels_and_are_saved(kind, tmp_path):
    model = make_model(kind)
    pixels = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.encode(pixels)
    assert codes.shape == (2, 8, 12) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < model.config.num_embeddings
    model.save_pretrained(tmp_path)
    loaded = BeingVLVQModel.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))
    # The gradient passes straight through to the encoder.
    loaded.train()(pixels).reconstruction.sum().backward()
    assert loaded.encoder.conv_in.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"quantizer": "rvq"}, "quantizer must be one of"),
        ({"quantizer": "fsq"}, "levels belong to"),
        ({"levels": [8, 8]}, "levels belong to"),
        ({"quantizer": "fsq", "levels": [8, 1]}, "from 2 on"),
        ({"quantizer": "lfq", "embed_dim": 32}, "bits of a lookup-free code"),
        ({"quantizer": "lfq", "embed_dim": 8, "l2_norm": True}, "l2_norm belongs to"),
    ],
)
def test_fields_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        BeingVLVQConfig(**SIZES, **fields)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_latents_that_are_not_finite_have_no_codes(kind, bad):
    model = make_model(kind)
    pixels = torch.zeros(3, 3, 8, 8)
    pixels[1, 0, 0, 0] = bad
    with pytest.raises(NotFiniteError, match="image 1 of the batch") as caught:
        model.encode(pixels)
    assert caught.value.indices == [1]
    with torch.no_grad():
        model.quant_conv.bias[0] = bad
    with pytest.raises(NotFiniteError, match="weights are damaged"):
        model.encode(torch.zeros(1, 3, 8, 8))
