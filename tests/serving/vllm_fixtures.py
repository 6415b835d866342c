"""Chats with images, in transformers' words and in OpenAI's, and what `generate` answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from server_fixtures import data_url, picture

MODES = ("text", "image", "interleaved")
NEW_TOKENS = {"text": 24, "image": 18, "interleaved": 40}
GRID = (4, 4)
_WORDS = ["What", " is", " in", " the", " picture", " red", " square", " above", " blue", " circle"]


class Chat:
    """A turn of a user with no to three images, of several sizes, in its text."""

    def __init__(self, number: int, mode: str):
        rng = np.random.default_rng(number)
        self.mode = mode
        self.images, self.parts, self.openai = [], [], []
        for index in range(int(rng.integers(0, 4))):
            if rng.random() < 0.7:
                self._say("".join(rng.choice(_WORDS, 3)))
            image = picture(100 * number + index)
            self.images.append(image)
            self.parts.append({"type": "image"})
            self.openai.append({"type": "image_url", "image_url": {"url": data_url(image)}})
        self._say("".join(rng.choice(_WORDS, 4)))

    def _say(self, text: str) -> None:
        for parts in (self.parts, self.openai):
            parts.append({"type": "text", "text": text})

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [{"role": "user", "content": self.openai}]

    def sampling(self, eoi_token_id: int) -> dict[str, Any]:
        """vLLM's parameters."""
        options = {"max_tokens": NEW_TOKENS[self.mode], "ignore_eos": True}
        if self.mode != "text":
            size = list(GRID)
            options["extra_args"] = {"generation_mode": self.mode, "image_grid_size": size}
        if self.mode == "image":
            options["stop_token_ids"] = [eoi_token_id]
        return options

    def expected(self, model: Any, processor: Any) -> tuple[list[int], list[int]]:
        """The prompt, and the ids that `generate` gives."""
        messages = [{"role": "user", "content": self.parts}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(
            text=text, images=self.images or None, add_special_tokens=False, return_tensors="pt"
        )
        options: dict[str, Any] = {}
        if self.mode != "text":
            options = {"generation_mode": self.mode, "image_grid_size": GRID}
        if self.mode != "image":
            options["max_new_tokens"] = NEW_TOKENS[self.mode]
        with torch.no_grad():
            ids = model.generate(**inputs, do_sample=False, **options)[0].tolist()
        length = inputs["input_ids"].shape[1]
        return ids[:length], ids[length:]


def run(jobs: list[dict[str, Any]], folder: Path) -> list[list[list[dict[str, list[int]]]]]:
    """Each job's answers, each time it was asked."""
    worker, answers = Path(__file__).with_name("vllm_worker.py"), folder / "answers.json"
    done = subprocess.run(
        [sys.executable, str(worker), str(answers)],
        input=json.dumps(jobs), text=True, capture_output=True, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return json.loads(answers.read_text())


@contextmanager
def server(folder: Path, port: int, log: Path) -> Iterator[str]:
    """What `vllm serve` runs; the URL of its API once it answers."""
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder),
        "--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        watchdog = threading.Timer(1200, process.kill)
        watchdog.start()
        try:
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, log.read_text()[-6000:]
                time.sleep(1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            watchdog.cancel()
            process.terminate()
            process.wait(60)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
