"""Does the language model learn better from BPE-dropout? easy-VQA, with and without, by the quickstart's parts.

    being-vl quickstart --rows bpe --output quickstart-0 --seed 0    # and 1, 2
    python experiments/dropout.py --quickstarts quickstart-0 quickstart-1 quickstart-2 --work dropout

From each quickstart its codes, vocabulary and untrained checkpoint are taken; its questions are tokenized with each
dropout (`being-vl tokenize --dropout P`), and all parameters are trained for equal steps of 64 questions, which are
not packed: dropout gives each question tokens of its own. The test images are encoded without dropout.
"""

from __future__ import annotations

import json
from pathlib import Path

from drawings_parts import spread
from experiment_tools import write_results
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from being_vl.cli import run_command
from being_vl.files import load_results, read_json
from being_vl.studies.commands import Commands


def one_run(quickstart: Path, work: Path, dropout: float, seed: int, args: Namespace) -> dict:
    """Rows with this dropout, a training and its score."""
    command = Commands(run_command, lambda line: print(f"$ {line}", flush=True))
    steps = args.steps
    start, output = quickstart / "bpe" / "start", work / f"{seed}-{dropout}-{steps}"
    rows = work / f"rows-{seed}-{dropout}" if dropout else quickstart / "bpe" / "tokenized"
    command(
        "tokenize", checkpoint=start, data=quickstart / "easy-vqa" / "train.json",
        codes=quickstart / "codes", output=rows, dropout=dropout, seed=seed, workers=0,
        unless=rows / "tokenize.yaml",
    )  # fmt: skip
    command(
        "train", checkpoint=start, data=rows, output_dir=output, stage="sft", max_steps=steps,
        per_device_train_batch_size=64, learning_rate=1e-3, lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs=json.dumps({"num_decay_steps": round(0.3 * steps)}), warmup_steps=0.05, adam_beta2=0.98,
        weight_decay=0.01, train_sampling_strategy="group_by_length", seed=seed, logging_steps=100,
        save_strategy="no", use_cpu=True, dataloader_pin_memory=False, unless=output / "metrics.json",
    )  # fmt: skip
    command(
        "eval", output, **{
            "tasks": "easyvqa", "device": "cpu", "batch-size": 256, "cache": work / f"cache-{seed}",
            "max-new-tokens": 8, "limit": args.limit,
        }, unless=output / "evaluation" / "easyvqa.json",
    )  # fmt: skip
    (result,) = load_results(output)
    counts = read_json(rows / "tokenized.json")["counts"]
    return {
        "dropout": dropout,
        "seed": seed,
        "steps": steps,
        "tokens_per_image": counts["image_tokens"] / counts["images"],
        "train_loss": read_json(output / "metrics.json")["train_loss"],
        **result.metrics,
    }


def table(rows: list[dict]) -> list[str]:
    """Mean ± standard deviation over the seeds, as a Markdown table."""
    lines = [
        "| dropout | tokens a training image | accuracy, % | color | shape | yes/no | loss in training |",
        "|---" * 7 + "|",
    ]
    for dropout in sorted({row["dropout"] for row in rows}):
        own = [row for row in rows if row["dropout"] == dropout]
        names = ("accuracy", "accuracy/color", "accuracy/shape", "accuracy/yes_no")
        cells = [spread([row["tokens_per_image"] for row in own], 1)]
        cells += [spread([row[name] for row in own], 1) for name in names]
        cells.append(spread([row["train_loss"] for row in own]))
        lines.append(f"| {dropout:g} ({len(own)}) | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quickstarts", type=Path, nargs="+", required=True, help="of one seed each"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of what is made")
    parser.add_argument("--dropouts", type=float, nargs="+", default=[0.0, 0.1])
    parser.add_argument("--steps", type=PositiveInt, default=800)
    parser.add_argument("--limit", type=PositiveInt, help="of the test questions")
    parser.add_argument("--output", type=Path, help="JSON of the figures")
    args = parser.parse_args()
    rows = []
    for quickstart in args.quickstarts:
        seed = read_json(quickstart / "quickstart.json")["seed"]
        for dropout in args.dropouts:
            rows.append(one_run(quickstart, args.work, dropout, seed, args))
            print(json.dumps(rows[-1]), flush=True)
    print("\n".join(table(rows)))
    if args.output:
        write_results(rows, args.output)


if __name__ == "__main__":
    main()
