"""The parquet format of code grids."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from checkpoint_fixtures import smollm_tokenizer, text_model
from hypothesis import given, settings
from hypothesis import strategies as st

from being_vl.bpe import ImageBPE
from being_vl.cli import main
from being_vl.codes.shards import (
    CodeShards,
    SampledShards,
    ShardInfo,
    code_type,
    read_info,
    write_shard,
)
from being_vl.files import file_entry
from being_vl.hub.checkpoint import init_checkpoint, save_checkpoint

ROWS = st.lists(
    st.tuples(st.text(max_size=8), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1)),
    max_size=6,
)


def _grids(rows, codebook_size, dtype=np.int64):
    return [
        np.random.default_rng(seed).integers(0, codebook_size, (h, w)).astype(dtype)
        for _, h, w, seed in rows
    ]


@settings(max_examples=60, deadline=None)
@given(
    shards=st.lists(ROWS, min_size=1, max_size=3),
    codebook_size=st.sampled_from([1, 256, 8192, 32768, 32769, 65536, 70000]),
)
def test_what_is_written_is_read(tmp_path_factory, shards, codebook_size):
    folder = tmp_path_factory.mktemp("shards")
    for i, rows in enumerate(shards):
        grids = _grids(rows, codebook_size)
        write_shard(
            folder / f"{i}.parquet", [row[0] for row in rows], grids, ShardInfo(codebook_size)
        )
    read = CodeShards(folder, cached_shards=1)
    expected = [grid for rows in shards for grid in _grids(rows, codebook_size)]
    assert len(read) == len(expected)
    assert read.image_ids() == [row[0] for rows in shards for row in rows]
    assert read.num_cells == sum(grid.size for grid in expected)
    for got, again, want in zip(read, [read[i] for i in range(len(read))], expected, strict=True):
        assert got.dtype == read.dtype == np.dtype(code_type(codebook_size).to_pandas_dtype())
        np.testing.assert_array_equal(got, want)
        np.testing.assert_array_equal(again, want)


def test_equal_input_gives_equal_bytes_and_metadata_survives(tmp_path):
    info = ShardInfo(9, "sha256:q", "sha256:s", False, ((1, "b", "broken"),))
    for name in ("x", "y"):
        write_shard(tmp_path / name, ["a"], [np.array([[8, 0]])], info)
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert read_info(tmp_path / "x") == info


def test_other_programs_can_read_it(tmp_path):
    write_shard(tmp_path / "a.parquet", ["a"], [np.array([[1, 2], [3, 4]])], ShardInfo(5))
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.schema.field("codes").type == pa.list_(pa.int16())
    assert table.to_pylist() == [{"image_id": "a", "height": 2, "width": 2, "codes": [1, 2, 3, 4]}]


def test_slices_negative_indices_and_the_end(tmp_path):
    grids = [np.full((1, 2), i) for i in range(5)]
    write_shard(tmp_path / "a.parquet", list("abcde"), grids, ShardInfo(5))
    read = CodeShards(tmp_path)
    assert [int(grid[0, 0]) for grid in read[1:4]] == [1, 2, 3]
    assert int(read[-1][0, 0]) == 4
    with pytest.raises(IndexError, match="grid 5 of 5"):
        read[5]


def test_to_npy_makes_one_array_that_can_be_mapped(tmp_path):
    grids = [np.full((2, 3), i) for i in range(5)]
    write_shard(tmp_path / "a.parquet", ["a", "b"], grids[:2], ShardInfo(5))
    write_shard(tmp_path / "b.parquet", ["c", "d", "e"], grids[2:], ShardInfo(5))
    CodeShards(tmp_path).to_npy(tmp_path / "codes.npy")
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    assert mapped.dtype == np.int16
    np.testing.assert_array_equal(mapped, np.stack(grids))


def test_to_npy_refuses_mixed_sizes(tmp_path):
    write_shard(
        tmp_path / "a.parquet", ["a", "b"], [np.zeros((1, 2)), np.zeros((2, 1))], ShardInfo(1)
    )
    with pytest.raises(ValueError, match="grids of 2 sizes"):
        CodeShards(tmp_path).to_npy(tmp_path / "codes.npy")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"codes": None}, "column 'codes' is missing"),
        ({"codes": [["x", "y"]]}, "codes must be a list of int16, uint16 or int32, got list<"),
        ({"codes": pa.array([[1]], pa.list_(pa.int16()))}, r"codes\[0\] must have height × width = 1 × 2"),
        ({"codes": pa.array([[1, 9]], pa.list_(pa.int16()))}, r"codes must be in \[0, 9\), got 1 to 9"),
        ({"codes": pa.array([[1, -1]], pa.list_(pa.int16()))}, r"got -1 to 1"),
        ({"codes": pa.array([[1, None]], pa.list_(pa.int16()))}, "codes must not be null"),
        ({"height": pa.array([0], pa.int32())}, r"height\[0\] must be at least 1, got 0"),
        ({"width": pa.array([None], pa.int32())}, "width must be int32 without nulls"),
        ({"image_id": [None]}, "image_id must be text, got None in row 0"),
        ({"image_id": [["a"]]}, r"image_id must be text, got a list \['a'\] in row 0"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_field_and_value(tmp_path, columns, message):
    good = {
        "image_id": ["a"],
        "height": pa.array([1], pa.int32()),
        "width": pa.array([2], pa.int32()),
        "codes": pa.array([[1, 2]], pa.list_(pa.int16())),
    }
    table = {name: value for name, value in {**good, **columns}.items() if value is not None}
    pq.write_table(pa.table(table), tmp_path / "bad.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        shards = CodeShards(tmp_path, codebook_size=9)
        shards.image_ids()
        list(shards)
    assert "bad.parquet" in str(caught.value)


def test_a_file_without_metadata_needs_the_codebook_size(tmp_path):
    table = {
        "image_id": ["a"],
        "height": [1],
        "width": [1],
        "codes": pa.array([[3]], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="pass codebook_size"):
        CodeShards(tmp_path)
    assert int(CodeShards(tmp_path, codebook_size=4)[0][0, 0]) == 3


def test_shards_of_two_quantizers_are_refused(tmp_path):
    write_shard(tmp_path / "a.parquet", ["a"], [np.zeros((1, 1))], ShardInfo(4, "one"))
    write_shard(tmp_path / "b.parquet", ["b"], [np.zeros((1, 1))], ShardInfo(4, "two"))
    with pytest.raises(
        ValueError, match=r"b.parquet: quantizer must be one, as in a.parquet, got two"
    ):
        CodeShards(tmp_path)


def test_a_later_version_is_refused(tmp_path):
    info = {"codebook_size": 4, "skipped": [], "version": 2}
    table = pa.table({"image_id": ["a"]}).replace_schema_metadata(
        {"being_vl.codes": json.dumps(info)}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="version must be 1, got 2"):
        CodeShards(tmp_path)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"codebook_size": None}, "codebook_size must be int, got None"),
        ({"codebook_size": True}, "codebook_size must be int, got True"),
        ({"codebook_size": 4.0}, "codebook_size must be int, got 4.0"),
        ({"codebook_size": 0}, "codebook_size must be 1 to 2147483648, got 0"),
        ({"quantizer": ["x"]}, r"quantizer must be str, got a list \['x'\]"),
        (
            {"skipped": [[1.5, "a", "b"]]},
            r"skipped must be tuple\[tuple\[int, str, str\], ...\], got",
        ),
        ({"skipped": [[1, "a"]]}, r"skipped must be tuple"),
        ({"version": True}, "version must be int, got True"),
        ({"more": 1}, "must have the fields codebook_size, .*, got a dict"),
    ],
)
def test_metadata_of_another_type_is_named(tmp_path, change, message):
    write_shard(tmp_path / "a.parquet", ["a"], [np.zeros((1, 1))], ShardInfo(4, skipped=((1, "b", "c"),)))  # fmt: skip
    assert CodeShards(tmp_path).codebook_size == 4
    table = pq.read_table(tmp_path / "a.parquet")
    info = json.loads(table.schema.metadata[b"being_vl.codes"]) | change
    pq.write_table(table.replace_schema_metadata({"being_vl.codes": json.dumps(info)}), tmp_path / "a.parquet")  # fmt: skip
    with pytest.raises(ValueError, match=f"a.parquet: malformed metadata: {message}"):
        CodeShards(tmp_path)


def test_what_is_not_there_or_not_parquet(tmp_path):
    with pytest.raises(FileNotFoundError, match="no parquet file"):
        CodeShards(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        CodeShards(tmp_path / "nothing.parquet")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(ValueError, match=r"a.parquet: not a readable parquet file"):
        CodeShards(tmp_path)


def test_writing_checks_its_input(tmp_path):
    with pytest.raises(ValueError, match="2 image ids for 1 grids"):
        write_shard(tmp_path / "a", ["a", "b"], [np.zeros((1, 1))], ShardInfo(4))
    with pytest.raises(ValueError, match=r"the grid of 'a' must be \(h, w\), got \(1,\)"):
        write_shard(tmp_path / "a", ["a"], [np.zeros(1)], ShardInfo(4))
    with pytest.raises(ValueError, match=r"codes of 'a' must be in \[0, 4\), got 4 to 4"):
        write_shard(tmp_path / "a", ["a"], [np.full((1, 1), 4)], ShardInfo(4))
    assert not list(tmp_path.iterdir())


def finished(folder, changes=None):
    """A folder as `encode` leaves it, two shards and their manifest, with entries of the first changed."""
    paths = [folder / f"codes-{i}.parquet" for i in range(2)]
    for path in paths:
        write_shard(path, ["a"], [np.arange(600).reshape(20, 30)], ShardInfo(600))
    entries = [file_entry(path) for path in paths]
    entries[0].update(changes or {})
    (folder / "encode.json").write_text("{}")
    (folder / "manifest.json").write_text(json.dumps({"shards": entries}))
    return paths


def test_shards_are_as_they_were_written(tmp_path):
    paths = finished(tmp_path)
    assert len(CodeShards(tmp_path, verify=True)) == 2
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:-7])
    with pytest.raises(
        ValueError, match=rf"codes-1.parquet: has {len(whole) - 7} bytes, {len(whole)}"
    ):
        CodeShards(tmp_path)
    at = len(whole) // 4
    paths[1].write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"codes-1.parquet: its sha256 is [0-9a-f]{64}, "):
        CodeShards(tmp_path, verify=True)
    paths[1].unlink()
    with pytest.raises(
        ValueError, match=r"codes-1.parquet: is listed in manifest.json but missing"
    ):
        CodeShards(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bytes": "12"}, r"manifest.json: shards\[0\].bytes must be int, got '12'"),
        ({"sha256": None}, r"shards\[0\].sha256 must be str, got None"),
        ({"file": "../codes-0.parquet"}, r"file must be a file of the folder, got '../codes-0.parquet'"),
    ],
)  # fmt: skip
def test_a_malformed_manifest_is_named(tmp_path, changes, message):
    (tmp_path / "inner").mkdir()
    finished(tmp_path / "inner", changes)
    with pytest.raises(ValueError, match=message):
        CodeShards(tmp_path / "inner")


@pytest.mark.parametrize("command", ["train-bpe", "stats", "tokenize"])
def test_commands_compare_checksums_on_request(tmp_path, capsys, command):
    bpe = ImageBPE([[0, 1, 0, 1]], 600)
    bpe.save_pretrained(tmp_path / "bpe")
    codes = tmp_path / "codes"
    codes.mkdir()
    paths = finished(codes)
    array = str(tmp_path / "codes.npy")
    np.save(array, np.arange(600).reshape(1, 20, 30))
    if command == "tokenize":
        tokenizer = smollm_tokenizer()
        made = init_checkpoint(text_model(tokenizer), tokenizer, None, bpe)
        save_checkpoint(*made, tmp_path / "checkpoint")
        row = {"image": "a", "conversations": [{"from": "human", "value": "<image>"},
                                               {"from": "gpt", "value": "b"}]}  # fmt: skip
        (tmp_path / "rows.json").write_text(json.dumps([row]))

    def run(output, *options, codes=str(codes)):
        about = {
            "train-bpe": ["--output", str(tmp_path / output), "--num-merges", "0"],
            "stats": [str(tmp_path / "bpe"), "--output", str(tmp_path / output)],
            "tokenize": ["--output", str(tmp_path / output), "--data", str(tmp_path / "rows.json"),
                         "--checkpoint", str(tmp_path / "checkpoint"), "--workers", "0"],
        }[command]  # fmt: skip
        status = main([command, *about, "--codes", codes, *options])
        return status, capsys.readouterr().err

    status, error = run("whole", "--verify")
    assert status == 0, error
    data = bytearray(paths[0].read_bytes())
    data[len(data) // 4] ^= 1
    paths[0].write_bytes(data)
    status, error = run("damaged", "--verify")
    assert status == 2 and "codes-0.parquet: its sha256 is" in error
    assert not any((tmp_path / "damaged").glob("*.json"))
    (codes / "encode.json").unlink()
    for unknown in (str(codes), str(paths[1]), array):
        status, error = run("unknown", "--verify", codes=unknown)
        assert status == 2 and "checksums" in error, unknown


def test_a_sample_is_uniform_over_all_shards_and_seeded(tmp_path):
    grids = [np.full((2, 3 + number % 2), number) for number in range(40)]
    for part in range(4):
        own = range(part * 10, part * 10 + 10)
        info = ShardInfo(codebook_size=64)
        write_shard(
            tmp_path / f"{part}.parquet", [str(i) for i in own], [grids[i] for i in own], info
        )
    shards = CodeShards(tmp_path, cached_shards=1)
    sample = SampledShards(shards, 12, seed=0)
    numbers = [int(grid[0, 0]) for grid in sample]
    assert len(sample) == len(numbers) == 12 and numbers == sorted(set(numbers))
    assert sample.num_cells == sum(grids[number].size for number in numbers)
    assert [int(grid[0, 0]) for grid in sample[3:5]] == numbers[3:5]
    assert numbers == SampledShards(shards, 12, seed=0).chosen.tolist()
    assert numbers != SampledShards(shards, 12, seed=1).chosen.tolist()
    counts = np.zeros(4, int)
    for seed in range(300):
        counts += np.bincount(SampledShards(shards, 4, seed).chosen // 10, minlength=4)
    assert (abs(counts - 300) < 60).all()  # four standard deviations
    assert len(SampledShards(shards, 100, seed=0)) == 40
