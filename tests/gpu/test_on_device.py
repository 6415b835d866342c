"""What must hold on a GPU as it does on a CPU.

`pytest -m gpu tests/gpu` on a machine with one; BEING_VL_GPU_TESTS_ON=cpu rehearses the same lines on a CPU.
"""

import importlib.util
import os

import numpy as np
import pytest
import torch
from model_fixtures import BOI, EOI, LAYOUT, TEXT_SIZE, being_vl_model, generated_grids, random_ids

from being_vl import BeingVLPatchVQConfig, BeingVLPatchVQModel, BeingVLVQConfig, BeingVLVQModel
from being_vl.quantizers.quantizing import encode_by_size
from being_vl.training.collators import (
    FlatCollator,
    PaddingCollator,
    SharedImageCollator,
    flex_block_mask,
)
from being_vl.training.packing import pack_samples, pack_shared_image
from being_vl.training.stages import prepare_stage

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("BEING_VL_GPU_TESTS_ON", "cuda")
PAD = TEXT_SIZE + 3


@pytest.fixture(autouse=True)
def _seeded():
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device; BEING_VL_GPU_TESTS_ON=cpu rehearses on a CPU")
    torch.manual_seed(0)
    torch.compiler.reset()


def small_vq() -> BeingVLVQModel:
    sizes = {"base_channels": 32, "num_embeddings": 64, "embed_dim": 32, "latent_channels": 32}
    return BeingVLVQModel(BeingVLVQConfig(resolution=64, **sizes)).eval()


@torch.inference_mode()
def test_codes_are_those_of_a_cpu():
    """Without TF32 convolutions, which change codes, up to ties in rounding."""
    vq, pixels = small_vq(), torch.rand(8, 3, 64, 64) * 2 - 1
    on_cpu = vq.encode(pixels)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        on_device = vq.to(DEVICE).encode(pixels.to(DEVICE)).cpu()
    assert on_device.dtype == torch.long
    assert (on_device == on_cpu).float().mean() > 0.98


@torch.inference_mode()
def test_patch_codes_are_those_of_a_cpu():
    vq = BeingVLPatchVQModel(BeingVLPatchVQConfig(num_embeddings=32, patch_size=4, resolution=32))
    pixels = torch.rand(50, 3, 32, 32) * 2 - 1
    vq.fit(pixels, seed=0)
    on_cpu = vq.encode(pixels)
    assert (vq.to(DEVICE).encode(pixels.to(DEVICE)).cpu() == on_cpu).float().mean() > 0.999


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@torch.inference_mode()
def test_distances_stay_in_float32_under_autocast(dtype):
    """The convolutions run in less; the nearest code of what they give is exact."""
    vq = small_vq().to(DEVICE)
    pixels = torch.rand(4, 3, 64, 64, device=DEVICE) * 2 - 1
    latents = torch.randn(4, 32, 4, 4, device=DEVICE)
    with torch.autocast(DEVICE, dtype=dtype):
        codes, half = vq.encode(pixels), vq.quantize(latents)
    assert codes.shape == (4, 4, 4)
    assert codes.min() >= 0
    assert torch.equal(half, vq.quantize(latents))


