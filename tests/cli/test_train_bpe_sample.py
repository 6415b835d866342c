"""`train-bpe --sample`: a vocabulary of a random part of the grids, and what is said before the start."""

from __future__ import annotations

import json

import numpy as np
import pytest

from being_vl.bpe.image_bpe import ImageBPE
from being_vl.cli import main as being_vl_command
from being_vl.cli import train_bpe
from being_vl.codes.shards import CodeShards, SampledShards, ShardInfo, write_shard


@pytest.fixture
def codes(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "codes").mkdir()
    for part in range(3):
        grids = list(rng.integers(0, 4, (20, 6, 6)))
        names = [f"{part}-{i}" for i in range(20)]
        write_shard(
            tmp_path / "codes" / f"{part}.parquet", names, grids, ShardInfo(codebook_size=4)
        )
    return tmp_path / "codes"


def train(codes, output, *options):
    command = ["train-bpe", "--codes", str(codes), "--output", str(output), "--num-merges", "12"]
    return being_vl_command([*command, *options])


def test_the_rules_are_those_of_the_sample(codes, tmp_path, capsys):
    assert train(codes, tmp_path / "sampled", "--sample", "25", "--seed", "3") == 0
    assert "25 grids, 900 codes: about 14.4 kB of memory" in capsys.readouterr().err
    sample = [grid.copy() for grid in SampledShards(CodeShards(codes), 25, seed=3)]
    expected = ImageBPE.train(sample, num_merges=12, codebook_size=4)
    found = ImageBPE.from_pretrained(tmp_path / "sampled")
    np.testing.assert_array_equal(found.merges, expected.merges)
    assert train(codes, tmp_path / "sampled", "--sample", "25", "--seed", "4") == 2
    assert "seed" in capsys.readouterr().err


def test_what_cannot_fit_is_refused_by_the_option_that_helps(codes, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_bpe, "free_memory", lambda: 9000)
    assert train(codes, tmp_path / "out") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert (
        "needs at least 9.2 kB of memory, and 9.0 kB are free" in error
        and "--sample 15 takes a random sample" in error
    )
    assert not (tmp_path / "out" / "image_bpe.json").exists()
    assert train(codes, tmp_path / "fits", "--sample", "16") == 0
    assert json.loads((tmp_path / "fits" / "image_bpe.json").read_text())
