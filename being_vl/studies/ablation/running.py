"""cells → rows: each trained, scored, written down, and not done again.

Source: our own. Stages that cells share (the pretraining of PT(freeze)+SFT and of PT(freeze)+SFT(freeze
visual)) are trained once. A row is a file; what stopped the command costs the cell it was in.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from ...bpe.image_bpe import ImageBPE
from ...data import TokenizeSettings, open_samples, tokenize_samples
from ...files import claim, locked, write_atomic
from ...hub.checkpoint import init_checkpoint, save_checkpoint
from ...models.loading import load_base
from ...processing.processing_being_vl import BeingVLProcessor
from ...training.arguments import (
    BeingVLTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
)
from ...training.run import run_stage
from ..quickstart.settings import make_part
from .grid import REGIMES, SFT_LONG, Cell
from .inputs import Inputs
from .scoring import TestRows, image_row_weights

RUN_FILE = "ablate.json"
_CHOSEN_BY_THE_GRID = frozenset(
    ("output_dir", "seed", "data_seed", "dataset", "stage", "train_embeddings", "freeze", "use_cpu")
)


@dataclass(frozen=True)
class AblationSettings:
    """What decides a row, besides its cell and the inputs.

    Args:
        pretrain, sft: options of the stages by name, those of `being-vl train`: `max_steps`,
            `learning_rate`, `packing`, …
        image_init, image_init_std: how new rows start, see `BeingVLLanguageModel.from_text_model`.
        max_new_tokens: after which an answer is cut.
        test_limit: the first so many test rows.
        device: where models train and answer, `"cpu"` or a CUDA device.

    Raises:
        ValueError: an option that no stage has, or that the grid itself sets.
    """

    pretrain: Mapping[str, Any]
    sft: Mapping[str, Any]
    image_init: str = "normal"
    image_init_std: float | None = None
    max_new_tokens: int = 16
    test_limit: int | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        for stage in ("pretrain", "sft"):
            for name in getattr(self, stage):
                if name in _CHOSEN_BY_THE_GRID:
                    raise ValueError(f"{stage}.{name} is set by the grid itself")
                if name not in _OPTIONS:
                    raise ValueError(f"{stage}.{name}: no such option of being-vl train")


@dataclass(frozen=True)
class Row:
    """A finished cell.

    Args:
        merges, regime, seed: the cell.
        metrics: `accuracy` and perhaps `accuracy/GROUP`, in percent.
        questions: how many.
        tokens_per_image: mean over the test images.
        vocabulary: K + M visual ids.
        steps: optimizer steps of each stage.
        train_loss: of each stage.
        seconds: of training and scoring, shared stages counted where they were trained.
        weights: mean absolute input embedding of each visual id.
    """

    merges: int
    regime: str
    seed: int
    metrics: dict[str, float]
    questions: int
    tokens_per_image: float
    vocabulary: int
    steps: dict[str, int]
    train_loss: dict[str, float]
    seconds: float
    weights: list[float] = field(repr=False)


def run_grid(
    inputs: Inputs, cells: Sequence[Cell], settings: AblationSettings, output: Path
) -> list[Row]:
    """Train and score all cells that have no row yet; returns the rows of all of them, in order.

    Args:
        inputs: what the cells share.
        cells: any; cells may be added to a folder later.
        settings: must be those that the folder began with.
        output: the folder: `rows/CELL.json`, and `work/` while it runs.

    Raises:
        ValueError: the folder was begun with other settings or inputs.
        OSError: another process works in it.
    """
    if any(cell.regime == SFT_LONG[0] for cell in cells):
        for stage in ("pretrain", "sft"):
            if "max_steps" not in getattr(settings, stage):
                raise ValueError(f"{stage}.max_steps must be given: {SFT_LONG[0]} adds both up")
    with locked(output, "another ablation is running in it"):
        _claim(output, inputs, settings)
        missing = [cell for cell in cells if not row_path(output, cell).exists()]
        if missing:
            work = output / "work"
            work.mkdir(exist_ok=True)
            test = TestRows(inputs.test, inputs.codes, work / "test-index.npy", settings.test_limit)
            for cell in missing:
                row = run_cell(cell, inputs, settings, work, test)
                write_atomic(row_path(output, cell), (json.dumps(asdict(row)) + "\n").encode())
            shutil.rmtree(work)
        return [read_row(row_path(output, cell)) for cell in cells]


def row_path(output: Path, cell: Cell) -> Path:
    folder = output / "rows"
    folder.mkdir(exist_ok=True)
    return folder / f"{cell.name}.json"


def read_row(path: Path) -> Row:
    """A finished cell.

    Raises:
        ValueError: the file is not one of ours; it is named.
    """
    try:
        return Row(**json.loads(path.read_text("utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a row of being-vl ablate: {error}") from None


def run_cell(
    cell: Cell, inputs: Inputs, settings: AblationSettings, work: Path, test: TestRows
) -> Row:
    """Train a cell's stages one after the other, and score what comes out."""
    started = time.perf_counter()
    checkpoint = str(_start(cell, inputs, settings, work))
    steps, losses, chain = {}, {}, []
    for name, options in REGIMES[cell.regime]:
        chain.append(name)
        folder = work / f"m{cell.merges}-s{cell.seed}" / "+".join(chain)
        stage = str(options["stage"])
        rows = _rows(cell, stage, inputs, checkpoint, work)
        result = run_stage(*_arguments(cell, name, options, settings, checkpoint, rows, folder))
        steps[name] = int(result.metrics["steps"])
        losses[name] = float(result.metrics["train_loss"])
        checkpoint = result.output_dir
    scores = test.score(
        checkpoint,
        max_new_tokens=settings.max_new_tokens,
        device=settings.device,
        name=cell.name,
    )
    weights = image_row_weights(checkpoint)
    shutil.rmtree(checkpoint)  # the last stage is no other cell's first
    return Row(
        **asdict(cell),
        **scores,
        questions=len(test),
        vocabulary=len(weights),
        steps=steps,
        train_loss=losses,
        seconds=round(time.perf_counter() - started, 1),
        weights=np.round(weights.astype(float), 6).tolist(),
    )


