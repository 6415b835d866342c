"""Checkpoints as other projects write them: what is read, which of two sets of weights, what is named."""

from __future__ import annotations

import json
import re

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch.nn import functional as F

from being_vl.cli import main as command
from being_vl.quantizers.configuration_being_vl_vq import BeingVLVQConfig
from being_vl.quantizers.modeling_being_vl_vq import BeingVLVQModel
from being_vl.quantizers.vq_checkpoints import load_vq_checkpoint

SIZES = {
    "base_channels": 32,
    "channel_multiplier": [1, 2, 2],
    "num_res_blocks": 2,
    "num_embeddings": 64,
    "embed_dim": 8,
    "latent_channels": 16,
    "resolution": 32,
    "attn_resolutions": [8],
}


def make_model(seed: int = 0, **more) -> BeingVLVQModel:
    torch.manual_seed(seed)
    model = BeingVLVQModel(BeingVLVQConfig(**{**SIZES, **more})).eval()
    torch.nn.init.normal_(model.quantize.embedding.weight)
    return model


@pytest.fixture(scope="module")
def model() -> BeingVLVQModel:
    return make_model()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def assert_same(loaded: BeingVLVQModel, model: BeingVLVQModel, pixels: torch.Tensor) -> None:
    codes = model.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))


def llamagen(model: BeingVLVQModel) -> dict[str, torch.Tensor]:
    """The keys of LlamaGen's tokenizer/tokenizer_image/vq_model.py."""
    levels = len(model.config.channel_multiplier)
    weights = {"quantize.codebook_used": torch.zeros(100)}
    for key, tensor in model.state_dict().items():
        for theirs, ours in (("0", "block_1"), ("1", "attn_1"), ("2", "block_2")):
            key = key.replace(f".mid.{ours}.", f".mid.{theirs}.")
        found = re.match(r"(encoder|decoder)\.(down|up)\.(\d)\.(.*)", key)
        if found:
            part, _, level, rest = found.groups()
            index = int(level) if part == "encoder" else levels - 1 - int(level)
            key = f"{part}.conv_blocks.{index}.{re.sub('^block', 'res', rest)}"
        weights[key] = tensor
    return weights