@pytest.mark.parametrize("stage", ["pretrain", "selective"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("tied", [False, True])
def test_frozen_rows_stay_bit_for_bit(stage, autocast, tied):
    """Six steps of fused AdamW with weight decay on the rows that may move."""
    model = being_vl_model(tied=tied).to(DEVICE).train()
    prepare_stage(model, stage)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    decayed = [p for n, p in model.named_parameters() if p.requires_grad]
    frozen = {id(p) for n, p in model.named_parameters() if n in model.frozen_row_parameter_names}
    groups = [
        {"params": [p for p in decayed if id(p) not in frozen], "weight_decay": 0.1},
        {"params": [p for p in decayed if id(p) in frozen], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-2, fused=True)
    for step in range(6):
        ids = random_ids(4, 24, seed=step).to(DEVICE)
        with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rows = model.get_input_embeddings().weight
    name = "model.embed_tokens.weight"
    assert torch.equal(rows[:TEXT_SIZE], before[name][:TEXT_SIZE])
    moved = (rows[LAYOUT.first_code_id :] != before[name][LAYOUT.first_code_id :]).any(dim=1)
    assert moved.float().mean() > 0.9
    head = model.get_output_embeddings().weight
    if not tied:
        assert torch.equal(head[:TEXT_SIZE], before["lm_head.weight"][:TEXT_SIZE])


def some_samples(seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    samples = []
    for length in (9, 17, 30, 5):
        ids = rng.integers(5, TEXT_SIZE, length)
        samples.append({"input_ids": ids, "labels": np.where(np.arange(length) < 2, -100, ids)})
    return samples


def label_losses(model, batch: dict) -> torch.Tensor:
    """Loss of each label, sorted by nothing: the order of the batch."""
    batch = {k: v.to(DEVICE) if hasattr(v, "to") else v for k, v in batch.items()}
    labels = torch.nn.functional.pad(batch.pop("labels")[:, 1:], (0, 1), value=-100)
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits.float()
    keep = labels != -100
    return torch.nn.functional.cross_entropy(logits[keep], labels[keep], reduction="none")


def test_packed_samples_have_the_losses_of_separate_rows():
    model, samples = being_vl_model().to(DEVICE), some_samples()
    separate = torch.cat([label_losses(model, PaddingCollator(PAD)([s])) for s in samples])
    packed = label_losses(model, PaddingCollator(PAD)([pack_samples(samples)]))
    torch.testing.assert_close(packed, separate, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is None, reason="needs flash_attn")
def test_flash_attention_keeps_packed_samples_apart():
    model = being_vl_model(dtype=torch.bfloat16).to(DEVICE)
    samples = some_samples()
    separate = torch.cat([label_losses(model, PaddingCollator(PAD)([s])) for s in samples])
    model.set_attn_implementation("flash_attention_2")
    packed = label_losses(model, FlatCollator()([pack_samples(samples)]))
    torch.testing.assert_close(packed, separate, atol=0.05, rtol=0.05)


@pytest.mark.skipif(DEVICE == "cpu", reason="compiles C++ for a minute on a CPU")
def test_flex_attention_gives_the_losses_of_sdpa():
    model = being_vl_model(head_dim=16).to(DEVICE)  # the least that the kernels take
    image = [1, BOI, *range(LAYOUT.first_code_id, LAYOUT.first_code_id + 8), EOI]
    turns = [(s["input_ids"].tolist(), s["labels"].tolist()) for s in some_samples()]
    rows = [pack_shared_image(image, turns), pack_shared_image(image, turns[:2])]
    expected = label_losses(model, SharedImageCollator(PAD)(rows))
    flex = SharedImageCollator(PAD, "flex")(rows)
    flex["attention_mask"] = flex_block_mask(flex.pop("segment_ids").to(DEVICE))
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(label_losses(model, flex), expected, atol=1e-3, rtol=1e-3)


def test_shared_images_have_the_losses_of_separate_rows():
    model = being_vl_model().to(DEVICE)
    image = [1, BOI, *range(LAYOUT.first_code_id, LAYOUT.first_code_id + 8), EOI]
    turns = [(s["input_ids"].tolist(), s["labels"].tolist()) for s in some_samples()]
    shared = label_losses(model, SharedImageCollator(PAD)([pack_shared_image(image, turns)]))
    alone = [
        {"input_ids": [*image, *ids], "labels": [-100] * len(image) + labels}
        for ids, labels in turns
    ]
    separate = torch.cat([label_losses(model, PaddingCollator(PAD)([row])) for row in alone])
    torch.testing.assert_close(shared, separate, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 3}], ids=str)
def test_generated_images_decode(dtype, settings):
    model = being_vl_model(dtype=dtype).to(DEVICE)
    out = model.generate(
        random_ids(8, 5, high=TEXT_SIZE).to(DEVICE), generation_mode="image", **settings
    )
    assert len(generated_grids(out.cpu())) == 8


def test_interleaved_images_decode():
    model = being_vl_model().to(DEVICE)
    prompt = random_ids(8, 5, high=TEXT_SIZE).to(DEVICE)
    prompt[:, -1] = BOI
    out = model.generate(prompt, generation_mode="interleaved", max_new_tokens=60, do_sample=True)
    assert len(generated_grids(out.cpu())) == 8


@pytest.mark.parametrize("mode", ["text", "image"])
def test_static_cache_generates_the_same(mode):
    model = being_vl_model().to(DEVICE)
    prompt = random_ids(3, 7, high=TEXT_SIZE).to(DEVICE)
    options = {"generation_mode": mode, "max_new_tokens": 20, "do_sample": False}
    expected = model.generate(prompt, **options)
    static = model.generate(prompt, cache_implementation="static", **options)
    assert torch.equal(static, expected)


@pytest.mark.skipif(DEVICE == "cpu", reason="compiles C++ for minutes on a CPU")
def test_compiled_forward_is_close():
    model = being_vl_model().to(DEVICE)
    ids = random_ids(2, 32).to(DEVICE)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = torch.compile(model)(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_encode_s_trip_gives_the_codes_of_the_model():
    """Batches gathered by size, from pinned memory on a GPU."""
    vq = small_vq().to(DEVICE)
    pictures = [torch.rand(3, 64, 64 if i % 3 else 32) * 2 - 1 for i in range(11)]
    found = {}
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for keys, _, codes in encode_by_size(enumerate(pictures), vq, batch_size=4):
            found.update(zip(keys, codes.cpu(), strict=True))
        expected = [vq.encode(picture[None].to(DEVICE))[0].cpu() for picture in pictures]
    assert [found[i].shape for i in range(11)] == [codes.shape for codes in expected]
    same = [(found[i] == codes).float().mean() for i, codes in enumerate(expected)]
    assert min(same) > 0.98
