"""Published layouts of a VQ-GAN: what loads, what is left unread, what is refused."""

import json
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from being_vl.cli import main as command
from being_vl.quantizers.configuration_being_vl_vq import BeingVLVQConfig
from being_vl.quantizers.modeling_being_vl_vq import BeingVLVQModel
from being_vl.quantizers.vq_checkpoints import load_vq_checkpoint

SIZES = {
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "num_embeddings": 64,
    "embed_dim": 16,
    "latent_channels": 24,
    "resolution": 32,
    "attn_resolutions": [16],
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = BeingVLVQModel(BeingVLVQConfig(**SIZES)).eval()
    torch.nn.init.normal_(model.get_codebook(), std=0.1)
    return model


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module")
def chameleon(tmp_path_factory):
    torch.manual_seed(0)
    config = ChameleonConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=2000,
        vq_config=SIZES,
        vocabulary_map={"<image>": 3, "IMGIMGBSA": 4},
    )
    lm = ChameleonForConditionalGeneration(config).eval()
    folder = tmp_path_factory.mktemp("chameleon")
    lm.save_pretrained(folder, max_shard_size="150KB")
    return lm, folder


def assert_same(loaded, model, pixels, decoder=True):
    assert not loaded.training
    codes = model.encode(pixels)
    assert torch.equal(loaded.encode(pixels), codes)
    assert loaded.config.has_decoder is decoder
    with torch.no_grad():
        if decoder:
            assert torch.equal(loaded.decode(codes), model.decode(codes))
            return
    with pytest.raises(ValueError, match="has no decoder"):
        loaded.decode(codes)


@pytest.mark.parametrize("load", [load_vq_checkpoint, BeingVLVQModel.from_pretrained])
def test_chameleon_shards_without_the_language_model(chameleon, pixels, load, tmp_path):
    lm, folder = chameleon
    shard_of = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    used = {shard for key, shard in shard_of.items() if ".vqmodel." in key}
    unused = set(shard_of.values()) - used
    assert unused
    for path in folder.iterdir():
        # what load_vq_checkpoint must not read is not there to be read
        if path.name not in unused or load is not load_vq_checkpoint:
            (tmp_path / path.name).symlink_to(path)
    loaded = load(tmp_path)
    codes = lm.model.vqmodel.encode(pixels).image_tokens
    assert torch.equal(loaded.encode(pixels).flatten(), codes)
    assert loaded.config.resolution == 32
    assert loaded.config.attn_resolutions == [16]
    with pytest.raises(ValueError, match="has no decoder"):
        loaded.decode(codes.view(2, 16, 16))


def taming_checkpoint(model):
    return {
        "state_dict": {
            **model.state_dict(),
            "loss.discriminator.main.0.weight": torch.ones(2, 2),
            "loss.perceptual_loss.lin0.model.1.weight": torch.ones(3),
        },
        "epoch": 5,
        "pytorch-lightning_version": "1.0.8",
        "optimizer_states": [{"state": {0: {"step": 3}}}],
    }


def test_taming_checkpoint(model, pixels, tmp_path):
    torch.save(taming_checkpoint(model), tmp_path / "vqgan.ckpt")
    loaded = load_vq_checkpoint(tmp_path / "vqgan.ckpt", resolution=32)
    assert_same(loaded, model, pixels)
    for name, value in SIZES.items():
        assert getattr(loaded.config, name) == value, name
    assert_same(load_vq_checkpoint(tmp_path, resolution=32), model, pixels)  # the folder


def test_taming_checkpoint_of_the_old_format(model, pixels, tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save(taming_checkpoint(model), path, _use_new_zipfile_serialization=False)
    assert_same(load_vq_checkpoint(path, resolution=32), model, pixels)


def test_lightning_callbacks_in_a_checkpoint_are_not_run(model, pixels, tmp_path, monkeypatch):
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    parts = name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), types.ModuleType("parent"))
    monkeypatch.setitem(sys.modules, name, module)
    content = {**taming_checkpoint(model), "callbacks": {module.ModelCheckpoint: {"best": 0.5}}}
    torch.save(content, tmp_path / "vqgan.ckpt")
    monkeypatch.undo()  # as where Lightning is not installed
    assert_same(load_vq_checkpoint(tmp_path / "vqgan.ckpt", resolution=32), model, pixels)


class Exploit:
    def __reduce__(self):
        return (open, ("exploited", "w"))


def test_pickles_are_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"encoder.conv_in.weight": Exploit()}}, tmp_path / "evil.ckpt")
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Exploit()))
    for name in ("evil.ckpt", "evil.pt"):
        with pytest.raises(ValueError, match=rf"{name}: not a checkpoint of tensors alone"):
            load_vq_checkpoint(tmp_path / name)
    assert not (tmp_path / "exploited").exists()


