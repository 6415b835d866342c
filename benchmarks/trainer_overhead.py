"""What `Trainer` costs beside the bare loop: the quickstart's model, rows and optimizer, step for step.

    python benchmarks/trainer_overhead.py [--steps 300] [--repeats 5] [--plain]

Both loops train the same model on the same batches in the same order. Blocks of steps alternate, so that
other load on the machine falls on both; medians of the blocks' seconds a step are compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import being_vl  # noqa: F401
from being_vl import BeingVLForCausalLM, VocabularyLayout
from being_vl.training.collators import SharedImageCollator
from being_vl.training.packing import IGNORE_INDEX, pack_shared_image
from being_vl.training.trainer import BeingVLTrainer

TEXT, SPECIAL, CODES, MERGES = 400, 4, 128, 512


def make_rows(count: int, tokens: int, seed: int = 0) -> list[dict]:
    """Rows like the quickstart's: an image of about `tokens` tokens and about ten questions."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        size = int(rng.integers(tokens * 3 // 4, tokens * 5 // 4))
        image = rng.integers(TEXT + SPECIAL, TEXT + SPECIAL + CODES + MERGES, size)
        turns = []
        for _ in range(int(rng.integers(7, 13))):
            ids = rng.integers(4, TEXT, int(rng.integers(7, 12)))
            labels = np.where(np.arange(len(ids)) < len(ids) - 2, IGNORE_INDEX, ids)
            turns.append((ids, labels))
        rows.append(pack_shared_image([1, *image.tolist()], turns))
    return rows


def make_model() -> BeingVLForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TEXT,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.1,
        tie_word_embeddings=False,
    )
    return BeingVLForCausalLM.from_text_model(
        LlamaForCausalLM(config),
        VocabularyLayout(TEXT, SPECIAL, CODES, MERGES),
        boi_token_id=TEXT,
        eoi_token_id=TEXT + 1,
        image_token_id=TEXT + 2,
    )


class BlockTimer(TrainerCallback):
    """Seconds between marks `block` steps apart."""

    def __init__(self, block: int):
        self.block, self.seconds, self.cpu = block, [], []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.block == 0:
            now, cpu = time.perf_counter(), time.process_time()
            if state.global_step > self.block:  # the first block warms up
                self.seconds.append((now - self.start) / self.block)
                self.cpu.append((cpu - self.start_cpu) / self.block)
            self.start, self.start_cpu = now, cpu


def bare_loop(rows: list[dict], batches: list[list[int]], block: int) -> BlockTimer:
    """Forward, backward, clip, step: what any training must do."""
    model, collate = make_model().train(), SharedImageCollator(0)
    decay = [
        p
        for n, p in model.named_parameters()
        if p.dim() > 1 and "embed" not in n and "head" not in n
    ]
    rest = [p for p in model.parameters() if all(p is not d for d in decay)]
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), fused=True)
    timer = BlockTimer(block)

    class State:
        global_step = 0

    for number, batch in enumerate(batches, start=1):
        model(
            **collate([rows[i] for i in batch]), loss_logits_only=True, use_cache=False
        ).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        State.global_step = number
        timer.on_step_end(None, State, None)
    return timer


def trainer_loop(
    rows: list[dict], steps: int, block: int, cls: type[Trainer]
) -> tuple[BlockTimer, list]:
    """The same through `Trainer`; also the batches that it drew."""
    drawn: list[list[int]] = []
    number_of = {id(row["input_ids"]): i for i, row in enumerate(rows)}

    def collate(batch):
        drawn.append([number_of[id(row["input_ids"])] for row in batch])
        return SharedImageCollator(0)(batch)

    timer = BlockTimer(block)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=8, learning_rate=2e-3,
            lr_scheduler_type="cosine", warmup_steps=0.05, adam_beta2=0.98, weight_decay=0.01,
            train_sampling_strategy="group_by_length", remove_unused_columns=False, use_cpu=True,
            dataloader_pin_memory=False, disable_tqdm=True, report_to="none", logging_steps=50,
            save_strategy="no",
        )  # fmt: skip
        trainer = cls(
            model=make_model(),
            args=args,
            train_dataset=rows,
            data_collator=collate,
            callbacks=[timer],
        )
        trainer.train()
    return timer, drawn[:steps]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=200, help="steps of a repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24, help="mean tokens of an image")
    parser.add_argument("--plain", action="store_true", help="also the plain Trainer, full logits")
    options = parser.parse_args()
    rows = make_rows(3600, options.tokens)
    block = 20
    runs: dict[str, BlockTimer] = {}
    for _ in range(options.repeats):
        kinds = {
            "BeingVLTrainer": BeingVLTrainer,
            **({"Trainer": Trainer} if options.plain else {}),
        }
        for name, cls in kinds.items():
            timer, batches = trainer_loop(rows, options.steps, block, cls)
            _extend(runs, name, timer)
        _extend(runs, "bare loop", bare_loop(rows, batches, block))
    wall = {name: statistics.median(timer.seconds) for name, timer in runs.items()}
    cpu = {name: statistics.median(timer.cpu) for name, timer in runs.items()}
    for name in runs:
        print(
            json.dumps(
                {
                    "loop": name,
                    "ms_a_step": round(1e3 * wall[name], 2),
                    "wall_ratio": round(wall[name] / wall["bare loop"], 2),
                    "cpu_ratio": round(cpu[name] / cpu["bare loop"], 2),
                }
            )
        )


def _extend(runs: dict[str, BlockTimer], name: str, timer: BlockTimer) -> None:
    runs.setdefault(name, BlockTimer(timer.block))
    runs[name].seconds += timer.seconds
    runs[name].cpu += timer.cpu


if __name__ == "__main__":
    main()