def _start(cell: Cell, inputs: Inputs, settings: AblationSettings, work: Path) -> Path:
    """The checkpoint before any training: the text model with the first merges of the vocabulary."""

    def build(target: Path) -> None:
        whole = ImageBPE.from_pretrained(inputs.bpe)
        model, processor = init_checkpoint(
            load_base(inputs.base),
            (tokenizer := AutoTokenizer.from_pretrained(inputs.base)),
            AutoModel.from_pretrained(inputs.vq),
            whole.first(cell.merges),
            chat_template=tokenizer.chat_template,
            image_init=settings.image_init,
            image_init_std=settings.image_init_std,
            generator=torch.Generator().manual_seed(cell.seed),
        )
        save_checkpoint(model, processor, target)

    return make_part(work / f"m{cell.merges}-s{cell.seed}" / "start", build)


def _rows(cell: Cell, stage: str, inputs: Inputs, checkpoint: str, work: Path) -> Path:
    """The rows of a stage, tokenized once for each vocabulary."""
    data = inputs.pretrain if stage == "pretrain" else inputs.sft
    folder = work / f"m{cell.merges}-{stage}"
    if not (folder / "tokenized.json").exists():
        source = open_samples(data)
        tokenize_samples(
            source,
            BeingVLProcessor.from_pretrained(checkpoint, vq=False),
            folder,
            TokenizeSettings(source=source.name),
            checkpoint=checkpoint,
            codes=inputs.codes,
        )
    return folder


def _fields(kind: type) -> frozenset[str]:
    return frozenset(field.name for field in dataclasses.fields(kind) if field.init)


_OPTIONS = frozenset().union(
    *map(_fields, (ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments))
)


def _arguments(
    cell: Cell,
    name: str,
    options: Mapping[str, Any],
    settings: AblationSettings,
    checkpoint: str,
    rows: Path,
    folder: Path,
) -> tuple[ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments]:
    """The four arguments of `run_stage`, each with those of the options that it has."""
    given = dict(settings.pretrain if options["stage"] == "pretrain" else settings.sft)
    if name == SFT_LONG[0]:
        given["max_steps"] = settings.pretrain["max_steps"] + settings.sft["max_steps"]
    fixed = {
        **options,
        "checkpoint": checkpoint,
        "data": str(rows),
        "output_dir": str(folder),
        "seed": cell.seed,
        "use_cpu": settings.device == "cpu",
        "report_to": "none",
    }
    values = {"save_strategy": "no", "disable_tqdm": True, **given, **fixed}
    return tuple(
        kind(**{key: value for key, value in values.items() if key in _fields(kind)})
        for kind in (ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments)
    )  # type: ignore[return-value]


def _claim(output: Path, inputs: Inputs, settings: AblationSettings) -> None:
    """Write down what the rows come from; refuse rows of something else."""
    wanted = {"version": 1, "settings": asdict(settings)}
    for name in ("pretrain", "sft", "test"):
        wanted[name] = open_samples(getattr(inputs, name)).identity()
    wanted["bpe"] = hashlib.sha256(
        ImageBPE.from_pretrained(inputs.bpe).merges.tobytes()
    ).hexdigest()
    wanted["base"], wanted["vq"] = inputs.base, inputs.vq
    claim(output / RUN_FILE, wanted, "rows of both do not compare; choose another output folder")