def test_being_vl_layout(model, pixels, tmp_path):
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in ("has_decoder", "norm_num_groups"):
        del config[name]
    config["model_type"] = "chameleon_vqgan"  # as the authors' fork of transformers names it
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert_same(load_vq_checkpoint(tmp_path), model, pixels)
    assert_same(BeingVLVQModel.from_pretrained(tmp_path), model, pixels)


def test_prefixed_decoder_loads(model, pixels, tmp_path):
    weights = {f"model.vqmodel.{key}": value for key, value in model.state_dict().items()}
    save_file({**weights, "lm_head.weight": torch.ones(2, 2)}, tmp_path / "all.safetensors")
    loaded = load_vq_checkpoint(tmp_path / "all.safetensors", resolution=32)
    assert_same(loaded, model, pixels)


def test_dtype_is_float32_unless_asked_for(model, pixels, tmp_path):
    weights = {key: value.bfloat16() for key, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    loaded = load_vq_checkpoint(tmp_path, resolution=32)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float32}
    half = load_vq_checkpoint(tmp_path, resolution=32, dtype=torch.bfloat16)
    assert half.get_codebook().dtype == torch.float32
    assert half.encoder.conv_in.weight.dtype == torch.bfloat16
    assert half.encode(pixels).shape == (2, 16, 16)
    BeingVLVQConfig(**SIZES).save_pretrained(tmp_path)
    assert BeingVLVQModel.from_pretrained(tmp_path).encoder.conv_in.weight.dtype == torch.float32


def broken(model):
    weights = dict(model.state_dict())
    del weights["quant_conv.bias"]
    weights["quantize.cluster_size"] = torch.ones(64)
    weights["decoder.conv_out.bias"] = torch.ones(5)
    return weights


def test_keys_that_do_not_fit_are_named(model, tmp_path):
    save_file(broken(model), tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as caught:
        load_vq_checkpoint(tmp_path, resolution=32)
    message = str(caught.value)
    assert "1 missing: quant_conv.bias" in message
    assert "1 unexpected: quantize.cluster_size" in message
    assert "decoder.conv_out.bias (5,) instead of (3,)" in message


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda weights: weights.pop("decoder.mid.block_1.conv1.weight"), "missing.*decoder.mid"),
        (lambda weights: weights.pop("encoder.norm_out.weight"), "missing: encoder.norm_out"),
        (lambda weights: weights.update(stray=torch.ones(1)), "unexpected: stray"),
    ],
)
def test_from_pretrained_makes_up_no_weights(model, tmp_path, change, message):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message):
        BeingVLVQModel.from_pretrained(tmp_path)


def test_a_checkpoint_without_a_vq_gan_or_with_two_is_refused(model, tmp_path):
    save_file({"conv.weight": torch.ones(1)}, tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match=r"must hold one VQ-GAN.*found none"):
        load_vq_checkpoint(tmp_path / "none.safetensors")
    two = {f"{name}.{key}": value for name in "ab" for key, value in model.state_dict().items()}
    save_file({key: value.clone() for key, value in two.items()}, tmp_path / "two.safetensors")
    with pytest.raises(ValueError, match=r"found 2: a\., b\."):
        load_vq_checkpoint(tmp_path / "two.safetensors")


@pytest.mark.parametrize(
    "name", ["model.safetensors", "vqgan.ckpt", "model.safetensors.index.json"]
)
def test_damaged_files_are_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x02garbage")
    with pytest.raises(ValueError, match=name):
        load_vq_checkpoint(tmp_path)


def test_missing_shards_and_files_are_named(chameleon, tmp_path):
    _, folder = chameleon
    (tmp_path / "model.safetensors.index.json").symlink_to(folder / "model.safetensors.index.json")
    with pytest.raises(ValueError, match=r"names model-0.*\.safetensors, which is not beside it"):
        load_vq_checkpoint(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no weights there"):
        load_vq_checkpoint(tmp_path / "empty")


def test_convert_vq(model, pixels, tmp_path, capsys):
    torch.save(taming_checkpoint(model), tmp_path / "vqgan.ckpt")
    output = tmp_path / "converted"
    arguments = [str(tmp_path / "vqgan.ckpt"), "--output", str(output), "--resolution=32", "--json"]
    assert command(["convert-vq", *arguments]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["num_embeddings"] == 64
    assert answer["decoder"] is True
    assert_same(BeingVLVQModel.from_pretrained(output), model, pixels)
    assert "resolution: 32" in (output / "convert-vq.yaml").read_text()
    processor = json.loads((output / "preprocessor_config.json").read_text())
    assert processor["size"] == {"shortest_edge": 32}
    assert {path.name for path in tmp_path.iterdir()} == {"vqgan.ckpt", "converted"}
    assert command(["convert-vq", *arguments]) == 2
    assert "must be a missing or empty folder" in capsys.readouterr().err
