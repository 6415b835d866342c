"""The steps of the quickstart, in order; each leaves a part in the output folder and is not done twice."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from filelock import FileLock, Timeout
from rich.console import Console
from tqdm.auto import tqdm
from transformers import AutoModel, AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from ...bpe.image_bpe import ImageBPE
from ...evaluation.easyvqa import Split, load_easyvqa
from ...hub.checkpoint import default_image_processor, init_checkpoint, save_checkpoint
from ...quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
from ...quantizers.modeling_being_vl_vq import BeingVLVQConfig, BeingVLVQModel
from ...quantizers.quantizing import quantize as quantize_pictures
from ...training.vq.run import fit_vq_model
from .report import write_report
from .rows import training_rows
from .runs import Result, test, train_stages, training_arguments
from .settings import Settings, Workspace
from .text_model import text_model_config, train_text_model, train_text_tokenizer

NUM_MERGES = 512
CODEBOOK_SIZE = 256
SPLITS = ("train", "validation", "test")

TEXT_STEPS_PER_MINUTE = 20
TEXT_LEARNING_RATE = 1e-3
VQGAN_STEPS_PER_MINUTE = 500
PRETRAIN_SHARE = 0.05


@dataclass(frozen=True)
class Row:
    """A row of the table: what the model sees, and its optimizer steps for each minute of --minutes.

    The steps are fixed so that a seed has one result; on two CPU cores the first three rows take about
    the same time. The fourth takes as many steps as the second.
    """

    name: str
    folder: str
    steps_per_minute: int
    sees_images: bool = True
    merges: bool = True


ROWS = (
    Row("question only", "question-only", 1000, sees_images=False, merges=False),
    Row("LLM+VQ", "vq", 285, merges=False),
    Row("LLM+VQ+BPE", "vq-bpe", 900),
    Row("LLM+VQ+BPE, VQ steps", "vq-bpe-equal-steps", 285),
)
CHECKPOINT_ROW = ROWS[2]


def run(settings: Settings) -> list[Result]:
    """Run all steps; the rows of the table are returned, printed and written to the output folder."""
    console = Console()
    data = {name: load_easyvqa(name, seed=settings.seed) for name in SPLITS}
    work = Workspace(settings)
    lock = FileLock(work / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"--output {work.folder} is in use by another quickstart") from error
    with lock:
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        console.rule("1 of 5: pixels → codes")
        fit_quantizer(settings, work, data["train"])
        codes = quantize(work, data)
        console.rule("2 of 5: codes → merges")
        bpe = train_bpe(settings, work, data, codes)
        show_compression(console, bpe, data, codes)
        console.rule("3 of 5: a text-only Llama")
        make_text_model(settings, work, data["train"])
        console.rule("4 of 5: four models learn, then answer the test questions")
        results = [run_row(settings, work, data, codes, row) for row in ROWS]
        console.rule("5 of 5: the report")
        grids = codes["test"].values()
        write_report(
            settings,
            work,
            results,
            results[ROWS.index(CHECKPOINT_ROW)],
            data["test"],
            float(np.mean([grid.size for grid in grids])),
            console,
        )
    return results


def load_images(split: Split, description: str) -> np.ndarray:
    """The images of a split, uint8 (N, 64, 64, 3), in ascending order of id.

    Raises:
        ValueError: an image cannot be read; the message names it.
    """
    from ...quantizers.image_loading import load_image

    images = [
        np.asarray(load_image(path).convert("RGB"))
        for path in tqdm(split.image_paths.values(), desc=description, unit="image")
    ]
    return np.stack(images)


def fit_quantizer(settings: Settings, work: Workspace, train: Split) -> None:
    """Part `vq_model`: the quantizer, fitted on the training images."""

    def build(target: Path) -> None:
        images = load_images(train, "reading the training images")
        resolution = images.shape[1]
        if settings.quantizer == "vqgan":
            vq = fit_vqgan(settings, images)
        else:
            config = BeingVLPatchVQConfig(
                num_embeddings=CODEBOOK_SIZE, patch_size=4, resolution=resolution
            )
            vq = BeingVLPatchVQModel(config)
            pixels = default_image_processor(config)(list(images), return_tensors="pt")[
                "pixel_values"
            ]
            vq.fit(pixels, seed=settings.seed)
        vq.save_pretrained(target)

    work.make("vq_model", build)


def fit_vqgan(settings: Settings, images: np.ndarray) -> BeingVLVQModel:
    """A small VQ-GAN with the grid of the patch quantizer; see hub_configs/vq/easy-vqa-64.yaml."""
    config = BeingVLVQConfig(
        resolution=images.shape[1],
        channel_multiplier=[1, 1, 2],
        base_channels=16,
        num_res_blocks=1,
        latent_channels=32,
        embed_dim=8,
        num_embeddings=CODEBOOK_SIZE,
        norm_num_groups=4,
    )
    steps = max(10, round(VQGAN_STEPS_PER_MINUTE * settings.minutes))
    with tqdm(total=100, desc="training the VQ-GAN", unit="%") as bar:
        return fit_vq_model(
            images,
            config,
            steps=steps,
            processor=default_image_processor(config),
            seed=settings.seed,
            progress=lambda share: bar.update(int(100 * share) - bar.n),
        )


def quantize(work: Workspace, data: Mapping[str, Split]) -> dict[str, dict[int, np.ndarray]]:
    """Part `codes.npz`: the codes of every image, int16 (N, h, w) for each split."""

    def build(target: Path) -> None:
        vq = AutoModel.from_pretrained(work / "vq_model").eval()
        arrays = {}
        for name, split in data.items():
            images = load_images(split, f"quantizing the {name} images")
            arrays[name] = encode_images(vq, images)
        np.savez(target, **arrays)

    with np.load(work.make("codes.npz", build)) as arrays:
        return {
            name: dict(zip(split.image_paths, arrays[name], strict=True))
            for name, split in data.items()
        }


def encode_images(vq: PreTrainedModel, images: np.ndarray, batch_size: int = 100) -> np.ndarray:
    """uint8 (N, height, width, 3) → codes, int16 (N, h, w)."""
    processor = default_image_processor(vq.config)
    grids = quantize_pictures(list(images), vq, processor, batch_size=batch_size)
    return np.stack(grids).astype(np.int16)


def train_bpe(
    settings: Settings, work: Workspace, data: Mapping[str, Split], codes: Mapping[str, Any]
) -> ImageBPE:
    """Part `image_bpe`: the merges, learned from the training images' codes."""

    def build(target: Path) -> None:
        grids = np.stack(list(codes["train"].values()))
        codebook_size = AutoModel.from_pretrained(work / "vq_model").config.num_embeddings
        ImageBPE.train(grids, num_merges=NUM_MERGES, codebook_size=codebook_size).save_pretrained(
            target
        )

    return ImageBPE.from_pretrained(work.make("image_bpe", build))


