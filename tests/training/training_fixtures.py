"""Tiny checkpoints and tokenized rows for the tests of training."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import torch.multiprocessing as mp
from checkpoint_fixtures import random_grids, tiny_checkpoint
from transformers import TrainerCallback

from being_vl.data.identity import processor_identity
from being_vl.data.tokenized import COUNTS, FEATURES, claim, finish, shard_bytes, shard_path
from being_vl.files import write_atomic
from being_vl.hub.checkpoint import save_checkpoint
from being_vl.training.arguments import (
    BeingVLTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def be_rank(rank: int, processes: int, port: int) -> None:
    """Set the variables by which torchrun tells a process who it is."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def run_ranks(run: Callable[..., Any], *args: Any, processes: int = 2) -> None:
    """Call `run(rank, *args)` in processes that find each other as those of torchrun do.

    They come from a server, not from this process: where there is a GPU, autograd has started threads here, which a
    fork does not survive.
    """
    mp.get_context("forkserver").set_forkserver_preload([run.__module__])
    given = (run, processes, free_port(), *args)
    mp.start_processes(_run_rank, args=given, nprocs=processes, start_method="forkserver")


def _run_rank(rank: int, run: Callable[..., Any], processes: int, port: int, *args: Any) -> None:
    be_rank(rank, processes, port)
    torch.set_num_threads(1)
    run(rank, *args)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class StopAt(TrainerCallback):
    """Ends a training after a step as if it were killed."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


QUESTIONS = ("What is it?", "Is it red?", "Which shape is above the other one?")
ANSWERS = ("a red square", "yes", "the small blue circle")


def checkpoint_folder(folder: Path, *, tied: bool = False):
    """A saved tiny checkpoint; its model and processor are returned."""
    model, processor = tiny_checkpoint("smollm", tied=tied)
    save_checkpoint(model, processor, folder)
    return model, processor


def conversations(processor, *, images: int = 6, questions: int = 3, seed: int = 0) -> list[dict]:
    """Tokenized samples: `questions` about each of `images` images, and one without an image."""
    rng = np.random.default_rng(seed)
    rows = []
    for number, grid in enumerate(random_grids(images, seed=seed, smooth=True)):
        for turn in range(questions):
            rows.append(_sample(processor, grid, f"{number}-{turn}", rng))
    rows.append(_sample(processor, None, "text", rng))
    return rows


def _sample(processor, grid, name: str, rng) -> dict:
    content = [] if grid is None else [{"type": "image"}]
    text = str(rng.choice(QUESTIONS)) + " " + "x" * int(rng.integers(0, 6))
    messages = [
        {"role": "user", "content": [*content, {"type": "text", "text": text}]},
        {"role": "assistant", "content": [{"type": "text", "text": str(rng.choice(ANSWERS))}]},
    ]
    codes = {} if grid is None else {"image_codes": [grid]}
    encoded = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs=codes,
    )
    ids, masks = encoded["input_ids"][0], encoded["assistant_masks"][0]
    return {
        "id": name,
        "source": "fixture",
        "image_ids": [] if grid is None else [name.split("-")[0]],
        "video_ids": [],
        "input_ids": [int(i) for i in ids],
        "assistant_masks": [int(i) for i in masks],
        "length": len(ids),
    }


def tokenized(processor, **options) -> datasets.Dataset:
    """`conversations` in the types that `being-vl tokenize` writes."""
    return datasets.Dataset.from_list(conversations(processor, **options), features=FEATURES)


def tokenized_folder(folder: Path, data: datasets.Dataset, processor, *, shards: int = 1) -> None:
    """`data` as a folder of `being-vl tokenize`."""
    parts = processor_identity(processor)
    claim(folder, {"parts": parts})
    for number in range(shards):
        rows = data.shard(shards, number)[:]
        columns = {name: rows[name] for name in FEATURES}
        for name in ("input_ids", "assistant_masks"):
            columns[name] = [np.array(values) for values in columns[name]]
        report = {**dict.fromkeys(COUNTS, 0), "samples": len(columns["id"]), "skipped": []}
        write_atomic(shard_path(folder, number, shards), shard_bytes(columns, report))
    finish(folder, shards, {"parts": parts})


SMALL_RUN = {
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "dataloader_pin_memory": False,
}


def arguments(checkpoint: Path, output: Path, *, model=(), data=(), stage=(), **training):
    """The four dataclasses of a run of a few steps on the CPU."""
    training = {
        **SMALL_RUN,
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        **training,
    }
    return (
        ModelArguments(checkpoint=str(checkpoint), **dict(model)),
        DataArguments(data="given", **dict(data)),
        StageArguments(**dict(stage)),
        BeingVLTrainingArguments(output_dir=str(output), **training),
    )


def rows_of(samples: list[dict]) -> datasets.Dataset:
    """Samples `{"id", "input_ids", "spoken"}` in the types of `being-vl tokenize`; the last `spoken` ids are
    the assistant's."""
    rows = [
        {
            "id": sample["id"],
            "source": "fixture",
            "image_ids": [],
            "video_ids": [],
            "input_ids": [int(i) for i in sample["input_ids"]],
            "assistant_masks": [
                int(i >= len(sample["input_ids"]) - sample["spoken"])
                for i in range(len(sample["input_ids"]))
            ],
            "length": len(sample["input_ids"]),
        }
        for sample in samples
    ]
    return datasets.Dataset.from_list(rows, features=FEATURES)
