"""What is recorded of a part is compared where parts meet; positions count as names only where they mean the
same; shards are as they were written."""

from __future__ import annotations

import json
import os

import datasets
import numpy as np
import pyarrow as pa
import pytest
from checkpoint_fixtures import tiny_checkpoint
from data_fixtures import make_checkpoint, make_codes, make_rows, write_rows
from PIL import Image

from being_vl import BeingVLProcessor
from being_vl.cli import main as being_vl_command
from being_vl.data import (
    TokenizeSettings,
    load_tokenized,
    load_training_data,
    open_samples,
    tokenize_samples,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("identity") / "checkpoint")


def tokenize(checkpoint, data, codes, output, *flags) -> int:
    return being_vl_command(
        ["tokenize", "--checkpoint", str(checkpoint), "--data", str(data), "--codes", str(codes),
         "--output", str(output), "--workers", "0", *flags]
    )  # fmt: skip


def folder(tmp_path, *, quantizer=None):
    processor = tiny_checkpoint()[1]
    grids = make_codes(tmp_path / "codes", quantizer=quantizer)
    source = open_samples(str(write_rows(tmp_path / "rows.json", make_rows(list(grids), 10))))
    tokenize_samples(
        source, processor, tmp_path / "out", TokenizeSettings(source="x", shard_size=4), checkpoint="",
        codes=[str(tmp_path / "codes")], accept_mismatch=["quantizer"],
    )  # fmt: skip
    return processor, tmp_path / "out"


# ---- parts


def test_codes_of_another_quantizer_are_refused_where_they_meet_a_checkpoint(
    checkpoint, tmp_path, capsys
):
    grids = make_codes(tmp_path / "codes", quantizer="another")
    data = write_rows(tmp_path / "rows.json", make_rows(list(grids)))
    assert tokenize(checkpoint, data, tmp_path / "codes", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "made with another quantizer: it is another, here it is sha256:" in error
    assert "--accept-mismatch quantizer" in error
    with pytest.warns(UserWarning, match="it is another, here it is sha256:.*accepted"):
        status = tokenize(
            checkpoint, data, tmp_path / "codes", tmp_path / "out", "--accept-mismatch", "quantizer"
        )
    assert status == 0
    # train compares once more: the flag of one command says nothing to the other
    processor = BeingVLProcessor.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="made with another quantizer: it is another"):
        load_training_data(tmp_path / "out", processor)
    with pytest.warns(UserWarning, match="accepted"):
        load_training_data(tmp_path / "out", processor, accept_mismatch=["quantizer"])


def test_a_checkpoint_saved_and_loaded_is_the_same_parts(checkpoint, tmp_path):
    processor, out = folder(tmp_path)
    again = BeingVLProcessor.from_pretrained(checkpoint)
    assert len(load_training_data(out, processor)) == len(load_training_data(out, again)) == 10


def test_another_chat_template_is_refused_at_training(tmp_path):
    processor, out = folder(tmp_path)
    processor.chat_template = processor.chat_template + " "
    with pytest.raises(
        ValueError, match=r"made with another chat_template: it is sha256:.*, here it is sha256:"
    ):
        load_training_data(out, processor)
    with pytest.warns(UserWarning, match="another chat_template"):
        load_training_data(out, processor, accept_mismatch=["chat_template"])


def test_preprocessing_is_part_of_the_quantizer(tmp_path):
    processor, out = folder(tmp_path)
    processor.image_processor.image_mean = [0.1, 0.2, 0.3]
    with pytest.raises(ValueError, match="made with another quantizer"):
        load_training_data(out, processor)


# ---- positions


