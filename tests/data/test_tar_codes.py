"""`being-vl encode --format webdataset`: whatever reads codes reads the tars as it reads parquet."""

from __future__ import annotations

import json

import datasets
import numpy as np
import pytest
from data_fixtures import make_checkpoint, make_rows, write_rows
from encode_fixtures import make_images, shard_bytes

from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import CodeShards
from being_vl.data import TokenizeConversations
from being_vl.hub.card import card_text
from being_vl.hub.folder import folder_kind

FORMATS = ("parquet", "webdataset")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a checkpoint, images, and their codes in both formats."""
    folder = tmp_path_factory.mktemp("codes")
    make_checkpoint(folder / "checkpoint")
    names = make_images(folder / "images", 10)
    (folder / "images" / "a" / "broken.png").write_bytes(b"no picture")
    write_rows(folder / "samples.json", make_rows(names))
    for name in FORMATS:
        assert encode(folder, name, "--format", name) == 0
    return folder


def encode(made, output, *options):
    command = ["encode", "--quantizer", made / "checkpoint" / "vq_model", "--images"]
    command += [made / "images", "--output", made / output, "--device", "cpu", "--workers", "0"]
    command += ["--shard-size", "4", "--on-error", "skip", *options]
    return being_vl_command([str(part) for part in command])


def test_the_folder_is_that_of_parquet_but_for_the_files(made):
    parquet, tars = CodeShards(made / "parquet"), CodeShards(made / "webdataset", verify=True)
    assert {file.suffix for file in tars.files} == {".tar"} and len(tars.files) == 3
    assert tars.image_ids() == parquet.image_ids()
    assert (tars.quantizer, tars.codebook_size) == (parquet.quantizer, parquet.codebook_size)
    for one, other in zip(tars, parquet, strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (json.loads((made / name / "manifest.json").read_text()) for name in FORMATS)
    for manifest in (one, other):
        for shard in manifest["shards"]:
            del shard["file"], shard["bytes"], shard["sha256"]
    assert one == other and one["skipped"] == 1
    assert folder_kind(made / "webdataset") == "codes"
    card = card_text(made / "webdataset")
    assert "data_files: codes-*.tar" in card and "codes.npy: rows of codes" in card
    rows = datasets.load_dataset(str(made / "webdataset"), split="train")
    assert [row["image_id"] for row in rows["json"]] == parquet.image_ids()


def test_what_reads_codes_gives_the_same_from_both(made, tmp_path, capsys):
    found = {}
    for name in FORMATS:
        codes, out = str(made / name), tmp_path / name
        train = ["train-bpe", "--codes", codes, "--num-merges", "8", "--verify"]
        assert being_vl_command([*train, "--output", str(out / "bpe")]) == 0
        single = CodeShards(codes).files[0]
        assert (
            being_vl_command([*train[:-1], "--codes", str(single), "--output", str(out / "one")])
            == 0
        )
        ids = ["tokenize", "--checkpoint", str(made / "checkpoint"), "--codes", codes, "--verify"]
        ids += ["--data", str(made / "samples.json"), "--output", str(out / "ids")]
        assert being_vl_command([*ids, "--workers", "0"]) == 0
        capsys.readouterr()
        stats = ["stats", str(out / "bpe"), "--codes", codes, "--verify", "--json"]
        assert being_vl_command(stats) == 0
        figures = json.loads(capsys.readouterr().out)
        samples = json.loads((made / "samples.json").read_text())
        columns = {
            key: [row.get(key) for row in samples] for key in ("id", "image", "conversations")
        }
        called = TokenizeConversations(str(made / "checkpoint"), codes=[codes])(columns)
        found[name] = (
            (out / "bpe" / "image_bpe.json").read_bytes(),
            (out / "one" / "image_bpe.json").read_bytes(),
            (out / "ids" / "data-00000-of-00001.arrow").read_bytes(),
            {key: value for key, value in figures.items() if key != "codes"},
            [np.asarray(row).tolist() for row in called["input_ids"]],
        )
    assert found["webdataset"] == found["parquet"]


def test_what_is_gone_is_made_again_with_the_same_bytes(made, tmp_path):
    output = tmp_path / "out"
    assert encode(made, output, "--format", "webdataset") == 0
    wanted = shard_bytes(made / "webdataset")
    assert shard_bytes(output) == wanted
    last = sorted(output.glob("*.tar"))[-1]
    last.unlink()
    (output / "manifest.json").unlink()
    with pytest.raises(ValueError, match="has not finished here"):
        CodeShards(output)
    assert encode(made, output, "--format", "webdataset") == 0
    assert shard_bytes(output) == wanted


def test_formats_are_not_mixed_and_a_changed_byte_is_found(made, tmp_path, capsys):
    assert encode(made, "webdataset") == 2
    assert "format is webdataset, but this run's is parquet" in capsys.readouterr().err
    output = tmp_path / "out"
    assert encode(made, output, "--format", "webdataset") == 0
    tar = sorted(output.glob("*.tar"))[0]
    content = bytearray(tar.read_bytes())
    content[content.index(b'"quantizer": "sha256:') + 30] ^= 1
    tar.write_bytes(content)
    assert len(CodeShards(output)) == 10
    with pytest.raises(ValueError, match="its sha256 is"):
        CodeShards(output, verify=True)
