"""What every cell starts from: a text model, a quantizer, codes, merges, rows; or easy-VQA's own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from ...bpe.image_bpe import ImageBPE
from ...codes.shards import CodeShards
from ...data.codes import build_index
from ...data.conversations import parse_sample
from ...data.sources import iter_samples, open_samples
from ...evaluation.easyvqa_files import write_easyvqa
from ..commands import Commands, make_part
from ..easyvqa_parts import fit_patch_quantizer, make_text_model, read_turns


@dataclass(frozen=True)
class Inputs:
    """Paths of what all cells share."""

    base: str  # text model and tokenizer, a folder or Hub id
    vq: str  # quantizer, a folder or Hub id
    codes: tuple[str, ...]  # code shards of all images
    # Folder of an image_bpe.json with the most merges that a cell has: its first are the smaller vocabularies.
    bpe: str
    pretrain: str  # rows of the first stage
    sft: str  # rows of the second
    test: str  # rows to score on: one image and one question each


def image_codes(
    codes: Sequence[str], index: Path, names: Iterable[str], rows: str
) -> tuple[dict[str, np.ndarray], int]:
    """The codes of the images that rows name, by way of an index in a file; and the codebook's size."""
    found, shards = build_index(codes, index)
    grids = found.lookup(names)
    if (missing := next((name for name in names if name not in grids), None)) is not None:
        raise ValueError(f"{rows}: image {missing!r}: no codes for this image")
    return grids, shards.codebook_size


def train_vocabulary(codes: Sequence[str], rows: str, merges: int, folder: Path) -> str:
    """Learn merges on the images of the training rows alone; returns the folder of image_bpe.json."""

    def build(target: Path) -> None:
        names = dict.fromkeys(
            image_id
            for number, where, row in iter_samples(open_samples(rows))
            for image_id in parse_sample(row, where=where, number=number).image_ids
        )
        with TemporaryDirectory() as aside:
            grids, codebook_size = image_codes(codes, Path(aside) / "index.npy", names, rows)
        bpe = ImageBPE.train(list(grids.values()), merges, codebook_size)
        bpe.save_pretrained(target)

    return str(make_part(folder / f"image_bpe-{merges}", build))


def easyvqa_inputs(
    command: Commands,
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
    """

    def build_files(target: Path) -> None:
        write_easyvqa(target, splits=["train"], images=train_images, seed=seed)
        write_easyvqa(target, splits=[test], images=test_images, seed=seed)

    def build_text_model(target: Path) -> None:
        questions, answers = read_turns(files / "train.json")
        prompts, captions = read_turns(files / "train-captions.json")
        texts = [list(dict.fromkeys(said)) for said in (questions, answers, prompts, captions)]
        make_text_model([text for said in texts for text in said], target, seed=seed)

    files = make_part(folder / "easy-vqa", build_files)
    images, vq, codes = files / "images", folder / "vq_model", folder / "codes"
    make_part(vq, lambda target: fit_patch_quantizer(images / "train", target, seed=seed))
    command(
        "encode", unless=codes / "manifest.json",
        **{"images": images, "quantizer": vq, "output": codes, "device": "cpu", "workers": 0},
    )  # fmt: skip
    base = make_part(folder / "text_model", build_text_model)
    train, captions = str(files / "train.json"), str(files / "train-captions.json")
    bpe = train_vocabulary([str(codes)], train, merges, folder)
    return Inputs(
        str(base), str(vq), (str(codes),), bpe, captions, train, str(files / f"{test}.json")
    )


def check_inputs(inputs: Inputs, merges: int) -> None:
    """Fail early on what no cell could use."""
    bpe = ImageBPE.from_pretrained(inputs.bpe)
    if bpe.num_merges < merges:
        raise ValueError(f"{inputs.bpe}: must have at least {merges} merges, got {bpe.num_merges}")
    for codes in inputs.codes:
        found = CodeShards(codes).codebook_size
        if found != bpe.codebook_size:
            raise ValueError(
                f"{codes}: codebook_size must be {bpe.codebook_size}, as in image_bpe.json, got {found}"
            )
