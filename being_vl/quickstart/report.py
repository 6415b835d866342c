"""The table, the card and the picture that the quickstart leaves behind."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from rich.console import Console
from rich.table import Table
from transformers import AutoProcessor

from .. import __version__
from ..drawing import draw_tokens, side_by_side, token_map
from ..evaluation.easyvqa import QUESTION_TYPES, Split
from ..image_loading import load_image
from .runs import Result
from .settings import Settings, Workspace

COLUMNS = ("", "overall", *QUESTION_TYPES, "tokens", "steps", "seconds")
PICTURE = "tokens.png"
ZOOM = 5


def write_report(
    settings: Settings,
    work: Workspace,
    results: Sequence[Result],
    test: Split,
    codes: Mapping[str, Mapping[int, np.ndarray]],
    console: Console,
) -> None:
    """Print the table; write the card `README.md` and the picture into the output folder and checkpoint."""
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
    if not (checkpoint / PICTURE).exists():
        work.make(
            f"checkpoint/{PICTURE}", lambda target: draw(checkpoint, test, codes["test"], target)
        )
    text = card(settings, results, test)
    for folder in (checkpoint, work.folder):
        path = folder / "README.md"
        path.with_suffix(".tmp").write_text(text)
        path.with_suffix(".tmp").replace(path)
    if not (work / PICTURE).exists():
        work.make(PICTURE, lambda target: target.write_bytes((checkpoint / PICTURE).read_bytes()))
    console.print(
        f"checkpoint: {checkpoint}\ncard: {work / 'README.md'}\npicture: {work / PICTURE}"
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


def draw(checkpoint: Path, test: Split, codes: Mapping[int, np.ndarray], target: Path) -> None:
    """A test image, its VQ reconstruction and its BPE tokens, side by side, as PNG."""
    processor = AutoProcessor.from_pretrained(checkpoint)
    bpe = processor.tokenizer.image_bpe
    image_id = test.questions[0].image_id
    grid = codes[image_id]
    ids = bpe.encode(grid)
    image = load_image(test.image_paths[image_id])
    reconstruction = processor.reconstruct(grid)
    size = (image.width * ZOOM, image.height * ZOOM)
    panels = [picture.resize(size, Image.Resampling.NEAREST) for picture in (image, reconstruction)]
    panels.append(draw_tokens(panels[1], token_map(bpe, ids, *grid.shape)))
    titles = ("image", f"{grid.size} codes", f"{len(ids)} tokens")
    side_by_side(panels, titles).save(target, format="PNG")


CARD = """\
---
library_name: being_vl
pipeline_tag: image-text-to-text
tags: [being_vl, vq, image-bpe]
---
# being_vl quickstart: easy-VQA

A Llama of 2 layers and 64 dimensions that learned to answer questions about 64×64 drawings from scratch,
by `being-vl quickstart --seed {seed} --minutes {minutes:g} --quantizer {quantizer}`. It is an example of the
library at work; it knows nothing but easy-VQA.

| {header} |
|{rule}|
{rows}

Accuracy in % on all {questions} questions of the official test split, from greedily generated text of the saved
checkpoint, loaded again, compared exactly after lower-casing. All rows start from the same text model and train
for about the same time; the steps are fixed in advance, so that a seed repeats, and the seconds are measured.
Nothing was chosen on the test split. One seed; machine: {machine}, torch {torch}, transformers {transformers},
being_vl {version}.

![an image, its reconstruction, its tokens]({picture})

```python
import being_vl
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained(".")
model = AutoModelForImageTextToText.from_pretrained(".")
messages = [{{"role": "user", "content": [{{"type": "image", "path": "image.png"}}, {{"type": "text", "text": "{question}"}}]}}]
inputs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
ids = model.generate(**inputs, max_new_tokens=8)
print(processor.decode(ids[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```
"""


def card(settings: Settings, results: Sequence[Result], test: Split) -> str:
    """The text of the card."""
    return CARD.format(
        seed=settings.seed,
        minutes=settings.minutes,
        quantizer=settings.quantizer,
        header=" | ".join(COLUMNS).strip(),
        rule="|".join("---" for _ in COLUMNS),
        rows="\n".join("| " + " | ".join(cells(result)) + " |" for result in results),
        questions=f"{len(test.questions):,}",
        machine=f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        torch=torch.__version__,
        transformers=transformers.__version__,
        version=__version__,
        picture=PICTURE,
        question=test.questions[0].text,
    )
