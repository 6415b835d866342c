"""A tokenized folder as a stream: the rows of the mapped one; damage named by shard and row; from a bucket."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle

import datasets
import numpy as np
import pyarrow as pa
import pytest
from data_fixtures import make_checkpoint, make_codes, make_rows, write_rows

from being_vl import BeingVLProcessor, BeingVLTokenizer
from being_vl.cli import main as being_vl_command
from being_vl.data import load_tokenized, load_training_data, stream_tokenized
from being_vl.data.tokenized import FEATURES


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and a folder of ten samples in four shards that `being-vl tokenize` made."""
    folder = tmp_path_factory.mktemp("streaming")
    make_checkpoint(folder / "checkpoint")
    names = list(make_codes(folder / "codes"))
    write_rows(folder / "samples.jsonl", make_rows(names))
    command = ["tokenize", "--checkpoint", folder / "checkpoint", "--codes", folder / "codes"]
    command += ["--data", folder / "samples.jsonl", "--output", folder / "rows", "--shard-size", 3]
    assert being_vl_command([*map(str, command), "--workers", "0"]) == 0
    return folder


@pytest.fixture
def rows(made, tmp_path):
    """A copy of the folder, to be damaged; and its shards."""
    folder = tmp_path / "rows"
    folder.mkdir()
    for path in (made / "rows").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder, sorted(folder.glob("*.arrow"))


def tokenizer(made):
    return BeingVLTokenizer.from_pretrained(made / "checkpoint")


def same_rows(stream, mapped):
    for row, wanted in zip(stream.rows, mapped, strict=True):
        assert row["id"] == wanted["id"]
        for name, kind in (("input_ids", np.int32), ("assistant_masks", np.int8)):
            assert row[name].dtype == kind and row[name].tolist() == wanted[name]


def test_the_rows_are_those_of_the_mapped_folder(made):
    processor = BeingVLProcessor.from_pretrained(made / "checkpoint")
    stream = stream_tokenized(made / "rows", processor, verify=True)
    mapped = load_tokenized(made / "rows", processor)
    same_rows(stream, mapped)
    assert stream.rows.num_shards == len(stream.shards) == 4
    assert stream.samples_of(0, 1) == len(mapped) == 10
    assert [stream.samples_of(rank, 3) for rank in range(3)] == [4, 3, 3]
    for rank in range(3):
        own = list(stream.rows.shard(3, rank, contiguous=False))
        assert len(own) == stream.samples_of(rank, 3)
    # A row holds its own ids, and nothing of the shard around it.
    row = next(iter(stream.rows))
    assert row["input_ids"].base is None and len(pickle.dumps(row)) < 5000


def test_a_position_in_the_stream_can_be_kept(made):
    """`state_dict` of datasets, for loops of one's own, without a shuffle."""
    stream = stream_tokenized(made / "rows", tokenizer(made))
    whole = [row["id"] for row in stream.rows]
    for number, _ in enumerate(stream.rows, 1):
        if number == 5:
            state = stream.rows.state_dict()
            break
    again = stream_tokenized(made / "rows", tokenizer(made)).rows
    again.load_state_dict(state)
    assert [row["id"] for row in again] == whole[5:]


def _rewritten(shard, change):
    """The shard with one column of its first batch changed, and as many bytes in the manifest."""
    with pa.ipc.open_stream(shard.read_bytes()) as stream:
        table = stream.read_all()
    name, values = change(table)
    number = table.column_names.index(name)
    table = table.set_column(number, table.schema.field(number), values)
    with pa.ipc.new_stream(str(shard), table.schema) as writer:
        writer.write_table(table)
    manifest = shard.parent / "tokenized.json"
    size = os.path.getsize(shard)
    content = json.loads(manifest.read_text())
    (said,) = [s for s in content["shards"] if s["file"] == shard.name]
    said["bytes"] = size
    manifest.write_text(json.dumps(content))


def _with_id(value):
    def change(table):
        lists = table["input_ids"].to_pylist()
        lists[1][2] = value
        return "input_ids", pa.array(lists, FEATURES.arrow_schema.field("input_ids").type)

    return change


def _with_short_mask(table):
    lists = table["assistant_masks"].to_pylist()
    lists[1].pop()
    return "assistant_masks", pa.array(lists, FEATURES.arrow_schema.field("assistant_masks").type)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_with_id(10**6), r"row 1 \(id 'r7'\): input_ids must be in \[0, \d+\), got 1000000"),
        (_with_id(-1), r"row 1 \(id 'r7'\): input_ids must be in \[0, \d+\), got -1"),
        (_with_id(None), "input_ids must not be null"),
        (_with_short_mask, r"row 1 \(id 'r7'\): length is \d+, but assistant_masks has"),
    ],
)
def test_a_row_that_cannot_be_is_named_when_the_stream_comes_to_it(made, rows, change, message):
    folder, shards = rows
    _rewritten(shards[2], change)
    stream = iter(stream_tokenized(folder, tokenizer(made)).rows)
    assert [next(stream)["id"] for _ in range(6)] == [f"r{i}" for i in range(6)]
    with pytest.raises(ValueError, match=message) as error:
        list(stream)
    assert shards[2].name in str(error.value)


def test_a_damaged_shard_is_named(made, rows):
    folder, shards = rows
    whole = shards[1].read_bytes()
    changed = bytearray(whole)
    changed[-40] ^= 1
    shards[1].write_bytes(changed)
    with pytest.raises(ValueError, match=f"{shards[1].name}: its sha256 is"):
        list(stream_tokenized(folder, tokenizer(made), verify=True).rows)
    shards[1].write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"{shards[1].name}: has \d+ bytes, {len(whole)} were"):
        list(stream_tokenized(folder, tokenizer(made)).rows)
    shards[1].write_bytes(b"x" * len(whole))
    with pytest.raises(ValueError, match=f"{shards[1].name}: not a readable shard"):
        list(stream_tokenized(folder, tokenizer(made)).rows)
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"{shards[1].name}: is listed in .* but missing"):
        list(stream_tokenized(folder, tokenizer(made)).rows)


@pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("s3fs", "upath", "moto", "flask"))),
    reason="needs s3fs and moto; .ci/cluster installs them",
)
def test_shards_in_a_bucket(made, monkeypatch, tmp_path):
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        store = s3fs.S3FileSystem(use_listings_cache=False)
        store.mkdir("rows")
        store.put(str(made / "rows"), "rows/ids", recursive=True)
        stream = stream_tokenized("s3://rows/ids", tokenizer(made), verify=True)
        same_rows(stream, load_tokenized(made / "rows", tokenizer(made)))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        same_rows(stream, load_training_data("s3://rows/ids", tokenizer(made)))
        train = ["train", "--checkpoint", str(made / "checkpoint"), "--streaming", "--use_cpu"]
        train += ["--max_steps", "2", "--save_strategy", "no", "--report_to", "none"]
        for name, data in (("store", "s3://rows/ids"), ("disk", str(made / "rows"))):
            assert (
                being_vl_command([*train, "--data", data, "--output_dir", str(tmp_path / name)])
                == 0
            )
        one, other = (tmp_path / name / "model.safetensors" for name in ("store", "disk"))
        assert one.read_bytes() == other.read_bytes()
    finally:
        server.stop()