def show_compression(
    console: Console, bpe: ImageBPE, data: Mapping[str, Split], codes: Mapping[str, Any]
) -> None:
    """Print the tokens per test image."""
    grids = list(codes["test"].values())
    cells = sum(grid.size for grid in grids) / len(grids)
    tokens = sum(map(len, bpe.encode_batch(grids))) / len(grids)
    console.print(
        f"{bpe.num_merges} merges: {cells:.0f} codes → {tokens:.1f} tokens a test image "
        f"(compression ratio {cells / tokens:.1f})"
    )


def make_text_model(settings: Settings, work: Workspace, train: Split) -> None:
    """Part `text_model`: a tokenizer and a Llama that have seen the training questions and no image."""

    def build(target: Path) -> None:
        questions = [question.text for question in train.questions]
        tokenizer = train_text_tokenizer([*questions, *(q.answer for q in train.questions)])
        steps = max(2, round(TEXT_STEPS_PER_MINUTE * settings.minutes))
        args = training_arguments(
            settings, target.parent / "trainer", steps, TEXT_LEARNING_RATE, save_strategy="no"
        )
        model = train_text_model(tokenizer, questions, args)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    work.make("text_model", build)


def run_row(
    settings: Settings,
    work: Workspace,
    data: Mapping[str, Split],
    codes: Mapping[str, Any],
    row: Row,
) -> Result:
    """Parts `runs/ROW`: one row of the table, its checkpoint, its answers."""
    part = f"runs/{row.folder}"
    total = max(4, round(row.steps_per_minute * settings.minutes))
    pretrain = round(PRETRAIN_SHARE * total) if row.sees_images else 0
    steps = {"pretrain": pretrain, "sft": total - pretrain}
    bpe = ImageBPE.from_pretrained(work / "image_bpe")
    if not row.merges:
        bpe = bpe.first(0)

    def build_checkpoint(target: Path) -> None:
        text_tokenizer = AutoTokenizer.from_pretrained(work / "text_model")
        model, processor = init_checkpoint(
            LlamaForCausalLM.from_pretrained(work / "text_model"),
            text_tokenizer,
            AutoModel.from_pretrained(work / "vq_model"),
            bpe,
            chat_template=text_tokenizer.chat_template,
            image_init_std=text_model_config(text_tokenizer).initializer_range,
            generator=torch.Generator().manual_seed(settings.seed),
        )
        rows = training_rows(
            processor, data["train"].by_image(), codes["train"] if row.sees_images else None
        )
        model.to(settings.device)
        seconds = train_stages(model, rows, settings, work, part, row.name, steps)
        save_checkpoint(model, processor, target)
        (target / "training.json").write_text(json.dumps({"seconds": seconds, **steps}) + "\n")

    checkpoint = work.make(
        "checkpoint" if row == CHECKPOINT_ROW else f"{part}/checkpoint", build_checkpoint
    )
    for stage in steps:  # superseded by the checkpoint
        for leftover in (work / f"{part}/{stage}", work / f"{part}/trainer-{stage}"):
            shutil.rmtree(leftover, ignore_errors=True)

    def build_result(target: Path) -> None:
        grids = codes["test"] if row.sees_images else None
        started = time.perf_counter()
        scores, answers = test(
            checkpoint, data["test"].questions, grids, device=settings.device, name=row.name
        )
        test_seconds = time.perf_counter() - started
        tokens = (
            0.0
            if grids is None
            else float(np.mean(list(map(len, bpe.encode_batch([*grids.values()])))))
        )
        seconds = json.loads((checkpoint / "training.json").read_text())["seconds"]
        target.mkdir()
        result = Result(
            row.name, scores, tokens, steps["pretrain"], steps["sft"], seconds, test_seconds
        )
        (target / "result.json").write_text(result.to_json())
        (target / "answers.jsonl").write_text("".join(json.dumps(text) + "\n" for text in answers))

    tested = work.make(f"{part}/test", build_result)
    return Result(**json.loads((tested / "result.json").read_text()))
