"""pipeline("image-text-to-text") and pipeline("any-to-any") on a saved checkpoint."""

import numpy as np
import pytest
import torch
from checkpoint_fixtures import GRID, tiny_checkpoint
from PIL import Image
from transformers import pipeline

from being_vl.hub.checkpoint import save_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "checkpoint"
    save_checkpoint(*tiny_checkpoint(), folder)
    return folder


@pytest.fixture(scope="module")
def image():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def _chat(image):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize("task", ["image-text-to-text", "any-to-any"])
def test_answers(checkpoint, image, task):
    pipe = pipeline(task, model=str(checkpoint))
    answer = pipe(text=_chat(image), max_new_tokens=6, return_full_text=False)[0]
    inputs = pipe.processor.apply_chat_template(
        _chat(image),
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = pipe.model.generate(**inputs, max_new_tokens=6)
    new = out[0, inputs["input_ids"].shape[1] :]
    assert answer["generated_text"] == pipe.processor.decode(new, skip_special_tokens=True)

    plain = pipe(images=image, text="<image> What?", max_new_tokens=4)[0]["generated_text"]
    assert plain.startswith("<image> What?")
    batch = pipe(text=[_chat(image), _chat(image)], max_new_tokens=6, return_full_text=False)
    flat = [entry[0] if isinstance(entry, list) else entry for entry in batch]
    assert [entry["generated_text"] for entry in flat] == [answer["generated_text"]] * 2


def test_draws(checkpoint, image):
    pipe = pipeline("any-to-any", model=str(checkpoint))
    torch.manual_seed(0)
    drawn = pipe(text="A red square", generation_mode="image", generate_kwargs={"do_sample": True})
    side = GRID * pipe.processor.vq_model.config.downsampling
    assert drawn[0]["generated_image"].size == (side, side)
    seen = pipe(text=_chat(image), generation_mode="image")
    assert seen[0]["generated_image"].size == (side, side)
