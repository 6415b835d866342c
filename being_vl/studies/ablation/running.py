"""cells → results: each trained by the commands of `being-vl`, scored, written down, and not done again.

Stages that cells share (the pretraining of PT(freeze)+SFT and of PT(freeze)+SFT(freeze visual)) are trained
once. A result is a file. After an interruption only the current stage is repeated.
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
from transformers.utils import cached_file

from ...bpe.image_bpe import ImageBPE
from ...data.sources import open_samples
from ...files import claim, locked, read_json, record, write_atomic
from ...training.arguments import BeingVLTrainingArguments
from ...training.stage_arguments import DataArguments, ModelArguments, StageArguments
from ..commands import Commands, make_part
from .cells import REGIMES, SFT_LONG, Cell
from .inputs import Inputs
from .scoring import TestRows, image_row_weights

RUN_FILE = "ablate.json"
_CHOSEN_BY_THE_CELL = frozenset(
    ("output_dir", "seed", "data_seed", "dataset", "stage", "train_embeddings", "freeze", "use_cpu")
)


@dataclass(frozen=True)
class AblationSettings:
    """What decides a row, besides its cell and the inputs."""

    pretrain: Mapping[str, Any]  # options of `being-vl train` by name: `max_steps`, `packing`, …
    sft: Mapping[str, Any]
    image_init: str = "normal"  # how new rows start
    image_init_std: float | None = None
    max_new_tokens: int = 16
    test_limit: int | None = None  # the first so many test rows
    device: str = "cpu"

    def __post_init__(self) -> None:
        for stage in ("pretrain", "sft"):
            for name in getattr(self, stage):
                if name in _CHOSEN_BY_THE_CELL:
                    raise ValueError(f"{stage}.{name} is set by the ablation itself")
                if name not in _OPTIONS:
                    raise ValueError(f"{stage}.{name}: no such option of being-vl train")


@dataclass(frozen=True)
class CellResult:
    """A finished cell."""

    merges: int
    regime: str
    seed: int
    metrics: dict[str, float]  # `accuracy` and optionally `accuracy/GROUP`, in percent
    questions: int
    tokens_per_image: float  # mean over the test images
    vocabulary: int  # K + M visual ids
    steps: dict[str, int]  # of each stage
    train_loss: dict[str, float]  # of each stage
    seconds: float  # of training and scoring, shared stages counted where they were trained
    weights: list[float] = field(repr=False)  # mean absolute input embedding of each visual id


def run_cells(
    command: Commands,
    inputs: Inputs,
    cells: Sequence[Cell],
    settings: AblationSettings,
    output: Path,
) -> list[CellResult]:
    """Train and score all cells that have no result yet; returns the results of all of them, in order."""
    if any(cell.regime == SFT_LONG[0] for cell in cells):
        for stage in ("pretrain", "sft"):
            if "max_steps" not in getattr(settings, stage):
                raise ValueError(f"{stage}.max_steps must be given: {SFT_LONG[0]} adds both up")
    with locked(output, "another ablation is running in it"):
        _claim(output, inputs, settings)
        missing = [cell for cell in cells if not result_path(output, cell).exists()]
        if missing:
            work = output / "work"
            work.mkdir(exist_ok=True)
            test = TestRows(inputs.test, inputs.codes, work / "test-index.npy", settings.test_limit)
            for cell in missing:
                result = run_cell(command, cell, inputs, settings, work, test)
                write_atomic(result_path(output, cell), json.dumps(asdict(result)) + "\n")
            shutil.rmtree(work)
        return [read_result(result_path(output, cell)) for cell in cells]


def result_path(output: Path, cell: Cell) -> Path:
    folder = output / "rows"
    folder.mkdir(exist_ok=True)
    return folder / f"{cell.name}.json"


def read_result(path: Path) -> CellResult:
    """A finished cell."""
    try:
        result = record(CellResult, read_json(path))
        name = Cell(result.merges, result.regime, result.seed).name
        if name != path.stem:
            raise ValueError(f"it holds {name}")
        if "accuracy" not in result.metrics:
            raise ValueError("metrics.accuracy is missing")
        return result
    except ValueError as error:
        raise ValueError(f"{path}: not a row of being-vl ablate: {error}") from None


def run_cell(
    command: Commands,
    cell: Cell,
    inputs: Inputs,
    settings: AblationSettings,
    work: Path,
    test: TestRows,
) -> CellResult:
    """Train a cell's stages one after the other, and score what comes out."""
    started = time.perf_counter()
    checkpoint = _start(command, cell, inputs, settings, work)
    steps, losses, chain = {}, {}, []
    for name, options in REGIMES[cell.regime]:
        chain.append(name)
        folder = work / f"m{cell.merges}-s{cell.seed}" / "+".join(chain)
        rows = work / f"m{cell.merges}-{options['stage']}"
        data = inputs.pretrain if options["stage"] == "pretrain" else inputs.sft
        command(
            "tokenize", checkpoint=checkpoint, data=data, codes=inputs.codes, output=rows,
            workers=0, unless=rows / "tokenize.yaml",
        )  # fmt: skip
        stage = _stage_options(cell, name, options, settings)
        command(
            "train", checkpoint=checkpoint, data=rows, output_dir=folder, **stage,
            unless=folder / "metrics.json",
        )  # fmt: skip
        metrics = read_json(folder / "metrics.json")
        steps[name], losses[name] = int(metrics["steps"]), float(metrics["train_loss"])
        checkpoint = folder
    scores = test.score(str(checkpoint), settings.max_new_tokens, settings.device, cell.name)
    weights, _ = image_row_weights(checkpoint)
    shutil.rmtree(checkpoint)  # the last stage is no other cell's first
    return CellResult(
        **asdict(cell),
        **scores,
        questions=len(test),
        vocabulary=len(weights),
        steps=steps,
        train_loss=losses,
        seconds=round(time.perf_counter() - started, 1),
        weights=np.round(weights.astype(float), 6).tolist(),
    )


