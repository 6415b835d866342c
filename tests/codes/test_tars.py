"""Codes as WebDataset tars: what parquet holds, and what webdataset and datasets read."""

from __future__ import annotations

import io
import json
import re
import tarfile
from urllib.parse import unquote

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from being_vl.codes.shard_files import Frame
from being_vl.codes.shards import CodeShards, ShardInfo, read_info, write_shard
from being_vl.codes.tars import INDEX, keys_of

INFO = ShardInfo(9, "sha256:q", "sha256:s", False, ((1, "b", "broken"),))
NAMES = ["a/b.left.png", "7", "c.d/.e", "__f", "ü/../g", "/h//", "7"]
GRIDS = [np.random.default_rng(i).integers(0, 9, (1 + i % 3, 2 + i)) for i in range(len(NAMES))]


@pytest.fixture
def shard(tmp_path):
    write_shard(tmp_path / "codes-0.tar", NAMES, GRIDS, INFO)
    return tmp_path / "codes-0.tar"


def members(path):
    with tarfile.open(path) as archive:
        return [(member.name, archive.extractfile(member).read()) for member in archive]


def rewrite(path, pairs):
    """A tar of these members under the name of another."""
    with tarfile.open(path, "w") as archive:
        for name, content in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def by_hand(path):
    """Image id → codes, as a reader without this library has them."""
    files = dict(members(path))
    keys = [name.removesuffix(".json") for name in files if name.endswith(".json")]
    return [
        (
            json.loads(files[f"{key}.json"]),
            np.load(io.BytesIO(files[f"{key}.codes.npy"]), allow_pickle=False),
        )
        for key in keys
    ]


def test_a_tar_holds_what_parquet_holds(shard, tmp_path):
    write_shard(tmp_path / "codes.parquet", NAMES, GRIDS, INFO)
    tar, parquet = CodeShards(shard), CodeShards(tmp_path / "codes.parquet")
    assert read_info(shard) == INFO
    assert tar.image_ids() == parquet.image_ids() == NAMES
    assert (tar.codebook_size, tar.quantizer) == (parquet.codebook_size, parquet.quantizer)
    for i, (said, array) in enumerate(by_hand(shard)):
        assert said == {
            "image_id": NAMES[i], "height": GRIDS[i].shape[0], "width": GRIDS[i].shape[1],
            "codebook_size": 9, "quantizer": "sha256:q",
        }  # fmt: skip
        assert array.dtype == tar[i].dtype == parquet[i].dtype == np.int16
        for grid in (array, tar[i], parquet[i]):
            np.testing.assert_array_equal(grid, GRIDS[i])


@pytest.mark.parametrize("codebook_size", [32768, 65536, 70000])
def test_the_type_of_the_codes_is_that_of_parquet(tmp_path, codebook_size):
    grids = [np.array([[0, codebook_size - 1]])]
    for suffix in ("tar", "parquet"):
        write_shard(tmp_path / f"a.{suffix}", ["x"], grids, ShardInfo(codebook_size))
    read, wanted = CodeShards(tmp_path / "a.tar")[0], CodeShards(tmp_path / "a.parquet")[0]
    assert read.dtype == wanted.dtype == by_hand(tmp_path / "a.tar")[0][1].dtype
    np.testing.assert_array_equal(read, wanted)


def test_equal_input_gives_equal_bytes_without_times_and_owners(shard, tmp_path):
    write_shard(tmp_path / "again.tar", NAMES, GRIDS, INFO)
    assert shard.read_bytes() == (tmp_path / "again.tar").read_bytes()
    with tarfile.open(shard) as archive:
        for member in archive:
            owner = (member.mtime, member.uid, member.gid, member.uname, member.gname)
            assert owner == (0, 0, 0, "", "")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab./_%\\\n~-é", max_size=6) | st.text(max_size=6), max_size=8))
def test_keys_are_distinct_end_at_no_dot_and_say_the_id(ids):
    keys = keys_of(ids)
    assert len(set(keys)) == len(keys)
    for image_id, key in zip(ids, keys, strict=True):
        # As webdataset and datasets split a name, and what they pass over.
        assert re.match(r"^((?:.*/|)[^.]+)[.]([^/]*)$", f"{key}.codes.npy", re.DOTALL)[1] == key
        parts = key.split("/")
        assert key[0] != "/" and not any(p in ("", ".", "..") or p[:2] == "__" for p in parts)
        plain = re.sub(r"%x\d+$", "", key)
        assert unquote("" if plain == "%" else plain) == image_id


