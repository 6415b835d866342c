"""Processes that train together: `python tests/training/sharded_worker.py OUTPUT CASE…`.

A case is STRATEGY-STAGE-PROCESSES, such as zero2-pretrain-2. It leaves checkpoints in OUTPUT/CASE, and
losses.json. Libraries are imported once; the processes are forks of this one, told of each other by the
variables that torchrun sets.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from model_fixtures import LAYOUT, being_vl_model
from resume_fixtures import make_rows, make_trainer
from training_fixtures import (
    StopAt,
    be_rank,
    checkpoint_folder,
    free_port,
    tokenized,
    tokenized_folder,
)

from being_vl import BeingVLForCausalLM
from being_vl.cli import main as being_vl_command

CONFIGS = Path(__file__).parents[2] / "hub_configs" / "deepspeed"
STAGES = {
    "pretrain": {"stage": "pretrain"},
    "sft": {"stage": "sft", "freeze": "image"},
    "tied": {"stage": "pretrain"},
    "bf16": {"stage": "pretrain", "bf16": True},
    "loaded": {"stage": "pretrain"},
    "refused": {"deepspeed": {"zero_optimization": {"stage": 3}, "train_batch_size": "auto"}},
    # 21 rows: the last batch of an epoch repeats one. An epoch has six steps, and the run ends with the second.
    "resume": {
        "stage": "sft", "rows": make_rows(21), "max_steps": 12, "save_steps": 7,
        "train_sampling_strategy": "group_by_length",
    },
}  # fmt: skip
STEPS = 9


def let_fsdp_run_on_cpus() -> None:
    """accelerate turns FSDP on for accelerators alone; what it then does works on CPUs."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState._prepare_backend = lambda *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    if not dist.is_initialized():
        dist.init_process_group("gloo")


def arguments_of(strategy: str) -> dict[str, Any]:
    if strategy in ("zero2", "zero3"):
        import deepspeed

        # Its own all-reduce for CPUs would be compiled for two minutes; without it, gloo's is used.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        return {"deepspeed": str(CONFIGS / f"{strategy}.json")}
    if strategy == "fsdp2":
        config = {
            "version": 2,
            "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"],
            "state_dict_type": "FULL_STATE_DICT",
        }
        return {
            "dataloader_pin_memory": False,
            "fsdp": True,
            "fsdp_config": config,
        }
    return {}


def load_and_resize(folder: Path) -> BeingVLForCausalLM:
    """A model without two of its merges, loaded in pieces if the trainer's arguments say so, and grown."""
    if int(os.environ["RANK"]) == 0:
        small = being_vl_model()
        small.resize_image_embeddings(LAYOUT.num_image_tokens - 2)
        small.save_pretrained(folder)
    dist.barrier()
    model = BeingVLForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    model.resize_image_embeddings(LAYOUT.num_image_tokens, generator=generator)
    return model


def run(folder: Path, case: str) -> None:
    strategy, stage, processes = case.split("-")
    options = {
        "dropout": 0.0, "optim": "adamw_torch", "max_steps": STEPS, "save_steps": STEPS,
        "per_device_train_batch_size": 2 // int(processes), "train_sampling_strategy": "random",
        "logging_steps": 1, "save_total_limit": None, **arguments_of(strategy), **STAGES[stage],
    }  # fmt: skip

    def trainer(name: str) -> Any:
        make_model = partial(being_vl_model, tied=stage == "tied")
        if stage == "loaded":
            make_model = partial(load_and_resize, folder / f"{case}-model")
        return make_trainer(folder / name, make_model=make_model, **options)

    if stage == "resume":
        stopped = trainer(f"{case}-stopped")
        stopped.add_callback(StopAt(STEPS - 1))
        try:
            stopped.train()
        except KeyboardInterrupt:
            pass
        resumed = trainer(f"{case}-stopped")
        resumed.train(resume_from_checkpoint=True)
    if stage == "refused":
        try:
            trainer(case)
        except ValueError as error:
            (folder / "refused.txt").write_text(str(error))
        return
    trained = trainer(case)
    trained.train()
    if trained.args.process_index == 0:
        losses = [log["loss"] for log in trained.state.log_history if "loss" in log]
        (folder / case / "losses.json").write_text(json.dumps(losses))


def run_command(folder: Path, strategy: str) -> None:
    """`being-vl train`, which also saves the processor and its quantizer."""
    flags = {
        "checkpoint": folder / "start", "data": folder / "data", "stage": "pretrain",
        "output_dir": folder / f"{strategy}-command-2", "max_steps": 4,
        "save_steps": 2, "learning_rate": 0.01, "optim": "adamw_torch",
        "use_cpu": "true", "report_to": "none", "disable_tqdm": "true", **arguments_of(strategy),
    }  # fmt: skip
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert being_vl_command(["train", *words]) == 0


def run_rank(rank: int, processes: int, port: int, folder: Path, cases: list[str]) -> None:
    be_rank(rank, processes, port)
    for case in sorted(cases, key=lambda case: case.startswith("fsdp2")):
        if case.startswith("fsdp2"):
            let_fsdp_run_on_cpus()
        if "-command-" in case:
            run_command(folder, case.split("-")[0])
        else:
            run(folder, case)
    dist.destroy_process_group()


def main() -> None:
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    _, processor = checkpoint_folder(folder / "start")
    tokenized_folder(folder / "data", tokenized(processor), processor)
    for processes in (1, 2):
        cases = [case for case in sys.argv[2:] if case.endswith(f"-{processes}")]
        if not cases:
            continue
        port = free_port()
        context = multiprocessing.get_context("fork")
        ranks = [
            context.Process(target=run_rank, args=(rank, processes, port, folder, cases))
            for rank in range(processes)
        ]
        for rank in ranks:
            rank.start()
        while any(rank.is_alive() for rank in ranks):
            for rank in ranks:
                rank.join(0.1)
            if any(rank.exitcode for rank in ranks):  # the others would wait for it
                for rank in ranks:
                    rank.kill()
        if any(rank.exitcode for rank in ranks):
            sys.exit(1)


if __name__ == "__main__":
    main()
