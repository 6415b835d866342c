"""Other libraries' VQ models with random weights: the codes and pixels that the library itself gives."""

from __future__ import annotations

import json
import re
import sys

import pytest
import torch
from PIL import Image
from quantizer_fixtures import MAKERS, make
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel

from being_vl import BeingVLImageProcessor
from being_vl.cli import main as command
from being_vl.hub.part import place_on_hub
from being_vl.quantizers.checks import NotFiniteError
from being_vl.quantizers.identity import quantizer_identity
from being_vl.quantizers.modeling_being_vl_adapted_vq import adapt
from being_vl.quantizers.quantizer import default_image_processor, load_quantizer

PIXELS = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def by_library(name: str, model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """Codes as the library's own code makes them."""
    batch, _, height, width = pixels.shape
    if name == "emu3":
        sizes = torch.tensor([[height, width]] * batch)
        return torch.stack(list(model.encode(pixels, sizes).image_tokens))
    if name == "diffusers":
        codes = model.quantize(model.encode(pixels).latents)[2][2]
        return codes.view(batch, height // 2, width // 2)
    if name == "glm_image":
        h, w = height // 4, width // 4
        rows = nn.functional.unfold(pixels, 4, stride=4).transpose(1, 2).reshape(batch * h * w, -1)
        features = model.visual(rows, grid_thw=torch.tensor([[1, h, w]] * batch)).pooler_output
        features = features.view(batch, h, w, -1).permute(0, 3, 1, 2)
        return model.vqmodel.encode(features).image_tokens.view(batch, h, w)
    return model.encode(pixels).image_tokens.view(batch, height // 2, width // 2)


@pytest.mark.parametrize("name", MAKERS)
def test_codes_are_those_of_the_library(name, tmp_path):
    model = make(name)
    wanted = by_library(name, model, PIXELS)
    quantizer = adapt(model)
    assert torch.equal(quantizer.encode(PIXELS), wanted)
    side = quantizer.config.downsampling
    assert wanted.shape == (2, 16 // side, 24 // side)
    assert quantizer.get_codebook().shape[0] == quantizer.config.num_embeddings == 64
    # Saved and loaded as every quantizer, with an identity that stays.
    processor = default_image_processor(quantizer.config)
    quantizer.save_pretrained(tmp_path)
    for loaded in (AutoModel.from_pretrained(tmp_path).eval(), load_quantizer(tmp_path)):
        assert torch.equal(loaded.encode(PIXELS), wanted)
        identity = quantizer_identity(loaded, processor)
        assert identity == quantizer_identity(quantizer, processor)
    with torch.no_grad():
        quantizer.get_codebook()[0] += 1
    assert quantizer_identity(quantizer, processor) != identity


@pytest.mark.parametrize("name", ["chameleon", "diffusers", "emu3", "janus"])
def test_the_librarys_own_folder_is_read(name, tmp_path):
    model = make(name)
    model.save_pretrained(tmp_path)
    assert torch.equal(load_quantizer(tmp_path).encode(PIXELS), by_library(name, model, PIXELS))


@torch.no_grad()
def test_pixels_are_those_of_the_library():
    codes = torch.randint(64, (2, 8, 8), generator=torch.Generator().manual_seed(1))
    model = make("emu3")
    assert torch.equal(adapt(model).decode(codes), model.decode(codes))
    model = make("janus")
    assert torch.equal(adapt(model).decode(codes), model.decode(codes.flatten(1)))
    assert adapt(model).decode(codes[:, :3]).shape == (2, 3, 6, 16)  # no square
    for name in ("chameleon", "glm_image"):
        with pytest.raises(ValueError, match="has no decoder"):
            adapt(make(name)).decode(codes)


@torch.no_grad()
def test_pixels_are_those_of_diffusers():
    model = make("diffusers")
    codes = torch.randint(64, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    vectors = model.quantize.get_codebook_entry(codes.flatten(), (2, 8, 12, 4))
    wanted = model.decode(vectors, force_not_quantize=True).sample
    assert torch.equal(adapt(model).decode(codes), wanted)


@torch.no_grad()
def test_a_quantizer_of_amused_decodes_and_sees_pixels_of_0_to_1(tmp_path):
    """Its VQModel looks codes up itself, and its pipeline does not normalize (diffusers' AmusedPipeline)."""
    model = make("diffusers")
    model.register_to_config(lookup_from_codebook=True)
    codes = torch.randint(64, (2, 8, 12), generator=torch.Generator().manual_seed(1))
    wanted = model.decode(codes, force_not_quantize=True, shape=(2, 8, 12, 4)).sample
    adapted = adapt(model)
    assert torch.equal(adapted.decode(codes), wanted)
    image = Image.new("RGB", (24, 16), (0, 51, 255))
    pixels = default_image_processor(adapted.config)(image, return_tensors="pt")["pixel_values"]
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor([0, 0.2, 1]))


@pytest.mark.parametrize("name", ["chameleon", "diffusers", "emu3", "janus"])
def test_weights_of_half_precision_are_loaded_as_float32(name, tmp_path):
    make(name).bfloat16().save_pretrained(tmp_path)
    assert next(load_quantizer(tmp_path).parameters()).dtype == torch.float32
    kept = load_quantizer(tmp_path, dtype=torch.bfloat16)
    assert next(kept.parameters()).dtype == torch.bfloat16


def test_a_pipeline_of_diffusers_says_where_its_quantizer_is(tmp_path, capsys):
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}  # fmt: skip
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    make("diffusers").save_pretrained(tmp_path / "vqvae")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "images" / "a.png")
    arguments = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "out")]
    assert command(["encode", "--quantizer", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"a pipeline of diffusers; its quantizer is {tmp_path}/vqvae")
    assert command(["encode", "--quantizer", f"{tmp_path}/vqvae", *arguments]) == 0


def test_a_folder_in_a_repository_is_its_subfolder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place_on_hub("owner/name", {}) == ("owner/name", {})
    assert place_on_hub("owner/name/vq/a", {"revision": "x"}) == ("owner/name", {"revision": "x", "subfolder": "vq/a"})  # fmt: skip
    (tmp_path / "owner/name/vq").mkdir(parents=True)
    for here in ("owner/name/vq", "./owner/name/vq", str(tmp_path / "owner/name/other")):
        assert place_on_hub(here, {}) == (here, {})


@pytest.mark.parametrize("name", MAKERS)
def test_latents_that_are_not_finite_have_no_codes(name):
    pixels = PIXELS.clone()
    pixels[1, 0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError) as caught:
        adapt(make(name)).encode(pixels)
    assert caught.value.indices == [1]


# ---- a user's own


OWN = '''
import torch

class Thirds:
    """The mean of each 8 × 8 block, in three shades."""
    num_embeddings, downsampling, identity = 3, 8, "thirds of the mean, version 1"

    def encode(self, pixel_values):
        means = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), 8)[:, 0]
        return ((means + 1) / 2 * 3).clamp(0, 2.999).long()

class Nameless(Thirds):
    identity = None

class Wrong(Thirds):
    num_embeddings = 2
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "my_quantizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_quantizers", raising=False)


def test_a_module_of_ones_own(own, tmp_path):
    quantizer = load_quantizer("my_quantizers:Thirds")
    pixels = torch.zeros(1, 3, 16, 8)
    pixels[:, :, 8:] = 0.9
    assert quantizer.encode(pixels).tolist() == [[[1], [2]]]
    processor = default_image_processor(quantizer.config)
    assert "sha256" in quantizer_identity(quantizer, processor)
    with pytest.raises(ValueError, match="does not travel with a checkpoint"):
        quantizer.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match="has no decode"):
        quantizer.decode(torch.zeros(1, 2, 1, dtype=torch.long))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my_quantizers:Nameless", "identity is missing"),
        ("my_quantizers:Missing", "cannot be imported"),
        ("no_such_package:Thirds", "cannot be imported"),
        ("builtins:dict", "num_embeddings must be a positive integer"),
    ],
)
def test_what_is_no_quantizer_is_refused(own, name, message):
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        load_quantizer(name)


def test_codes_that_break_their_word_are_refused(own):
    with pytest.raises(ValueError, match=r"codes must be in \[0, 2\), got 2 to 2"):
        load_quantizer("my_quantizers:Wrong").encode(torch.ones(1, 3, 8, 8))


def test_a_folder_of_something_else_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match="'llama' is no quantizer"):
        load_quantizer(tmp_path)


THEIRS = """
import torch
from transformers import PreTrainedConfig, PreTrainedModel

class Config(PreTrainedConfig):
    model_type = "theirs"
    num_embeddings, downsampling, resolution = 4, 2, 8

class Model(PreTrainedModel):
    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.bias = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def encode(self, pixel_values):
        means = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), 2)[:, 0] + self.bias
        return ((means + 1) * 2).long().clamp(0, 3)
"""


def test_code_that_a_model_brings_is_not_run_unasked(tmp_path, capsys):
    """And with it, a model of one's own travels."""
    folder = tmp_path / "theirs_vq"
    folder.mkdir()
    autos = {"AutoConfig": "theirs.Config", "AutoModel": "theirs.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": autos}))
    (folder / "theirs.py").write_text(THEIRS)
    save_file({"bias": torch.zeros(1)}, folder / "model.safetensors", {"format": "pt"})
    message = r"theirs_vq: a 'theirs' brings code of its own .*trust_remote_code=True"
    with pytest.raises(ValueError, match=message):
        load_quantizer(folder)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    flags = ["--images", str(tmp_path / "images"), "--output", str(tmp_path / "codes")]
    assert command(["encode", "--quantizer", str(folder), *flags]) == 2
    assert re.search(message, capsys.readouterr().err)
    quantizer = load_quantizer(folder, trust_remote_code=True)
    assert quantizer.encode(torch.full((1, 3, 4, 2), 0.1)).tolist() == [[[2], [2]]]


def test_preprocessing_is_that_of_the_library():
    processor = default_image_processor(adapt(make("emu3")).config)
    assert isinstance(processor, BeingVLImageProcessor)
    assert processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])


@torch.no_grad()
def test_a_video_model_gives_its_own_grids():
    """Emu3's takes several frames to a grid: as the library's, but that the last grid may be short of frames."""
    model = make("emu3")
    adapted = adapt(model)
    step = adapted.config.temporal_downsampling
    assert step == model.config.temporal_downsample_factor > 1
    frames = (
        PIXELS[:1].repeat(2 * step, 1, 1, 1) + 0.1 * torch.arange(2 * step)[:, None, None, None]
    )
    codes = adapted.encode_video(frames)
    side = adapted.config.downsampling
    assert codes.shape == (2, frames.shape[2] // side, frames.shape[3] // side)
    hidden = model.quant_conv(model.encoder(frames[None]).permute(0, 2, 1, 3, 4))
    assert torch.equal(codes, model.quantize(hidden.permute(0, 2, 1, 3, 4))[0])
    assert torch.equal(adapted.encode_video(frames[: step + 1])[0], codes[0])
    assert len(adapted.encode_video(frames[: step + 1])) == 2
    assert adapted.decode_video(codes).shape == frames.shape
    with pytest.raises(ValueError, match="takes single images"):
        adapt(make("janus")).encode_video(frames)