def _start(
    command: Commands, cell: Cell, inputs: Inputs, settings: AblationSettings, work: Path
) -> Path:
    """The checkpoint before any training: the text model with the first merges of the vocabulary."""
    folder = work / f"m{cell.merges}-s{cell.seed}"
    cut = ImageBPE.from_pretrained(inputs.bpe).first(cell.merges)
    bpe = make_part(folder / "image_bpe", cut.save_pretrained)
    template = cached_file(
        inputs.base, "chat_template.jinja", _raise_exceptions_for_missing_entries=False
    )
    options = {
        "base": inputs.base, "quantizer": inputs.vq, "bpe": bpe, "image-init": settings.image_init,
        "image-init-std": settings.image_init_std, "seed": cell.seed, "chat-template": template,
    }  # fmt: skip
    start = folder / "start"
    command("init", output=start, **options, unless=start / "config.json")
    return start


_OPTIONS = {
    field.name
    for kind in (ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments)
    for field in dataclasses.fields(kind)
    if field.init
}


def _stage_options(
    cell: Cell, name: str, options: Mapping[str, Any], settings: AblationSettings
) -> dict[str, Any]:
    """What `being-vl train` is told beside its checkpoint, rows and folder."""
    given = dict(settings.pretrain if options["stage"] == "pretrain" else settings.sft)
    if name == SFT_LONG[0]:
        given["max_steps"] = settings.pretrain["max_steps"] + settings.sft["max_steps"]
    fixed = {"seed": cell.seed, "use_cpu": settings.device == "cpu", "report_to": "none"}
    return {"save_strategy": "no", "disable_tqdm": True, **given, **options, **fixed}


def _claim(output: Path, inputs: Inputs, settings: AblationSettings) -> None:
    """Write down what the rows come from; refuse rows of something else."""
    wanted = {"version": 1, "settings": asdict(settings)}
    for name in ("pretrain", "sft", "test"):
        wanted[name] = open_samples(getattr(inputs, name)).identity()
    merges = ImageBPE.from_pretrained(inputs.bpe).merges
    wanted["bpe"] = hashlib.sha256(merges.tobytes()).hexdigest()
    wanted["base"], wanted["vq"] = inputs.base, inputs.vq
    claim(output / RUN_FILE, wanted, "rows of both do not compare; choose another output folder")
