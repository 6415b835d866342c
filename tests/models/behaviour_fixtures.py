"""What a checkpoint does, asked in this process and in others."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]

# What a checkpoint does, as JSON; runs here and in the other processes.
BEHAVIOUR = """
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


def in_new_process(code: str, folder: Path, environment: dict[str, str]) -> dict:
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
