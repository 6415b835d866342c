"""Training and testing one row of the quickstart's table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_model, save_model
from transformers import AutoModelForImageTextToText, AutoProcessor, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ...evaluation.answering import generate_answers, render_prompts
from ...evaluation.easyvqa import Question, accuracy
from ...models.modeling_being_vl import BeingVLLanguageModel
from ...processing.processing_being_vl import BeingVLProcessor
from ...training.logs import TrainingClock
from ...training.packing import SharedImageCollator
from ...training.stages import prepare_stage
from ...training.trainer import BeingVLTrainer
from .settings import Settings, Workspace

IMAGES_PER_STEP = 8
MAX_ANSWER_TOKENS = 8
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Result:
    """A row of the table. Accuracies are shares in [0, 1] of the test questions.

    Args:
        name: of the row.
        accuracy: overall and for each type of question.
        tokens_per_image: mean over the test images, begin and end tokens left out; 0 without images.
        pretrain_steps, sft_steps: optimizer steps of the two stages.
        seconds: wall clock of both stages.
        test_seconds: wall clock of loading the checkpoint and answering the test questions.
    """

    name: str
    accuracy: dict[str, float]
    tokens_per_image: float
    pretrain_steps: int
    sft_steps: int
    seconds: float
    test_seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def training_arguments(
    settings: Settings, folder: Path, steps: int, learning_rate: float = 2e-3, **options: Any
) -> TrainingArguments:
    """What all stages of the quickstart share; docs/quickstart.md tells where the values come from."""
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=IMAGES_PER_STEP,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        adam_beta2=0.98,
        weight_decay=0.01,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
        seed=settings.seed,
        use_cpu=settings.device == "cpu",
        dataloader_pin_memory=settings.device != "cpu",
        disable_tqdm=True,
        report_to="none",
        logging_steps=50,
        save_steps=max(1, steps // 4),
        save_total_limit=1,
        restore_callback_states_from_checkpoint=True,
        **options,
    )


def train_stage(
    model: BeingVLLanguageModel,
    rows: list[dict[str, Any]],
    settings: Settings,
    folder: Path,
    name: str,
    stage: str,
    steps: int,
) -> float:
    """Train `model` in place for one stage; the seconds of training are returned.

    Args:
        folder: keeps `Trainer`'s checkpoints, from which a stopped stage goes on.
    """
    prepare_stage(model, stage)
    args = training_arguments(settings, folder, steps)
    trainer = BeingVLTrainer(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=SharedImageCollator(model.config.pad_token_id),
        callbacks=[TrainingClock(f"{name}: {stage}")],
    )
    trainer.remove_callback(PrinterCallback)  # the clock shows the progress
    trainer.train(resume_from_checkpoint="auto")
    # A resumed Trainer has put a restored clock in the place of ours.
    callbacks = trainer.callback_handler.callbacks
    return next(c for c in callbacks if isinstance(c, TrainingClock)).seconds


def train_stages(
    model: BeingVLLanguageModel,
    rows: list[dict[str, Any]],
    settings: Settings,
    work: Workspace,
    part: str,
    name: str,
    steps: Mapping[str, int],
) -> float:
    """Train `model` in place, stage by stage; the seconds of training are returned.

    A finished stage is kept as the part `PART/STAGE` and loaded when the run is done again: a `Trainer`
    that resumes at its last step takes one more.

    Args:
        steps: stage → optimizer steps; a stage with none is left out.
    """
    total = 0.0
    for stage, count in steps.items():
        if not count:
            continue

        def build(target: Path, stage: str = stage, count: int = count) -> None:
            trainer_folder = work / f"{part}/trainer-{stage}"
            seconds = train_stage(model, rows, settings, trainer_folder, name, stage, count)
            target.mkdir()
            save_model(model, str(target / WEIGHTS))
            (target / "seconds.json").write_text(json.dumps(seconds))

        done = work.make(f"{part}/{stage}", build)
        load_model(model, str(done / WEIGHTS))
        total += json.loads((done / "seconds.json").read_text())
    return total


def test(
    checkpoint: Path,
    questions: Sequence[Question],
    codes: Mapping[int, Any] | None,
    *,
    device: str,
    name: str,
) -> tuple[dict[str, float], list[str]]:
    """A saved checkpoint, loaded by the Auto classes, answers questions by greedy generation.

    Args:
        checkpoint: a folder.
        questions: any number.
        codes: image id → int (h, w) codes, or None to ask without images.
        device: where the model runs.
        name: stands before the progress bar.

    Returns:
        the accuracies, and an answer for each question.
    """
    processor: BeingVLProcessor = AutoProcessor.from_pretrained(checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(checkpoint).to(device).eval()
    prompts = render_prompts(
        processor, [question.text for question in questions], image=codes is not None
    )
    answers = generate_answers(
        model,
        processor,
        prompts,
        None if codes is None else [question.image_id for question in questions],
        codes,
        max_new_tokens=MAX_ANSWER_TOKENS,
        description=f"{name}: test",
    )
    return accuracy(questions, answers), answers