def pictures(folder, order):
    rows = [
        {"image": Image.fromarray(np.full((16, 16, 3), 20 * i, np.uint8)),
         "messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": f"{i}"}]}
        for i in order
    ]  # fmt: skip
    features = datasets.Features(
        {"image": datasets.Image(),
         "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}]}
    )  # fmt: skip
    datasets.Dataset.from_list(rows, features=features).save_to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def encoded(checkpoint, tmp_path_factory):
    root = tmp_path_factory.mktemp("positions")
    pictures(root / "a", range(6))
    command = ["encode", "--data", str(root / "a"), "--quantizer", str(checkpoint / "vq_model"),
               "--image-processor", str(checkpoint), "--output", str(root / "codes")]  # fmt: skip
    assert being_vl_command(command) == 0
    return root


def test_the_same_data_set_or_a_copy_of_it_goes_through(checkpoint, encoded, tmp_path):
    copy = tmp_path / "copy"
    datasets.load_from_disk(encoded / "a").map(lambda row: row).save_to_disk(copy)
    for data, name in ((encoded / "a", "one"), (copy, "two")):
        assert tokenize(checkpoint, data, encoded / "codes", tmp_path / name) == 0


@pytest.mark.parametrize(
    "order", [[1, 0, 2, 3, 4, 5], range(5), [5] * 6], ids=["other order", "fewer", "other rows"]
)
def test_rows_of_another_data_set_are_not_taken_for_its_images(
    checkpoint, encoded, tmp_path, capsys, order
):
    other = pictures(tmp_path / "b", order)
    assert tokenize(checkpoint, other, encoded / "codes", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "made with another positions" in error and "--id-column" in error
    with pytest.warns(UserWarning, match="accepted"):
        tokenize(
            checkpoint, other, encoded / "codes", tmp_path / "out", "--accept-mismatch", "positions"
        )


# ---- shards


def test_a_truncated_shard_is_named_before_anything_is_read(tmp_path):
    processor, out = folder(tmp_path)
    shard = out / "data-00001-of-00003.arrow"
    os.truncate(shard, shard.stat().st_size - 64)
    with pytest.raises(
        ValueError, match=r"data-00001-of-00003.arrow: has \d+ bytes, \d+ were written"
    ):
        load_tokenized(out, processor)


def test_features_that_are_none_are_named_with_the_shard(tmp_path):
    """`datasets` reads them as JSON, whose errors name no file."""
    processor, out = folder(tmp_path)
    shard = out / "data-00001-of-00003.arrow"
    damaged = shard.read_bytes().replace(b'"length": {"dtype"', b'"length\x02: {"dtype"')
    assert damaged != shard.read_bytes()
    shard.write_bytes(damaged)
    with pytest.raises(ValueError, match=f"{shard}: not a readable shard: "):
        load_tokenized(out, processor)


def test_one_flipped_bit_is_found_on_request(tmp_path):
    processor, out = folder(tmp_path)
    shard = out / "data-00002-of-00003.arrow"
    data = bytearray(shard.read_bytes())
    data[-200] ^= 1
    shard.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"data-00002-of-00003.arrow: its sha256 is [0-9a-f]{64}, [0-9a-f]{64} was"
    ):
        load_tokenized(out, processor, verify=True)


def test_a_damaged_shard_is_not_taken_for_a_finished_one(checkpoint, tmp_path, capsys):
    grids = make_codes(tmp_path / "codes")
    data = write_rows(tmp_path / "rows.json", make_rows(list(grids), 10))
    arguments = (checkpoint, data, tmp_path / "codes", tmp_path / "out", "--shard-size", "4")
    assert tokenize(*arguments) == 0
    shard = tmp_path / "out/data-00000-of-00003.arrow"
    os.truncate(shard, shard.stat().st_size - 64)
    capsys.readouterr()
    assert tokenize(*arguments) == 2
    assert "data-00000-of-00003.arrow: has" in capsys.readouterr().err
    shard.unlink()
    assert tokenize(*arguments) == 0
    capsys.readouterr()
    assert tokenize(*arguments) == 0
    assert "finished before; nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shards": [{"file": "../x.arrow", "samples": 1, "bytes": 1, "sha256": ""}]}, "must be a file of the folder"),
        ({"shards": [{"file": 3}]}, r"shards\[0\].file must be str, got 3"),
        ({"shards": "x"}, "shards must be a list, got 'x'"),
        ({"parts": None}, "parts must be a dict"),
        ({"shards": [{"file": "gone.arrow", "samples": 1, "bytes": 1, "sha256": ""}]}, "gone.arrow: is listed in"),
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_named(tmp_path, change, words):
    processor, out = folder(tmp_path)
    manifest = json.loads((out / "tokenized.json").read_text())
    (out / "tokenized.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(ValueError, match=words):
        load_tokenized(out, processor)


@pytest.mark.parametrize(
    "report",
    [{}, [], {"samples": "three", "skipped": []}, {"samples": True, "skipped": []}, "text"],
)
def test_wrong_types_in_the_metadata_of_a_shard_are_named(tmp_path, report):
    from being_vl.data.tokenized import read_report

    path = tmp_path / "data-00000-of-00001.arrow"
    schema = pa.schema([("id", pa.string())], metadata={b"being_vl.tokenized": json.dumps(report)})
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema):
        pass
    with pytest.raises(
        ValueError, match=r"data-00000-of-00001\.arrow: not a shard of being-vl tokenize"
    ):
        read_report(path)
