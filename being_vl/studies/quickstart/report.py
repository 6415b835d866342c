"""The table, the card and the picture that the quickstart leaves behind."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table

from ... import __version__
from ...evaluation import results as result_files
from ...evaluation.easyvqa import QUESTION_TYPES, Split
from ...hub.card import write_card
from ...hub.commit import CARD
from ...hub.example import PICTURE, draw_example
from ...hub.facts import CardFacts
from .runs import MAX_ANSWER_TOKENS, Result
from .settings import Settings, Workspace

COLUMNS = ("", "overall", *QUESTION_TYPES, "tokens", "steps", "seconds")


def write_report(
    settings: Settings,
    work: Workspace,
    results: Sequence[Result],
    of_checkpoint: Result,
    test: Split,
    cells_per_image: float,
    console: Console,
) -> None:
    """Print the table; write result file, card and picture into the checkpoint, and copies beside it.

    Args:
        settings, work: of the run.
        results: the rows of the table.
        of_checkpoint: the row whose checkpoint is kept.
        test: the questions.
        cells_per_image: mean codes of a test image.
        console: to print on.
    """
    table = Table(
        title="test accuracy in %, tokens per image, training steps and seconds",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for column in COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for row in map(cells, results):
        table.add_row(*row)
    console.print(table)

    checkpoint = work / "checkpoint"
    if not (checkpoint / CARD).exists():  # once: the card tells of this machine
        draw_example(checkpoint, test.image_paths[test.questions[0].image_id])
        result_file(settings, of_checkpoint, test, cells_per_image).save(checkpoint)
        write_card(checkpoint, card_facts(settings, results, test))
    for name in (CARD, PICTURE):
        content = (checkpoint / name).read_bytes()
        if name == CARD:  # its snippet loads the checkpoint from here
            content = content.replace(b'checkpoint = "."', b'checkpoint = "checkpoint"')
        work.make(name, lambda target, content=content: target.write_bytes(content))
    console.print(
        f"checkpoint: {checkpoint}\ncard: {work / CARD}\npicture: {work / PICTURE}\n"
        f"try it: being-vl chat {checkpoint}"
    )


def cells(result: Result) -> list[str]:
    """A row of the table as text."""
    scores = [f"{100 * result.accuracy[kind]:.1f}" for kind in ("overall", *QUESTION_TYPES)]
    tokens = f"{result.tokens_per_image:.1f}" if result.tokens_per_image else "–"
    return [
        result.name,
        *scores,
        tokens,
        f"{result.pretrain_steps + result.sft_steps}",
        f"{result.seconds:.0f}",
    ]


def result_file(
    settings: Settings, result: Result, test: Split, cells_per_image: float
) -> result_files.Result:
    """A row of the table as `being-vl eval` would write it."""
    metrics = {"accuracy": 100 * result.accuracy["overall"]}
    metrics |= {f"accuracy/{kind}": 100 * result.accuracy[kind] for kind in QUESTION_TYPES}
    return result_files.Result(
        task="easyvqa",
        dataset={"name": "easy-VQA", "id": None, "split": "test"},
        metrics=metrics,
        num_examples=len(test.questions),
        decoding={"do_sample": False, "max_new_tokens": MAX_ANSWER_TOKENS},
        harness={"name": "being_vl", "version": __version__},
        seconds=round(result.test_seconds, 3),
        hardware=result_files.hardware(torch.device(settings.device)),
        images={"codes_per_image": cells_per_image, "tokens_per_image": result.tokens_per_image},
    )


def card_facts(settings: Settings, results: Sequence[Result], test: Split) -> CardFacts:
    """What the card says beside the checkpoint's own files."""
    header = "|".join(f" {column} " for column in COLUMNS)
    rule = "|".join("---" for _ in COLUMNS)
    rows = "\n".join("| " + " | ".join(cells(result)) + " |" for result in results)
    command = (
        f"being-vl quickstart --seed {settings.seed} --minutes {settings.minutes:g} "
        f"--quantizer {settings.quantizer}"
    )
    device = "CPU" if settings.device == "cpu" else settings.device
    return CardFacts(
        title="being_vl quickstart: easy-VQA",
        summary="A small Llama that learned to answer questions about 64×64 drawings from scratch, in minutes. "
        "It is an example of the library at work.",
        language=["en"],
        question=test.questions[0].text,
        max_new_tokens=MAX_ANSWER_TOKENS,
        vq_source={
            "patch": "trained by this run: k-means of the patches of easy-VQA's training images",
            "vqgan": "trained by this run: a small VQ-GAN, on easy-VQA's training images",
        }[settings.quantizer],
        training=f"`{command}`: the text model, the quantizer and the merges are trained first, on the training "
        "images and questions of [easy-VQA](https://github.com/vzhou842/easy-VQA) alone, a tenth of them held "
        "out. Then the new rows alone (`pretrain`), then everything (`sft`), eight images a step.",
        hardware=f"{platform.system()} {platform.machine()}, {device}, {torch.get_num_threads()} threads; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, numpy {np.__version__}",
        limits="It knows nothing but the thirteen answers of easy-VQA, and sees drawings of 64×64 pixels; what "
        "it says of any other picture means nothing. One seed.",
        sections={
            "Compared": (
                f"|{header}|\n|{rule}|\n{rows}\n\n"
                f"Accuracy in % on all {len(test.questions):,} questions of the official test split, from "
                "greedily generated text of the saved checkpoints, loaded again, compared exactly after "
                "lower-casing. All rows start from the same text model; the first three train for about the "
                "same time, by steps fixed in advance, so that a seed repeats; the seconds are measured. "
                "Nothing was chosen on the test split."
            )
        },
    )