def test_datasets_reads_it(shard):
    rows = datasets.load_dataset("webdataset", data_files=str(shard), split="train")
    assert [row["json"]["image_id"] for row in rows] == NAMES
    assert rows["__key__"] == keys_of(NAMES)
    for row, grid in zip(rows, GRIDS, strict=True):
        np.testing.assert_array_equal(row["codes.npy"], grid)


def test_webdataset_reads_it(shard):
    webdataset = pytest.importorskip("webdataset")
    rows = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode())
    assert [row["json"]["image_id"] for row in rows] == NAMES
    for row, grid in zip(rows, GRIDS, strict=True):
        np.testing.assert_array_equal(row["codes.npy"], grid)


def test_frames_of_videos(tmp_path):
    frames = [Frame("v", 0, 0.0), Frame("v", 1, 0.5), Frame("w", 0, float("nan"))]
    names = [f"{frame.video_id}#{frame.number}" for frame in frames]
    write_shard(tmp_path / "codes-0.tar", names, GRIDS[:3], INFO, frames)
    read = CodeShards(tmp_path)
    assert [(v.video_id, v.start, v.stop) for v in read.videos()] == [("v", 0, 2), ("w", 2, 3)]
    said = [fields for fields, _ in by_hand(tmp_path / "codes-0.tar")]
    assert [(s["video_id"], s["frame"], s["time"]) for s in said] == [
        ("v", 0, 0.0),
        ("v", 1, 0.5),
        ("w", 0, None),
    ]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (npy(np.array([{"a": 1}], object), allow_pickle=True), "of object"),
        (npy(np.zeros((2, 3), np.int16))[:-1], "takes 12 bytes, but 11 follow"),
        (npy(np.zeros((2, 3), np.int16)).replace(b"(2, 3)", b"(2000000000, 3)"), "bytes, but"),
        (npy(np.zeros((2, 3), np.int16)).replace(b"(2, 3)", b"(-2, -3)"), "no .npy array"),
        (npy(np.zeros((2, 3), np.float32)), "of float32"),
        (npy(np.zeros((3, 2), np.int16)), r"must be int16 \(1, 2\), got int16 \(3, 2\)"),
        (npy(np.zeros((1, 2), np.int64)), r"must be int16 \(1, 2\), got int64 \(1, 2\)"),
        (npy(np.full((1, 2), 9, np.int16)), r"must be in \[0, 9\), got 0 to 9"),
        (b"", "no .npy array"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "no .npy array"),
    ],
)
def test_arrays_that_lie_are_named(shard, array, message):
    pairs = members(shard)
    at = next(i for i, (name, _) in enumerate(pairs) if name.endswith(".npy"))
    pairs[at] = (pairs[at][0], array)
    read = CodeShards(rewrite(shard, pairs))
    with pytest.raises(ValueError, match=message) as error:
        list(read)
    assert str(shard) in str(error.value)


def test_members_that_are_gone_or_out_of_order_are_named(shard):
    whole = members(shard)
    for pairs, message in (
        (whole[:-2], r"7%x2\.codes\.npy' is missing"),
        ([whole[0], *whole[3:5], *whole[1:3], *whole[5:]], r"holds '7\.codes\.npy', expected 'a/b"),
        ([*whole, ("more.codes.npy", whole[1][1])], "expected 'no more"),
    ):
        with pytest.raises(ValueError, match=message):
            list(CodeShards(rewrite(shard, pairs)))
    with pytest.raises(ValueError, match=f"no {INDEX} in it"):
        CodeShards(rewrite(shard, whole[1:]))
    with pytest.raises(ValueError, match="not a readable"):
        CodeShards(rewrite(shard, [(INDEX, b"PAR1"), *whole[1:]]))
    rewrite(shard, whole)
    shard.write_bytes(shard.read_bytes()[:6000])
    with pytest.raises(ValueError, match=r"codes-0\.tar"):
        list(CodeShards(shard))


def test_sizes_are_not_believed(shard, tmp_path):
    """An index of 40 bytes a row may claim any size; nothing of it is allocated."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    index = pq.read_table(io.BytesIO(dict(members(shard))[INDEX]))
    huge = pa.array([2**31 - 1] * len(NAMES), pa.int32())
    for name in ("height", "width"):
        index = index.set_column(index.column_names.index(name), name, huge)
    file = io.BytesIO()
    pq.write_table(index, file)
    read = CodeShards(rewrite(shard, [(INDEX, file.getvalue()), *members(shard)[1:]]))
    with pytest.raises(ValueError, match="height × width must be from 1 to"):
        read[0]
