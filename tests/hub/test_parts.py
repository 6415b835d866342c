"""The tables of families and quantizers in docs/: what they say is what tests show, and each pair works together."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import smollm_tokenizer
from family_fixtures import NAMES, base_config, family_named
from PIL import Image
from quantizer_fixtures import make
from transformers import AutoModelForImageTextToText, AutoProcessor

import being_vl
from being_vl import BeingVLPatchVQConfig, BeingVLPatchVQModel, BeingVLVQConfig, BeingVLVQModel
from being_vl.bpe.image_bpe import ImageBPE
from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint
from being_vl.models.families import FAMILIES
from being_vl.quantizers.modeling_being_vl_adapted_vq import adapt
from being_vl.quantizers.quantizer import OwnQuantizer

ROOT = Path(__file__).parents[2]
SIDE = 16  # pixels of the pictures


def table(page: str, heading: str) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of a page of docs/ whose first cell is `heading`."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows[0], rows[2:]


# ---------------------------------------------------------------- families


def parameters_of(file: str) -> dict[str, str]:
    """What the tests of a file below tests/ run over: name, or line of a loop that makes classes → expression."""
    found = {}
    for node in ast.parse((ROOT / "tests" / file).read_text()).body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = " ".join(map(ast.unparse, node.decorator_list))
        elif isinstance(node, ast.For):
            found[f"line {node.lineno}"] = ast.unparse(node.iter)
    return found


@pytest.mark.parametrize("row", table("families.md", "ability")[1], ids=lambda row: row[0])
def test_each_ability_is_shown_by_tests_over_all_families(row):
    *_, tests = row
    if tests == "the same":
        return
    of_all = re.compile(r"\b(EACH|NAMES|FAMILIES|LLAMA_CPP_FAMILIES)\b")
    file = "hub/test_family_checkpoints.py" if tests.startswith("†") else "models/test_families.py"
    for name in re.findall(r"`(test_\w+)`", tests):
        assert of_all.search(parameters_of(file)[name]), name
    for other in re.findall(r"`tests/([\w/]+\.py)`", tests):
        assert any(map(of_all.search, parameters_of(other).values())), other


def test_the_rows_of_families_are_those_that_can_be_extended():
    _, rows = table("families.md", "family")
    expected = [
        [f.title, *(f"`{name}`" for name in (f.base_type, f.language_model_class, f.model_type))]
        for f in FAMILIES
    ]
    assert rows == expected


# ---------------------------------------------------------------- quantizers


class Shades:
    num_embeddings, downsampling, resolution, identity = 64, 4, SIDE, "shades, version 1"

    def encode(self, pixel_values):
        means = torch.nn.functional.avg_pool2d(pixel_values.mean(1, keepdim=True), 4)[:, 0]
        return ((means + 1) * 32).long().clamp(0, 63)


def ours(**fields):
    sizes = {
        "base_channels": 32,
        "channel_multiplier": [1, 2],
        "num_res_blocks": 1,
        "latent_channels": 16,
    }
    return BeingVLVQModel(BeingVLVQConfig(**sizes, resolution=SIDE, **fields)).eval()


def patches():
    return BeingVLPatchVQModel(
        BeingVLPatchVQConfig(num_embeddings=64, patch_size=4, resolution=SIDE)
    ).eval()


# First cell of a row of the table → what makes one.
QUANTIZERS = {
    "patches (k-means)": patches,
    "VQ-GAN": lambda: ours(num_embeddings=64, embed_dim=8),
    "finite scalars (FSQ)": lambda: ours(quantizer="fsq", levels=[4, 4, 4]),
    "lookup-free (LFQ)": lambda: ours(quantizer="lfq", embed_dim=6),
    "Chameleon": lambda: adapt(make("chameleon")),
    "Emu3": lambda: adapt(make("emu3")),
    "Janus": lambda: adapt(make("janus")),
    "GLM-Image": lambda: adapt(make("glm_image")),
    "diffusers' `VQModel`": lambda: adapt(make("diffusers")),
    "your own": lambda: OwnQuantizer(Shades(), "tests:Shades"),
    "none: arrays of codes": lambda: None,
}


def test_the_rows_of_quantizers_are_those_of_the_test_below():
    header, rows = table("quantizers.md", "quantizer")
    assert header == ["quantizer", "`--quantizer`", "codes → pixels", "saved with a checkpoint"]
    # `convert-vq` makes a VQ-GAN of others: tests/quantizers/test_vq_layouts.py
    others = [row[0] for row in rows if "convert-vq" not in row[1]]
    assert others == list(QUANTIZERS)


@pytest.fixture(scope="module")
def bases():
    tokenizer = smollm_tokenizer()
    made = {}
    for name in NAMES:
        torch.manual_seed(0)
        config = base_config(name, rows=len(tokenizer) + 3, bos_token_id=tokenizer.bos_token_id)
        import transformers

        made[name] = getattr(transformers, family_named(name).stock_class)(config).eval()
    return tokenizer, made


@pytest.fixture(scope="module", params=QUANTIZERS)
def quantizer(request):
    torch.manual_seed(0)
    return request.param, QUANTIZERS[request.param]()


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_each_family_with_each_quantizer(name, quantizer, bases, tmp_path):
    """A picture becomes ids and logits, and pixels where the page says so; what is saved does the same again."""
    (title, vq), (tokenizer, made) = quantizer, bases
    said = next(row for row in table("quantizers.md", "quantizer")[1] if row[0] == title)
    bpe = ImageBPE([[code, code, 0, 1] for code in range(8)], 64)
    model, processor = init_checkpoint(made[name], tokenizer, vq, bpe)
    assert type(model) is getattr(being_vl, family_named(name).language_model_class)
    picture = Image.new("RGB", (SIDE, SIDE), (200, 10, 30))
    grid = np.arange(16).reshape(4, 4) % 64
    given = {"image_codes": [grid]} if vq is None else {"images": picture}
    if vq is not None:
        processor.image_processor.crop_size = {"height": SIDE, "width": SIDE}
        processor.image_processor.size = {"shortest_edge": SIDE}
    batch = processor(text="<image> What?", return_tensors="pt", **given)
    logits = model.eval()(**batch).logits
    assert logits.isfinite().all()
    layout, ids = model.config.layout, batch["input_ids"]
    image_ids = ids[(ids >= layout.first_code_id) & (ids < layout.size)]
    assert len(image_ids)
    (codes,) = [grid] if vq is None else processor.quantize([picture])
    assert np.array_equal(bpe.decode(image_ids.numpy() - layout.first_code_id, *codes.shape), codes)
    if said[2] == "yes":
        pixels = processor.decode_image(image_ids, *codes.shape)
        assert pixels.size == (SIDE, SIDE)
    else:
        with pytest.raises(ValueError):
            processor.decode_image(image_ids, *codes.shape)
    if said[3].startswith("no"):
        with pytest.raises(ValueError, match="does not travel with a checkpoint"):
            save_checkpoint(model, processor, tmp_path / "out")
        return
    save_checkpoint(model, processor, tmp_path / "out")
    again = AutoProcessor.from_pretrained(tmp_path / "out")
    assert torch.equal(again(text="<image> What?", return_tensors="pt", **given)["input_ids"], ids)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out").eval()
    assert torch.equal(loaded(**batch).logits, logits)
