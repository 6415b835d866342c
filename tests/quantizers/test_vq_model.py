"""The VQ-GAN: codes of transformers' Chameleon, a decoder against two others, precision, training."""

import math
import os

import pytest
import torch
from torch.nn import functional as F
from transformers import JanusVQVAEConfig
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE
from transformers.models.janus.modeling_janus import JanusVQVAE

from being_vl.quantizers import codebooks, group_norm
from being_vl.quantizers import modeling_being_vl_vq as vq
from being_vl.quantizers.configuration_being_vl_vq import BeingVLVQConfig
from being_vl.quantizers.modeling_being_vl_vq import BeingVLVQModel

SMALL = {
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_embeddings": 512,
    "embed_dim": 48,
    "latent_channels": 64,
    "resolution": 64,
    "attn_resolutions": [16],
}
TINY = {
    "base_channels": 8,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "num_embeddings": 32,
    "embed_dim": 8,
    "latent_channels": 8,
    "resolution": 32,
    "norm_num_groups": 4,
}


def make_model(sizes, seed=0, **more):
    torch.manual_seed(seed)
    model = BeingVLVQModel(BeingVLVQConfig(**sizes, **more)).eval()
    torch.nn.init.normal_(model.get_codebook(), std=0.1)
    return model


def make_pixels(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*shape, generator=generator) * 2 - 1


@pytest.fixture(scope="module")
def small():
    return make_model(SMALL)


