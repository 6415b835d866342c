"""What every cell starts from: a text model, a quantizer, codes, merges, rows; or easy-VQA's own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, TrainingArguments

from ...bpe.image_bpe import ImageBPE
from ...codes.shards import CodeShards, ShardInfo, write_shard
from ...data.codes import build_index
from ...data.conversations import parse_sample
from ...data.sources import iter_samples, open_samples
from ...evaluation.easyvqa_files import write_easyvqa
from ...hub.checkpoint import default_image_processor
from ...quantizers.image_loading import load_image
from ...quantizers.modeling_being_vl_patch_vq import BeingVLPatchVQConfig, BeingVLPatchVQModel
from ..quickstart.pipeline import encode_images
from ..quickstart.settings import make_part
from ..quickstart.text_model import train_text_model, train_text_tokenizer

CODEBOOK_SIZE = 256
TEXT_STEPS = 80


@dataclass(frozen=True)
class Inputs:
    """Paths of what all cells share.

    Args:
        base: text model and tokenizer, a folder or Hub id.
        vq: quantizer, a folder or Hub id.
        codes: code shards of all images.
        bpe: folder of an `image_bpe.json` with at least the most merges that a cell has; its first rules
            are the smaller vocabularies.
        pretrain: rows of the first stage.
        sft: rows of the second.
        test: rows to score on: one image and one question each.
    """

    base: str
    vq: str
    codes: tuple[str, ...]
    bpe: str
    pretrain: str
    sft: str
    test: str


def train_vocabulary(codes: Sequence[str], rows: str, merges: int, folder: Path) -> str:
    """Learn merges on the images of the training rows alone; returns the folder of image_bpe.json."""

    def build(target: Path) -> None:
        names = dict.fromkeys(
            image_id
            for number, where, row in iter_samples(open_samples(rows))
            for image_id in parse_sample(row, where=where, number=number).image_ids
        )
        index, shards = build_index(codes, target.parent / "index.npy")
        grids = index.lookup(names)
        missing = [name for name in names if name not in grids]
        if missing:
            raise ValueError(f"{rows}: image {missing[0]!r}: no codes for this image")
        bpe = ImageBPE.train(
            list(grids.values()), num_merges=merges, codebook_size=shards.codebook_size
        )
        bpe.save_pretrained(target)

    return str(make_part(folder / f"image_bpe-{merges}", build))


def easyvqa_inputs(
    folder: Path,
    *,
    train_images: int | None,
    test_images: int | None,
    merges: int,
    test: str,
    seed: int,
) -> Inputs:
    """easy-VQA with a patch quantizer and a small text model, made here as the quickstart makes them.

    Quantizer, merges and text model see the training images' data alone.

    Args:
        folder: keeps the parts.
        train_images, test_images: how many images of each split; all by default.
        merges: the most that a cell has.
        test: the split to score on, `"validation"` or `"test"`.
        seed: of quantizer, text model and validation split.
    """

    def build_files(target: Path) -> None:
        target.mkdir()
        write_easyvqa(target, splits=["train"], images=train_images, seed=seed)
        write_easyvqa(target, splits=[test], images=test_images, seed=seed)

    files = make_part(folder / "easy-vqa", build_files)

    def build_vq(target: Path) -> None:
        pixels = default_image_processor(config)(
            list(_pixels(files, "train")[1]), return_tensors="pt"
        )
        model = BeingVLPatchVQModel(config)
        model.fit(pixels["pixel_values"], seed=seed)
        model.save_pretrained(target)

    config = BeingVLPatchVQConfig(num_embeddings=CODEBOOK_SIZE, patch_size=4, resolution=64)
    vq = make_part(folder / "vq_model", build_vq)

    def build_codes(target: Path) -> None:
        target.mkdir()
        model = AutoModel.from_pretrained(vq).eval()
        for split in ("train", test):
            names, pixels = _pixels(files, split)
            info = ShardInfo(codebook_size=model.config.num_embeddings)
            write_shard(
                target / f"{split}.parquet", names, list(encode_images(model, pixels)), info
            )

    codes = make_part(folder / "codes", build_codes)

    def build_text_model(target: Path) -> None:
        texts = _texts(files)
        tokenizer = train_text_tokenizer(texts)
        arguments = TrainingArguments(
            output_dir=str(target.parent / "trainer"), max_steps=TEXT_STEPS, learning_rate=1e-3,
            per_device_train_batch_size=8, lr_scheduler_type="cosine", warmup_steps=0.05,
            adam_beta2=0.98, weight_decay=0.01, save_strategy="no", report_to="none",
            disable_tqdm=True, seed=seed, use_cpu=True, dataloader_pin_memory=False,
            remove_unused_columns=False,
        )  # fmt: skip
        model = train_text_model(tokenizer, texts, arguments)
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)

    base = make_part(folder / "text_model", build_text_model)
    train, captions = str(files / "train.json"), str(files / "train-captions.json")
    bpe = train_vocabulary([str(codes)], train, merges, folder)
    return Inputs(
        str(base), str(vq), (str(codes),), bpe, captions, train, str(files / f"{test}.json")
    )


def check_inputs(inputs: Inputs, merges: int) -> None:
    """Fail early on what no cell could use.

    Raises:
        ValueError: too few merges, or codes of another codebook.
    """
    bpe = ImageBPE.from_pretrained(inputs.bpe)
    if bpe.num_merges < merges:
        raise ValueError(f"{inputs.bpe}: must have at least {merges} merges, got {bpe.num_merges}")
    for codes in inputs.codes:
        found = CodeShards(codes).codebook_size
        if found != bpe.codebook_size:
            raise ValueError(f"{codes}: codebook_size must be {bpe.codebook_size}, got {found}")


def _pixels(files: Path, split: str) -> tuple[list[str], np.ndarray]:
    """Names and pictures of a split, uint8 (N, 64, 64, 3)."""
    paths = sorted((files / "images" / split).iterdir(), key=lambda path: int(path.stem))
    pictures = [np.asarray(load_image(path).convert("RGB")) for path in paths]
    return [f"{split}/{path.name}" for path in paths], np.stack(pictures)


def _texts(files: Path) -> list[str]:
    """All that is said in the training rows, without the images."""
    return list(dict.fromkeys(_said(files / "train.json"))) + list(
        dict.fromkeys(_said(files / "train-captions.json"))
    )


def _said(path: Path) -> Iterator[str]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())
    for row in rows:
        for turn in row["conversations"]:
            yield turn["value"].removeprefix("<image>\n")
