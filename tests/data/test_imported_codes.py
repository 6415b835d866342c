"""Codes that another program wrote: each form gives the same shard, and goes into train-bpe and tokenize."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from being_vl import ImageBPE
from being_vl.cli import main as command
from being_vl.codes.imported import import_codes
from being_vl.codes.shards import CodeShards
from being_vl.data.codes import build_index

GRIDS = np.random.default_rng(0).integers(0, 4, (6, 3, 5))
NAMES = [f"picture {number}" for number in range(6)]


def to_npy(path, grids=GRIDS):
    np.save(path.with_suffix(".npy"), grids)
    return path.with_suffix(".npy")


def to_pt(path, content=None):
    torch.save(torch.from_numpy(GRIDS) if content is None else content, path.with_suffix(".pt"))
    return path.with_suffix(".pt")


def to_named_pt(path):
    return to_pt(
        path, {name: torch.from_numpy(grid) for name, grid in zip(NAMES, GRIDS, strict=True)}
    )


def to_parquet(path):
    table = pa.table({"id": NAMES, "vq": GRIDS.tolist()})
    pq.write_table(table, path.with_suffix(".parquet"))
    return path.with_suffix(".parquet")


def to_tar(path):
    with tarfile.open(path.with_suffix(".tar"), "w") as archive:
        for name, grid in zip(NAMES, GRIDS, strict=True):
            buffer = io.BytesIO()
            np.save(buffer, grid)
            for suffix, data in ((".npy", buffer.getvalue()), (".json", b"{}")):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path.with_suffix(".tar")


FORMS = {to_npy: False, to_pt: False, to_named_pt: True, to_parquet: True, to_tar: True}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_shard(tmp_path, form):
    shards = CodeShards(
        import_codes(form(tmp_path / "codes"), tmp_path / "out.parquet", codebook_size=4)
    )
    np.testing.assert_array_equal(np.stack(list(shards)), GRIDS)
    assert shards.codebook_size == 4
    wanted = NAMES if FORMS[form] else [str(number) for number in range(6)]
    assert shards.image_ids() == wanted


@pytest.mark.parametrize("form", FORMS)
def test_every_form_goes_into_train_bpe_and_an_index(tmp_path, form):
    path, wanted = form(tmp_path / "codes"), ImageBPE.train(GRIDS, num_merges=4, codebook_size=4)
    flags = ["--codes", str(path), "--codebook-size", "4", "--num-merges", "4"]
    assert command(["train-bpe", *flags, "--output", str(tmp_path / "bpe")]) == 0
    assert np.array_equal(ImageBPE.from_pretrained(tmp_path / "bpe").merges, wanted.merges)
    index, _ = build_index([str(path)], tmp_path / "index.npy", codebook_size=4)
    name = NAMES[2] if FORMS[form] else "2"
    np.testing.assert_array_equal(index.lookup([name])[name], GRIDS[2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: to_npy(path, GRIDS[0]), r"reshape sequences to \(3, 1, 5\)"),
        (lambda path: to_npy(path, GRIDS / 2), "codes must be integers"),
        (lambda path: to_npy(path, GRIDS + 1), r"must be in \[0, 4\)"),
        (lambda path: to_pt(path, [torch.arange(3)]), r"is a grid \(1, n\)"),
        (lambda path: to_pt(path, "text"), "must hold a tensor"),
    ],
)
def test_other_forms_say_what_is_expected(tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        import_codes(make(tmp_path / "codes"), tmp_path / "out.parquet", codebook_size=4)
    assert not (tmp_path / "out.parquet").exists()


def test_a_pickle_is_not_run(tmp_path):
    class Exploit:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploited"), "w"))

    torch.save(Exploit(), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="not a file of tensors alone"):
        import_codes(tmp_path / "evil.pt", tmp_path / "out.parquet", codebook_size=4)
    assert not (tmp_path / "exploited").exists()


def test_a_parquet_file_without_nested_lists_says_what_is_expected(tmp_path):
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "a.parquet")
    with pytest.raises(
        ValueError, match=r"one column of lists of rows .* found \[\] among \['a', 'b'\]"
    ):
        import_codes(tmp_path / "a.parquet", tmp_path / "out.parquet", codebook_size=4)