@pytest.mark.parametrize("torch_initialisation", [False, True])
@pytest.mark.parametrize("attention", [True, False])
def test_codes_equal_those_of_chameleon(torch_initialisation, attention):
    sizes = {**SMALL, "attn_type": "vanilla" if attention else None}
    torch.manual_seed(1)
    # theirs refuses the None that its documentation allows; any other text has the same effect
    theirs = ChameleonVQVAEConfig(**{**sizes, "attn_type": sizes["attn_type"] or "none"})
    reference = ChameleonVQVAE(theirs).eval()
    if torch_initialisation:
        for module in reference.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    ours = BeingVLVQModel(BeingVLVQConfig(**sizes, has_decoder=False)).eval()
    ours.load_state_dict(reference.state_dict())
    seen = set()
    for height, width in ((64, 64), (32, 96), (100, 60), (4, 8)):
        pixels = make_pixels(3, 3, height, width)
        expected = reference.encode(pixels).image_tokens.view(3, height // 4, width // 4)
        codes = ours.encode(pixels)
        assert codes.dtype == torch.int64
        assert torch.equal(codes, expected)
        seen |= set(codes.flatten().tolist())
    assert len(seen) > 3


@pytest.mark.skipif(
    not os.environ.get("BEING_VL_FULL_SIZE"), reason="a minute and 2 GB: set BEING_VL_FULL_SIZE=1"
)
def test_codes_equal_those_of_chameleon_at_full_size():
    torch.manual_seed(0)
    reference = ChameleonVQVAE(ChameleonVQVAEConfig()).eval()
    ours = BeingVLVQModel(BeingVLVQConfig(has_decoder=False)).eval()
    ours.load_state_dict(reference.state_dict())
    pixels = make_pixels(1, 3, 512, 512)
    assert torch.equal(ours.encode(pixels).flatten(), reference.encode(pixels).image_tokens)


def test_keys_are_the_published_ones():
    with torch.device("meta"):
        keys = BeingVLVQModel(BeingVLVQConfig()).state_dict()
        chameleon = ChameleonVQVAE(ChameleonVQVAEConfig()).state_dict()
    decoder = {key for key in keys if key.startswith("decoder.")}
    assert len(decoder) == 164
    assert {key: tuple(keys[key].shape) for key in keys.keys() - decoder} == {
        key: tuple(value.shape) for key, value in chameleon.items()
    }
    assert len(chameleon) == 129


def test_decoder_equals_that_of_janus():
    # Janus attends at its coarsest level always, counts levels from the coarsest, and normalises the
    # codebook, so ours gets unit vectors.
    model = make_model({**SMALL, "attn_resolutions": [16]}, seed=2)
    with torch.no_grad():
        model.get_codebook().copy_(F.normalize(model.get_codebook(), dim=-1))
    sizes = {key: SMALL[key] for key in SMALL if key not in ("resolution", "attn_resolutions")}
    janus = JanusVQVAE(JanusVQVAEConfig(**sizes, num_patches=8)).eval()
    weights = {}
    for key, value in model.state_dict().items():
        parts = key.split(".")
        if parts[:2] == ["decoder", "up"]:
            parts[2] = str(2 - int(parts[2]))
        weights[".".join(parts)] = value
    janus.load_state_dict(weights)
    codes = torch.randint(512, (2, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = janus.decode(codes.flatten(1))
        torch.testing.assert_close(model.decode(codes), expected, rtol=1e-4, atol=1e-5)


class TamingDecoder:
    """taming's decoder written from its key names alone; records every key that it reads."""

    def __init__(self, weights, num_groups):
        self.weights = weights
        self.num_groups = num_groups
        self.read = set()

    def get(self, key):
        self.read.add(key)
        return self.weights[key].double()

    def conv(self, x, name, padding):
        return F.conv2d(x, self.get(f"{name}.weight"), self.get(f"{name}.bias"), padding=padding)

    def norm(self, x, name):
        batch, channels = x.shape[:2]
        grouped = x.reshape(batch, self.num_groups, -1)
        mean = grouped.mean(-1, keepdim=True)
        variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
        x = ((grouped - mean) / torch.sqrt(variance + 1e-6)).reshape(x.shape)
        weight, bias = self.get(f"{name}.weight"), self.get(f"{name}.bias")
        return x * weight.view(1, channels, 1, 1) + bias.view(1, channels, 1, 1)

    def swish(self, x):
        return x / (1 + torch.exp(-x))

    def resnet(self, x, name):
        h = self.conv(self.swish(self.norm(x, f"{name}.norm1")), f"{name}.conv1", 1)
        h = self.conv(self.swish(self.norm(h, f"{name}.norm2")), f"{name}.conv2", 1)
        if f"{name}.nin_shortcut.weight" in self.weights:
            x = self.conv(x, f"{name}.nin_shortcut", 0)
        return x + h

    def attention(self, x, name):
        batch, channels, height, width = x.shape
        h = self.norm(x, f"{name}.norm")
        q, k, v = (self.conv(h, f"{name}.{part}", 0).flatten(2) for part in "qkv")
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(channels), dim=2)
        h = torch.einsum("bij,bcj->bci", weights, v).view(batch, channels, height, width)
        return x + self.conv(h, f"{name}.proj_out", 0)

    def __call__(self, codes, levels, blocks):
        x = self.get("quantize.embedding.weight")[codes].permute(0, 3, 1, 2)
        x = self.conv(self.conv(x, "post_quant_conv", 0), "decoder.conv_in", 1)
        x = self.resnet(x, "decoder.mid.block_1")
        x = self.attention(x, "decoder.mid.attn_1")
        x = self.resnet(x, "decoder.mid.block_2")
        for level in reversed(range(levels)):
            for block in range(blocks):
                x = self.resnet(x, f"decoder.up.{level}.block.{block}")
                if f"decoder.up.{level}.attn.{block}.q.weight" in self.weights:
                    x = self.attention(x, f"decoder.up.{level}.attn.{block}")
            if level:
                x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
                x = self.conv(x, f"decoder.up.{level}.upsample.conv", 1)
        return self.conv(self.swish(self.norm(x, "decoder.norm_out")), "decoder.conv_out", 1)


def test_decoder_equals_taming_key_by_key():
    # Two channels a group, or a norm would undo the bias of the convolution before it.
    model = make_model(SMALL, norm_num_groups=16)
    codes = torch.randint(512, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    weights = dict(model.state_dict())
    reference = TamingDecoder(weights, 16)
    expected = reference(codes, levels=3, blocks=3)
    with torch.no_grad():
        torch.testing.assert_close(model.decode(codes).double(), expected, rtol=1e-4, atol=1e-5)
    assert reference.read == {
        key for key in weights if key.startswith(("decoder.", "post_quant_conv.", "quantize."))
    }
    for key in sorted(reference.read):  # every key matters, and to both in the same way
        changed = {**weights, key: weights[key] + 0.05 * torch.randn_like(weights[key])}
        model.load_state_dict(changed)
        with torch.no_grad():
            pixels = model.decode(codes[:1])
        if not key.endswith(".k.bias"):  # softmax does not see a constant added to all scores
            assert not torch.allclose(pixels.double(), expected[:1], rtol=1e-4, atol=1e-5), key
        changed_expected = TamingDecoder(changed, 16)(codes[:1], levels=3, blocks=3)
        torch.testing.assert_close(pixels.double(), changed_expected, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("height, width", [(4, 4), (64, 4), (20, 36), (128, 128)])
def test_any_size_that_the_downsampling_divides(small, height, width):
    codes = small.encode(make_pixels(2, 3, height, width))
    assert codes.shape == (2, height // 4, width // 4)
    assert small.decode(codes).shape == (2, 3, height, width)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (torch.zeros(1, 3, 30, 32), r"multiples of 4 .* got 30×32"),
        (torch.zeros(1, 3, 0, 32), r"multiples of 4 .* got 0×32"),
        (torch.zeros(3, 32, 32), r"must be \(batch, 3, height, width\), got \(3, 32, 32\)"),
        (torch.zeros(1, 1, 32, 32), r"got \(1, 1, 32, 32\)"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "floating point, got torch.uint8"),
    ],
)
def test_wrong_pixels_are_named(small, pixels, message):
    with pytest.raises(ValueError, match=message):
        small.encode(pixels)
    with pytest.raises(ValueError, match=message):
        small(pixels)


@pytest.mark.parametrize(
    "codes, message",
    [
        (torch.zeros(4, 4, dtype=torch.long), r"must be \(batch, h, w\)"),
        (torch.zeros(1, 4, 4), "of int64 or int32"),
        (torch.full((1, 2, 2), 512), r"must be in \[0, 512\), got 512"),
        (torch.full((1, 2, 2), -1), "got -1"),
    ],
)
def test_wrong_codes_are_named(small, codes, message):
    with pytest.raises(ValueError, match=message):
        small.decode(codes)


@pytest.mark.parametrize(
    "field, value",
    [
        ("base_channels", 0),
        ("num_embeddings", True),
        ("channel_multiplier", []),
        ("norm_num_groups", 5),
        ("double_latent", True),
        ("attn_type", "linear"),
        ("dropout", 1.0),
        ("resolution", 33),
    ],
)
def test_wrong_configuration_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        BeingVLVQConfig(**{**TINY, field: value})


def test_batches_are_taken_apart_and_put_together(small, monkeypatch):
    pixels = make_pixels(5, 3, 32, 32)
    together = small.encode(pixels)
    monkeypatch.setattr(vq, "_CPU_PIXELS_PER_PASS", 32 * 32)
    seen = []
    hook = small.encoder.register_forward_hook(lambda *call: seen.append(call[1][0].shape[0]))
    apart = small.encode(pixels)
    with torch.no_grad():
        decoded = small.decode(apart)
    hook.remove()
    assert seen == [1] * 5
    assert torch.equal(apart, together)
    assert decoded.shape == (5, 3, 32, 32)


def test_distances_are_chunked(small, monkeypatch):
    z = torch.randn(2, 48, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = small.quantize(z)
    monkeypatch.setattr(codebooks, "_DISTANCES_PER_CHUNK", 512 * 10)
    assert torch.equal(small.quantize(z), whole)


def test_encoding_rounds_as_chameleon_does():
    torch.manual_seed(1)
    reference = ChameleonVQVAE(ChameleonVQVAEConfig(**SMALL)).eval()
    ours = BeingVLVQModel(BeingVLVQConfig(**SMALL, has_decoder=False)).eval()
    ours.load_state_dict(reference.state_dict())
    pixels = make_pixels(2, 3, 48, 64)
    with torch.no_grad():
        expected = reference.quant_conv(reference.encoder(pixels))
        assert torch.equal(ours._latents(pixels), expected)
        # a tie but for rounding: Chameleon's arithmetic decides it, whatever it decides
        reference.quantize.embedding.weight[7].copy_(
            torch.nextafter(reference.quantize.embedding.weight[3], torch.tensor(9.0))
        )
        ours.load_state_dict(reference.state_dict())
    assert torch.equal(ours.encode(pixels).flatten(), reference.encode(pixels).image_tokens)


def test_maps_are_channels_last_where_rounding_is_free(small):
    layouts = []

    def note(_, inputs, __):
        layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))

    hooks = [
        module.register_forward_hook(note)
        for module in small.modules()
        if isinstance(module, torch.nn.Conv2d)
    ]
    pixels = make_pixels(2, 3, 32, 32)
    small(pixels)
    assert len(layouts) == len(hooks)
    with torch.no_grad():
        small.decode(torch.zeros(1, 8, 8, dtype=torch.long))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            small.encode(pixels)
    for hook in hooks:
        hook.remove()
    assert len(layouts) == 2 * len(hooks)
    assert all(layouts)


@pytest.mark.parametrize("mean", [0.0, 10.0])
@pytest.mark.parametrize("overwrite", [False, True])
def test_blockwise_normalisation_is_accurate(mean, overwrite, monkeypatch):
    monkeypatch.setattr(group_norm, "_NORM_BLOCK", 2**12)
    norm = torch.nn.GroupNorm(8, 32, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    hidden = torch.randn(2, 32, 70, 64, generator=torch.Generator().manual_seed(0)) + mean
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = F.silu(norm.double()(hidden.double())).float()
        result = group_norm.normalize(norm.float(), hidden, overwrite=overwrite)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=3e-5)
    assert (result is hidden) is overwrite


@pytest.mark.parametrize(
    "dtype, rtol",
    [(torch.float64, 1e-6), (torch.float32, 1e-6), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)],
    ids=str,
)
def test_moments_as_on_a_gpu_are_accurate(dtype, rtol):
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 32, 64, 64, generator=generator) + 5).to(dtype)
    hidden = hidden.contiguous(memory_format=torch.channels_last)
    variance, mean = group_norm._moments(hidden)
    assert variance.dtype == mean.dtype == torch.promote_types(dtype, torch.float32)
    exact = torch.var_mean(hidden.double(), (2, 3), correction=0)
    torch.testing.assert_close(variance.float(), exact[0].float(), rtol=rtol, atol=0)
    torch.testing.assert_close(mean.float(), exact[1].float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_distances_are_float32_whatever_the_rest_is(small, dtype):
    z = torch.randn(1, 48, 16, 16, generator=torch.Generator().manual_seed(0))
    codebook = small.get_codebook().detach()

    def nearest(vectors):  # in float64
        flat = vectors.permute(0, 2, 3, 1).reshape(-1, 48).double()
        return torch.cdist(flat, codebook.double()).argmin(1).view(1, 16, 16)

    half = z.to(dtype)
    assert torch.equal(small.quantize(half), nearest(half))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(small.quantize(z), nearest(z))
    if dtype == torch.bfloat16:  # so that this test can fail: distances in it do change codes
        flat, half_codebook = half.permute(0, 2, 3, 1).reshape(-1, 48), codebook.to(dtype)
        distances = half_codebook.square().sum(1) - 2 * flat @ half_codebook.t()
        assert not torch.equal(distances.argmin(1).view(1, 16, 16), nearest(half))


def test_half_precision_weights_and_autocast_run(small):
    pixels = make_pixels(1, 3, 32, 32)
    codes = small.encode(pixels)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        autocast = small.encode(pixels)
        assert small.decode(codes).shape == pixels.shape
    half = make_model(SMALL).to(torch.bfloat16)
    with torch.no_grad():
        assert half.decode(codes).dtype == torch.bfloat16
    for other in (autocast, half.encode(pixels)):
        assert (other == codes).float().mean() > 0.7


def test_codes_follow_the_codebook_however_it_changes():
    model = make_model(TINY)
    z = torch.randn(1, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    quantize = model.quantize

    def expected():
        flat = z.permute(0, 2, 3, 1).reshape(-1, 8)
        return torch.cdist(flat, model.get_codebook().detach()).argmin(1).view(1, 4, 4)

    quantize(z)
    model.get_codebook().data.mul_(torch.rand(32, 1))  # no version counts this
    assert torch.equal(quantize(z), expected())
    with torch.no_grad():
        model.get_codebook()[:16].mul_(50)
    assert torch.equal(quantize(z), expected())
    quantize.embedding.weight = torch.nn.Parameter(torch.randn(32, 8) * torch.rand(32, 1) * 9)
    assert torch.equal(quantize(z), expected())
    model.load_state_dict({**model.state_dict(), "quantize.embedding.weight": torch.randn(32, 8)})
    assert torch.equal(quantize(z), expected())
    model.train()
    model.get_codebook().data.mul_(torch.rand(32, 1))
    assert torch.equal(quantize(z), expected())
    assert torch.equal(model.eval().quantize(z), expected())
    with torch.inference_mode():
        born_here = make_model(TINY, seed=3)  # its weights have no version to watch
        assert torch.equal(born_here.quantize(z), make_model(TINY, seed=3).quantize(z))


def test_forward_trains_every_part():
    model = make_model(TINY).train()
    pixels = make_pixels(2, 3, 16, 16)
    output = model(pixels)
    assert output.reconstruction.shape == pixels.shape
    assert output.codes.shape == (2, 8, 8)
    assert output.z.shape == output.quantized.shape == (2, 8, 8, 8)
    assert torch.equal(output.quantized, model.get_codebook()[output.codes].permute(0, 3, 1, 2))
    z, quantized = output.z.detach(), output.quantized.detach()
    torch.testing.assert_close(output.codebook_loss.detach(), F.mse_loss(quantized, z))
    torch.testing.assert_close(output.commitment_loss.detach(), F.mse_loss(quantized, z))

    def gradients(loss):
        model.zero_grad()
        loss.backward(retain_graph=True)
        return {
            key.split(".")[0]
            for key, value in model.named_parameters()
            if value.grad is not None and value.grad.any()
        }

    both = {"encoder", "quant_conv"}
    assert gradients(output.reconstruction.square().mean()) == both | {"post_quant_conv", "decoder"}
    assert gradients(output.commitment_loss) == both
    assert gradients(output.codebook_loss) == {"quantize"}


def test_training_and_inference_reconstruct_alike(small):
    pixels = make_pixels(1, 3, 32, 32)
    output = small(pixels)
    with torch.no_grad():
        codes = small.encode(pixels)
        assert torch.equal(output.codes, codes)
        torch.testing.assert_close(output.reconstruction, small.decode(codes), rtol=1e-4, atol=1e-5)


def test_compiles_to_one_graph():
    model = make_model(TINY)
    pixels = make_pixels(2, 3, 8, 16)
    codes = model.encode(pixels)
    with torch.no_grad():
        expected = model.decode(codes)
        torch.compiler.reset()
        assert torch.equal(compile_whole(model.encode)(pixels), codes)
        torch.testing.assert_close(
            compile_whole(model.decode)(codes), expected, rtol=1e-4, atol=1e-5
        )
    output = compile_whole(model)(pixels)
    output.reconstruction.mean().backward()
    assert torch.equal(output.codes, codes)


def compile_whole(function):
    return torch.compile(function, fullgraph=True, backend="eager")


def test_saves_and_loads(small, tmp_path):
    small.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = BeingVLVQModel.from_pretrained(tmp_path)
    pixels = make_pixels(1, 3, 32, 32)
    codes = small.encode(pixels)
    assert torch.equal(again.encode(pixels), codes)
    with torch.no_grad():
        assert torch.equal(again.decode(codes), small.decode(codes))
    half = BeingVLVQModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.encoder.conv_in.weight.dtype == torch.bfloat16
    assert half.get_codebook().dtype == torch.float32


def test_without_a_decoder_decode_says_why(tmp_path):
    model = make_model(TINY, has_decoder=False)
    model.save_pretrained(tmp_path)
    model = BeingVLVQModel.from_pretrained(tmp_path)
    codes = model.encode(make_pixels(1, 3, 16, 16))
    for call in (lambda: model.decode(codes), lambda: model(make_pixels(1, 3, 16, 16))):
        with pytest.raises(ValueError, match="has no decoder"):
            call()
