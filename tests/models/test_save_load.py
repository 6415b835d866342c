"""What is saved loads in another process and does the same: every Auto class, from a folder and from a
repository, with this package and without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoint_fixtures import tiny_checkpoint
from hub_server import HubServer

from being_vl.hub.checkpoint import save_checkpoint

_ROOT = Path(__file__).parents[2]

# What a checkpoint does, as JSON; runs here and in the other processes.
_BEHAVIOUR = """
import hashlib, json, sys
import numpy as np, torch
from PIL import Image

def behaviour(source, trust):
    from transformers import (AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM,
                              AutoModelForImageTextToText, AutoModelForMultimodalLM, AutoProcessor, AutoTokenizer)
    options = {"trust_remote_code": True} if trust else {}
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    messages = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    seen = {}
    processor = AutoProcessor.from_pretrained(source, **options)
    tokenizer = AutoTokenizer.from_pretrained(source, **options)
    image_processor = AutoImageProcessor.from_pretrained(source, **options)
    config = AutoConfig.from_pretrained(source, **options)
    vq = AutoModel.from_pretrained(source, subfolder="vq_model", **options)
    seen["classes"] = [type(part).__name__ for part in (processor, tokenizer, image_processor, config, vq)]
    seen["modules"] = sorted({type(part).__module__.split(".")[0]
                              for part in (processor, tokenizer, image_processor, config, vq)})
    seen["text_ids"] = tokenizer("A red square?").input_ids
    seen["layout"] = [tokenizer.layout.text_size, tokenizer.layout.size, len(tokenizer), config.layout.size]
    values = image_processor(image, return_tensors="pt")["pixel_values"]
    seen["pixels"] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    seen["codes"] = vq.encode(values).tolist()
    batch = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt",
                                          add_generation_prompt=True)
    seen["ids"] = batch["input_ids"].tolist()
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        model = auto.from_pretrained(source, **options).eval()
        with torch.no_grad():
            logits = model(**batch).logits
        seen[auto.__name__] = [type(model).__name__, hashlib.sha256(logits.numpy().tobytes()).hexdigest()]
    out = model.generate(**batch, max_new_tokens=6, do_sample=False)
    seen["text"] = processor.post_process_multimodal_output(out, skip_special_tokens=False)
    out = model.generate(**batch, generation_mode="image", do_sample=False)
    generated = processor.post_process_multimodal_output(out, generation_mode="image")[0]
    seen["image"] = [list(generated.size), hashlib.sha256(generated.tobytes()).hexdigest()]
    return seen
"""


def _in_new_process(code: str, folder: Path, environment: dict[str, str]) -> dict:
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(_ROOT), **environment}
    env.pop("HF_HUB_OFFLINE", None)
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict[str, dict]:
    """What a checkpoint does here, and in two other processes: with this package and without it.

    The first pushes it to the Hub, by `push_to_hub` of model and processor and as a whole folder.
    """
    folder = tmp_path_factory.mktemp("saved")
    source = str(folder / "checkpoint")
    model, processor = tiny_checkpoint("llama-3")
    save_checkpoint(model, processor, source, remote_code=True)
    scope: dict = {}
    exec(_BEHAVIOUR, scope)
    seen = {"here": scope["behaviour"](source, False)}
    with HubServer() as hub:
        code = f"""
import being_vl
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, AutoProcessor
AutoModelForCausalLM.from_pretrained({source!r}).push_to_hub("tester/pushed")
AutoProcessor.from_pretrained({source!r}).save_pretrained("again", push_to_hub=True, repo_id="tester/pushed")
HfApi().create_repo("tester/whole")
HfApi().upload_folder(repo_id="tester/whole", folder_path={source!r})
{_BEHAVIOUR}
print(json.dumps({{"folder": behaviour({source!r}, False), "hub": behaviour("tester/pushed", False)}}))
"""
        run = _in_new_process(code, folder / "with", hub.environment(folder / "with_home"))
        seen |= {f"{name}, with the package": value for name, value in run.items()}
        assert "vq_model/model.safetensors" in hub.files("tester/pushed")
        code = f"""
import sys; sys.modules["being_vl"] = None  # as where it is not installed
{_BEHAVIOUR}
print(json.dumps({{"folder": behaviour({source!r}, True), "hub": behaviour("tester/whole", True)}}))
"""
        run = _in_new_process(code, folder / "without", hub.environment(folder / "without_home"))
        seen |= {f"{name}, without the package": value for name, value in run.items()}
    return seen


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_new_process_with_the_package_does_the_same(seen: dict[str, dict], source: str) -> None:
    assert seen["here"]["modules"] == ["being_vl"]
    assert seen[f"{source}, with the package"] == seen["here"]


@pytest.mark.parametrize("source", ["folder", "hub"])
def test_a_new_process_without_the_package_does_the_same(
    seen: dict[str, dict], source: str
) -> None:
    got = dict(seen[f"{source}, without the package"])
    assert got.pop("modules") == ["transformers_modules"]
    assert got == {name: value for name, value in seen["here"].items() if name != "modules"}
