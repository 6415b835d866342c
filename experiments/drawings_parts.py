"""What the studies on drawings share: quantizer, codes, vocabulary and rows of ids, each by a command of being-vl."""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from being_vl.cli import run_command
from being_vl.codes.shards import CodeShards
from being_vl.files import new_file
from being_vl.studies.commands import Commands, make_part

# Options of `being-vl train` that all studies have.
TRAINING: dict[str, Any] = {
    "packing": "shared_image", "save_strategy": "no", "use_cpu": True,
    "dataloader_pin_memory": False, "disable_tqdm": True, "report_to": "none",
}  # fmt: skip


def fit_quantizer(images: Path, target: Path, codes: int = 512, seed: int = 0) -> None:
    """Patches of 4×4 pixels by k-means; `train-vq --kind patch` has 256 at this size."""
    from being_vl import BeingVLPatchVQConfig
    from being_vl.data.quantizing import FolderSource
    from being_vl.quantizers.quantizer import default_image_processor
    from being_vl.training.vq.data import SourceImages
    from being_vl.training.vq.presets import fit_patch_vq

    config = BeingVLPatchVQConfig(num_embeddings=codes, patch_size=4, resolution=64)
    processor = default_image_processor(config)
    seen = SourceImages(FolderSource(images, shard_size=1), processor)
    fit_patch_vq(config, seen, seed=seed).save_pretrained(target)
    processor.save_pretrained(target)


def make_base(texts: Sequence[str], target: Path, seed: int) -> None:
    """A Llama of 3 layers and 128 dimensions, not trained, with a tokenizer of the texts."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from being_vl.studies.quickstart.text_model import train_text_tokenizer

    tokenizer = train_text_tokenizer(texts)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=384, num_hidden_layers=3,
        num_attention_heads=4, initializer_range=0.05, max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)


def own_words(base: Path) -> dict[str, Any]:
    """Options of `being-vl init` for a base of `make_base`."""
    return {
        "image-init": "normal",
        "image-init-std": 0.05,
        "chat-template": base / "chat_template.jinja",
    }


def spread(values: list[float], digits: int = 3) -> str:
    """Mean ± standard deviation; the value alone where there is one."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


class Parts:
    """The parts of a study, made where they are missing.

    Args:
        drawings: folder that `python -m being_vl.studies.drawings` made.
        work: folder of everything that the study makes; a quantizer in its `vq` is used as it is.
    """

    def __init__(self, drawings: Path, work: Path):
        self.drawings, self.work = drawings, work
        self.command = Commands(run_command, lambda line: print(f"$ {line}", flush=True))
        self.vq = make_part(work / "vq", lambda target: fit_quantizer(drawings / "train", target))
        self.codebook_size = json.loads((self.vq / "config.json").read_text())["num_embeddings"]
        self.codes = {}
        for split in ("train", "test"):
            self.codes[split] = work / f"codes-{split}"
            self.command(
                "encode", **{
                    "images": drawings / split, "quantizer": self.vq, "output": self.codes[split],
                    "device": "cpu", "batch-size": 100, "workers": 0,
                }, unless=self.codes[split] / "manifest.json",
            )  # fmt: skip

    def bpe(self, merges: int, only_rows: bool = False) -> Path:
        """A vocabulary of the training drawings' codes; `only_rows`: of their rows, so that merges join left and right alone."""
        folder, codes = self.work / f"bpe-{merges}", self.codes["train"]
        if only_rows:
            folder, codes = folder.with_name(f"{folder.name}-rows"), self.work / "rows.npy"
            if not codes.exists():
                rows = np.concatenate(list(CodeShards(self.codes["train"])))[:, None]
                with new_file(codes) as path, path.open("wb") as file:
                    np.save(file, rows)
        self.command(
            "train-bpe", **{
                "codes": codes, "codebook-size": self.codebook_size, "num-merges": merges, "output": folder, "num-threads": 1,
            }, unless=folder / "image_bpe.json",
        )  # fmt: skip
        return folder

    def rows(self, checkpoint: Path, name: str, split: str, data: Path | None = None) -> Path:
        """Ids of the questions of a split, or of another file about its drawings."""
        folder = self.work / f"{name}-{split}"
        data = data or self.drawings / split / "questions.json"
        self.command(
            "tokenize", checkpoint=checkpoint, data=data, codes=self.codes[split], output=folder,
            workers=0, unless=folder / "tokenize.yaml",
        )  # fmt: skip
        return folder

    @contextmanager
    def started(
        self, base: Path, bpe: Path, seed: int, **options: Any
    ) -> Iterator[tuple[Path, Path]]:
        """A new checkpoint, and where it is trained to; both end with the block, what a stopped run left at once."""
        begin, end = self.work / "start", self.work / "trained"
        for folder in (begin, end):
            shutil.rmtree(folder, ignore_errors=True)
        self.command(
            "init", **{
                "base": base, "quantizer": self.vq, "bpe": bpe, "output": begin, "seed": seed, **options,
            },
        )  # fmt: skip
        yield begin, end
        for folder in (begin, end):
            shutil.rmtree(folder)

    def train(self, **options: Any) -> dict[str, Any]:
        """`being-vl train`; its metrics with `train_losses`, and `cpu_seconds` of all threads, loading included."""
        output = Path(options["output_dir"])
        started = time.process_time()
        self.command("train", **TRAINING | options)
        seconds = round(time.process_time() - started, 1)
        metrics = json.loads((output / "metrics.json").read_text())
        log = json.loads((output / "trainer_state.json").read_text())["log_history"]
        losses = [entry["loss"] for entry in log if "loss" in entry]
        return {**metrics, "train_losses": losses, "cpu_seconds": seconds}
