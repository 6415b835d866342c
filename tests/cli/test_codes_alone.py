"""Codes of a foreign quantizer, as files of arrays: train-bpe, init without a quantizer, tokenize, a step of training."""

from __future__ import annotations

import io
import json
import tarfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_fixtures import smollm_tokenizer, text_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from being_vl.cli import main

CODES = 40
GRIDS = np.random.default_rng(0).integers(0, CODES, (5, 3, 4))


def to_npy(path):
    np.save(path, GRIDS)


def to_pt(path):
    torch.save(torch.from_numpy(GRIDS), path)


def to_parquet(path):
    ids = [str(number) for number in range(len(GRIDS))]
    pq.write_table(pa.table({"id": ids, "codes": GRIDS.tolist()}), path)


def to_tar(path):
    with tarfile.open(path, "w") as archive:
        for number, grid in enumerate(GRIDS):
            buffer = io.BytesIO()
            np.save(buffer, grid)
            member = tarfile.TarInfo(f"{number}.npy")
            member.size = buffer.tell()
            archive.addfile(member, io.BytesIO(buffer.getvalue()))


FORMS = {"npy": to_npy, "pt": to_pt, "parquet": to_parquet, "tar": to_tar}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of each form, a base, conversations about the images, a vocabulary and a checkpoint of the .npy."""
    folder = tmp_path_factory.mktemp("foreign")
    for suffix, write in FORMS.items():
        write(folder / f"codes.{suffix}")
    tokenizer = smollm_tokenizer()
    tokenizer.save_pretrained(folder / "base")
    text_model(tokenizer).save_pretrained(folder / "base")
    said = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
    chats = [{"id": i, "image": str(i), "conversations": said} for i in range(len(GRIDS))]
    (folder / "chats.json").write_text(json.dumps(chats))
    assert train_bpe(folder, "npy") == 0
    size = ["--codebook-size", str(CODES), "--bpe", f"{folder}/bpe-npy"]
    assert main(["init", "--base", f"{folder}/base", *size, "--output", f"{folder}/start"]) == 0
    return folder


def train_bpe(folder, suffix):
    given = ["--codes", f"{folder}/codes.{suffix}", "--codebook-size", str(CODES)]
    return main(["train-bpe", *given, "--num-merges", "6", "--output", f"{folder}/bpe-{suffix}"])


@pytest.mark.parametrize("suffix", FORMS)
def test_each_form_gives_the_same_vocabulary_and_ids(folder, suffix):
    assert suffix == "npy" or train_bpe(folder, suffix) == 0
    files = [(folder / f"bpe-{name}/image_bpe.json").read_bytes() for name in ("npy", suffix)]
    assert files[0] == files[1]
    data = ["--data", f"{folder}/chats.json", "--codes", f"{folder}/codes.{suffix}"]
    rows = f"{folder}/rows-{suffix}"
    made = ["--checkpoint", f"{folder}/start", *data, "--workers", "1", "--output", rows]
    assert main(["tokenize", *made]) == 0
    (file,) = (folder / f"rows-{suffix}").glob("data-*.arrow")
    processor = AutoProcessor.from_pretrained(folder / "start")
    layout, bpe = processor.tokenizer.layout, processor.tokenizer.image_bpe
    for row in datasets.Dataset.from_file(str(file)):
        ids = np.array(row["input_ids"])
        visual = ids[(ids >= layout.first_code_id) & (ids < layout.size)] - layout.first_code_id
        assert np.array_equal(bpe.decode(visual, 3, 4), GRIDS[int(row["image_ids"][0])])


def test_a_step_of_training_and_an_answer(folder):
    data = ["--data", f"{folder}/chats.json", "--codes", f"{folder}/codes.npy", "--workers", "1"]
    checkpoint = ["--checkpoint", f"{folder}/start"]
    assert main(["tokenize", *checkpoint, *data, "--output", f"{folder}/rows"]) == 0
    run = ["--data", f"{folder}/rows", "--stage", "sft", "--max_steps", "1", "--use_cpu", "true"]
    run += ["--bf16", "false", "--report_to", "none", "--output_dir", f"{folder}/trained"]
    assert main(["train", *checkpoint, *run]) == 0
    processor = AutoProcessor.from_pretrained(folder / "trained")
    model = AutoModelForImageTextToText.from_pretrained(folder / "trained")
    batch = processor(text="<image> What?", image_codes=[GRIDS[0]], return_tensors="pt")
    answer = model.generate(**batch, max_new_tokens=3)
    assert answer.shape[1] > batch["input_ids"].shape[1]
    with pytest.raises(ValueError, match="pass image_codes instead of images"):
        processor(text="<image>", images=torch.zeros(3, 8, 8))


@pytest.mark.parametrize(
    ("codes", "flags", "message"),
    [
        (np.zeros((5, 32), int), ["--codebook-size", "8"], "reshape to (5, 1, 32)"),
        (GRIDS, ["--codebook-size", str(1 << 32)], "codebook_size must lie in [1, 1048576], got 4294967296; split"),
        (np.zeros((1, 1, 70_000), np.int8), ["--codebook-size", "8"], "cut a longer sequence"),
        (GRIDS, [], "needs --codebook-size"),
        (GRIDS, ["--codebook-size", "8"], "[0, 8)"),
    ],
)  # fmt: skip
def test_what_cannot_be_learned_from_is_one_sentence(tmp_path, capsys, codes, flags, message):
    np.save(tmp_path / "codes.npy", codes)
    given = ["--codes", str(tmp_path / "codes.npy"), *flags, "--output", str(tmp_path / "bpe")]
    assert main(["train-bpe", *given]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --quantizer, or --codebook-size"),
        (["--codebook-size", "41"], "--codebook-size is 41, but"),
    ],
)
def test_init_without_a_quantizer_asks_for_its_codes(folder, tmp_path, capsys, flags, message):
    given = ["--base", f"{folder}/base", "--bpe", f"{folder}/bpe-npy", *flags]
    assert main(["init", *given, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