@pytest.mark.parametrize("multipliers", [[1, 1, 2, 2, 4], [1, 2, 2, 4]], ids=["16", "8"])
def test_llamagen_of_both_downsampling_factors(tmp_path, multipliers):
    side = 16 * 2 ** (len(multipliers) - 1)
    model = make_model(
        channel_multiplier=multipliers, l2_norm=True, resolution=256,
        attn_resolutions=[256 // 2 ** (len(multipliers) - 1)],
    )  # fmt: skip
    torch.save({"model": llamagen(model)}, tmp_path / "vq_ds_c2i.pt")
    loaded = load_vq_checkpoint(tmp_path / "vq_ds_c2i.pt")
    assert loaded.config.l2_norm and loaded.config.resolution == 256
    assert loaded.config.downsampling == 2 ** (len(multipliers) - 1)
    pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert_same(loaded, model, pixels)
    # As LlamaGen does it: unit latents, unit vectors, and unit vectors to the decoder.
    with torch.no_grad():
        z = F.normalize(model.quant_conv(model.encoder(pixels)), dim=1)
        vectors = F.normalize(model.quantize.embedding.weight, dim=1)
        codes = (z.permute(0, 2, 3, 1) @ vectors.T).argmax(-1)
        decoded = model.decoder(model.post_quant_conv(vectors[codes].permute(0, 3, 1, 2)))
    assert (loaded.encode(pixels) == codes).float().mean() > 0.99
    torch.testing.assert_close(loaded.decode(codes), decoded, atol=1e-4, rtol=0)


def test_convert_vq_reads_llamagen(tmp_path, capsys):
    model = make_model(l2_norm=True, resolution=256, attn_resolutions=[64])
    torch.save({"model": llamagen(model)}, tmp_path / "vq.pt")
    assert command(["convert-vq", str(tmp_path / "vq.pt"), "--output", str(tmp_path / "out")]) == 0
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    assert_same(BeingVLVQModel.from_pretrained(tmp_path / "out"), model, pixels)


@pytest.mark.parametrize("names", [("state_dict",), ("model_state",), ("module", "model")])
def test_nested_dictionaries(model, pixels, tmp_path, names):
    content = model.state_dict()
    for name in reversed(names):
        content = {name: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(content, tmp_path / "last.pt")
    assert_same(load_vq_checkpoint(tmp_path / "last.pt", resolution=32), model, pixels)


def test_moving_averages_in_a_dictionary_of_their_own(model, pixels, tmp_path):
    other = make_model(seed=1)
    torch.save({"model": other.state_dict(), "ema": model.state_dict()}, tmp_path / "a.pt")
    load = load_vq_checkpoint
    assert_same(load(tmp_path / "a.pt", resolution=32), model, pixels)
    assert_same(load(tmp_path / "a.pt", resolution=32, ema=False), other, pixels)


def test_moving_averages_of_ldm(model, pixels, tmp_path):
    """LitEma keeps them as buffers whose names have no dots."""
    other = make_model(seed=1)
    averages = {
        f"model_ema.{key.replace('.', '')}": value for key, value in model.state_dict().items()
    }
    extra = {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(5)}
    content = {"state_dict": {**other.state_dict(), **averages, **extra}}
    torch.save(content, tmp_path / "model.ckpt")
    load = load_vq_checkpoint
    assert_same(load(tmp_path / "model.ckpt", resolution=32), model, pixels)
    assert_same(load(tmp_path / "model.ckpt", resolution=32, ema=False), other, pixels)


def test_buffers_of_a_moving_codebook_are_left(model, pixels, tmp_path):
    extra = {
        "quantize.embedding.cluster_size": torch.ones(64),
        "quantize.embedding.embed_avg": torch.ones(64, 8),
    }
    torch.save({"state_dict": {**model.state_dict(), **extra}}, tmp_path / "ema.ckpt")
    assert_same(load_vq_checkpoint(tmp_path / "ema.ckpt", resolution=32), model, pixels)


def test_sharded_torch_files(model, pixels, tmp_path):
    weights = model.state_dict()
    keys = sorted(weights)
    shard_of = {}
    for number, part in enumerate((keys[::2], keys[1::2]), 1):
        name = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({key: weights[key] for key in part}, tmp_path / name)
        shard_of |= dict.fromkeys(part, name)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": shard_of}))
    assert_same(load_vq_checkpoint(tmp_path, resolution=32), model, pixels)
    torch.save({}, tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: .* is missing, which .*index\.json says"):
        load_vq_checkpoint(tmp_path, resolution=32)


def test_fields_beside_the_weights_are_used(pixels, tmp_path):
    model = make_model(norm_num_groups=8)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "model_type": "chameleon_vqgan",
        "norm_num_groups": 8,
        "resolution": 32,
        "out_channels": 3,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_vq_checkpoint(tmp_path)
    assert loaded.config.norm_num_groups == 8
    assert_same(loaded, model, pixels)
    config["embed_dim"] = 9
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match="embed_dim is 9 in the configuration, but the weights have 8"
    ):
        load_vq_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["vqgan.yaml", "config.yaml", "model.yaml"])
def test_the_yaml_beside_a_ckpt_is_used(model, pixels, tmp_path, name):
    """As taming, LDM and the original Chameleon have it."""
    torch.save({"state_dict": model.state_dict()}, tmp_path / "vqgan.ckpt")
    sizes = {
        "double_z": False,
        "z_channels": SIZES["latent_channels"],
        "resolution": SIZES["resolution"],
        "ch": SIZES["base_channels"],
        "ch_mult": SIZES["channel_multiplier"],
        "num_res_blocks": SIZES["num_res_blocks"],
        "attn_resolutions": SIZES["attn_resolutions"],
        "dropout": 0.0,
    }
    params = {"embed_dim": SIZES["embed_dim"], "n_embed": 64, "ddconfig": sizes}
    (tmp_path / name).write_text(yaml.safe_dump({"model": {"target": "a.B", "params": params}}))
    loaded = load_vq_checkpoint(tmp_path / "vqgan.ckpt")
    whole = {"model": {"params": {"first_stage_config": {"target": "a.B", "params": params}}}}
    (tmp_path / name).write_text(yaml.safe_dump(whole))
    assert load_vq_checkpoint(tmp_path / "vqgan.ckpt").config == loaded.config
    assert loaded.config.resolution == 32
    assert loaded.config.attn_resolutions == SIZES["attn_resolutions"]
    assert_same(loaded, model, pixels)
    params["n_embed"] = 65
    (tmp_path / name).write_text(yaml.safe_dump({"model": {"target": "a.B", "params": params}}))
    with pytest.raises(ValueError, match="num_embeddings is 65 in the configuration, but"):
        load_vq_checkpoint(tmp_path / "vqgan.ckpt")
    (tmp_path / name).write_text("model: 3\n")
    with pytest.raises(ValueError, match=rf"{name}: not a configuration"):
        load_vq_checkpoint(tmp_path / "vqgan.ckpt")


ONE = torch.ones(2, 2)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (
            ["encoder.conv_in.weight", "quant_conv.weight", "post_quant_conv.weight"],
            "KL .*no codebook",
        ),
        (["encoder.conv_in.weight", "quantize.embed.weight", "quantize.proj.weight"], "Gumbel"),
        (["encoder.layers.0.weight", "quantizer.layers.0._codebook.embed"], "residual quantizer"),
        (["encoder.conv_in.weight", "quantizer.project_in.weight"], "finite scalar"),
        (["encoder.down_blocks.0.resnets.0.conv1.weight"], "diffusers"),
        (["encoder.time_conv.0.conv.weight", "quantize.embedding.weight"], "Emu3"),
    ],
)
def test_layouts_that_are_not_supported_are_named(tmp_path, keys, message):
    torch.save({"state_dict": dict.fromkeys(keys, ONE)}, tmp_path / "other.ckpt")
    with pytest.raises(ValueError, match=rf"other\.ckpt: this is .*{message}"):
        load_vq_checkpoint(tmp_path / "other.ckpt")


def test_damaged_weights_are_named(model, tmp_path, capsys):
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    weights["decoder.mid.block_1.conv1.weight"][3, 1, 0, 0] = float("nan")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"decoder\.mid\.block_1\.conv1\.weight holds NaN"):
        load_vq_checkpoint(tmp_path, resolution=32)
    assert (
        command(["convert-vq", str(tmp_path), "--output", str(tmp_path / "out"), "--resolution=32"])
        == 2
    )
    assert not (tmp_path / "out").exists()
    weights["decoder.mid.block_1.conv1.weight"][3, 1, 0, 0] = 1e20
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"infinite values in torch\.float16"):
        load_vq_checkpoint(tmp_path, resolution=32, dtype=torch.float16)
