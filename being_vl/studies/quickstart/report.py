"""The table of the quickstart, and what its card says beside the checkpoint's own files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ...files import load_results, write_atomic
from ...hub.facts import FACTS_FILE, CardFacts
from .settings import Settings

METRICS = {"overall": "accuracy", "yes/no": "accuracy/yes_no", "shape": "accuracy/shape", "color": "accuracy/color"}  # fmt: skip
COLUMNS = ("", *METRICS, "tokens", "steps", "seconds")


@dataclass(frozen=True)
class TableRow:
    """What was measured of one model."""

    name: str
    metrics: dict[str, float]  # those of `being-vl eval`, in percent
    tokens_per_image: float  # mean over the test images; 0 without images
    steps: int  # of all training stages
    seconds: float

    def cells(self) -> list[str]:
        scores = [f"{self.metrics[metric]:.1f}" for metric in METRICS.values()]
        if not self.steps:
            return [self.name, *scores, "–", "–", "–"]
        return [self.name, *scores, f"{self.tokens_per_image:.1f}", str(self.steps), f"{self.seconds:.0f}"]  # fmt: skip


def print_table(rows: Sequence[TableRow], console: Console) -> None:
    """All rows so far."""
    table = Table(
        title="\ntest accuracy in %, tokens per image, training steps and seconds",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells())
    console.print(table)


def write_facts(
    checkpoint: Path, settings: Settings, rows: Sequence[TableRow], question: str
) -> None:
    """`card.yaml`, from which `being-vl card` takes what the checkpoint's files do not say."""
    (result,) = load_results(checkpoint)
    header = "|".join(f" {column} " for column in COLUMNS)
    rule = "|".join("---" for _ in COLUMNS)
    lines = "\n".join("| " + " | ".join(row.cells()) + " |" for row in rows)
    command = (
        f"being-vl quickstart --seed {settings.seed} --minutes {settings.minutes:g} "
        f"--quantizer-kind {settings.quantizer}"
    )
    facts = CardFacts(
        title="being_vl quickstart: easy-VQA",
        summary="A small Llama that learned to answer questions about 64×64 drawings from scratch, in minutes. "
        "It is an example of the library at work.",
        language=["en"],
        question=question,
        max_new_tokens=result.decoding["max_new_tokens"],
        vq_source={
            "patch": "trained by this run: k-means of the patches of easy-VQA's training images",
            "vqgan": "trained by this run: a small VQ-GAN, on easy-VQA's training images",
        }[settings.quantizer],
        training=f"`{command}`: the text model, the quantizer and the merges are trained first, on the training "
        "images and questions of [easy-VQA](https://github.com/vzhou842/easy-VQA) alone, a tenth of them held "
        "out. Then the new rows alone (`pretrain`), then everything (`sft`), eight images a step.",
        hardware=result.hardware,
        limits="It knows nothing but the thirteen answers of easy-VQA, and sees drawings of 64×64 pixels; what "
        "it says of any other image means nothing. One seed.",
        sections={
            "Compared": (
                f"|{header}|\n|{rule}|\n{lines}\n\n"
                f"Accuracy in % on all {result.num_examples:,} questions of the official test split, from "
                "greedily generated text of the saved checkpoints, loaded again, compared exactly after "
                "lower-casing. All models start from the same text model; steps are fixed in advance, so that "
                "a seed repeats; the seconds are measured. Nothing was chosen on the test split."
            )
        },
    )
    write_atomic(checkpoint / FACTS_FILE, facts.to_yaml())
