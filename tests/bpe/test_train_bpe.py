"""The command being-vl train-bpe: files, checkpoints, the lock, several processes."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from being_vl import ImageBPE
from being_vl.bpe.training.checkpoints import (
    FILE_NAME,
    Checkpoint,
    load_checkpoint,
    lock_folder,
    save_checkpoint,
)
from being_vl.bpe.training.trainer import train_merges
from being_vl.cli import main
from being_vl.codes.shards import ShardInfo, write_shard


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """(150, 16, 16) int16 with structure, in [0, 32)."""
    steps = np.random.default_rng(5).integers(-1, 2, (2, 150, 16, 16))
    return ((steps[0].cumsum(axis=1) + steps[1].cumsum(axis=2)) % 32).astype(np.int16)


@pytest.fixture
def codes_file(tmp_path, codes):
    np.save(tmp_path / "codes.npy", codes)
    return tmp_path / "codes.npy"


def arguments(codes, output, *more):
    options = ["--num-merges", "300", *map(str, more)]
    return ["train-bpe", "--codes", str(codes), "--output", str(output), *options]


def test_trains_and_saves(tmp_path, codes, codes_file, capsys):
    output = tmp_path / "bpe"
    assert main(arguments(codes_file, output, "--codebook-size", 32, "--json")) == 0
    summary = json.loads(capsys.readouterr().out)
    bpe = ImageBPE.from_pretrained(output)
    assert (bpe.merges == train_merges(codes, num_merges=300, codebook_size=32)).all()
    tokens = [len(ids) for ids in bpe.encode_batch(codes)]
    assert summary["tokens_per_image"] == pytest.approx(np.mean(tokens), abs=1e-3)
    assert summary["num_merges"] == 300 and summary["resumed_from"] == 0
    before = (output / "image_bpe.json").read_bytes()
    # the saved configuration repeats the run; it goes on from its last checkpoint, the whole of it
    assert main(["train-bpe", "--config", str(output / "train-bpe.yaml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed_from"] == 300
    assert (output / "image_bpe.json").read_bytes() == before


def test_shards_say_their_codebook_size(tmp_path, codes, codes_file):
    info = ShardInfo(codebook_size=32)
    write_shard(tmp_path / "shards.parquet", [str(i) for i in range(150)], list(codes), info)
    assert main(arguments(codes_file, tmp_path / "a", "--codebook-size", 32)) == 0
    assert main(arguments(tmp_path / "shards.parquet", tmp_path / "b")) == 0
    assert (tmp_path / "a/image_bpe.json").read_bytes() == (
        tmp_path / "b/image_bpe.json"
    ).read_bytes()


def test_a_killed_training_ends_with_the_same_bytes(tmp_path, codes_file):
    more = ["--codebook-size", "32", "--checkpoint-every", "0.001", "--num-threads", "1"]
    assert main(arguments(codes_file, tmp_path / "whole", *more)) == 0
    output = tmp_path / "killed"
    run = subprocess.Popen(
        [sys.executable, "-m", "being_vl", *arguments(codes_file, output, *more)],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    deadline = time.monotonic() + 100
    while not (output / FILE_NAME).exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert (output / FILE_NAME).exists() and not (output / "image_bpe.json").exists()
    assert main(arguments(codes_file, output, *more)) == 0
    whole = (tmp_path / "whole/image_bpe.json").read_bytes()
    assert (output / "image_bpe.json").read_bytes() == whole


def test_one_of_two_processes_wins(tmp_path, codes_file, capsys):
    with lock_folder(tmp_path / "bpe"):
        run = subprocess.run(
            [sys.executable, "-m", "being_vl", *arguments(codes_file, tmp_path / "bpe", "--codebook-size", 32)],
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
        )  # fmt: skip
    assert run.returncode == 2
    assert (
        run.stderr.count("\n") == 1 and "another process is training in this folder" in run.stderr
    )
    assert main(arguments(codes_file, tmp_path / "bpe", "--codebook-size", 32)) == 0


@pytest.mark.parametrize("limit", [(), ("--memory-limit-gb", 7e-5)])
def test_two_ranks_learn_the_same_bytes(tmp_path, limit):
    """One has 10 of 21 grids, the other 11, and so less room beside its cells."""
    grids = np.minimum(np.random.default_rng(30).geometric(0.1, (21, 25, 30)) - 1, 11)
    np.save(tmp_path / "codes.npy", grids)
    more = ["--codebook-size", 12, "--num-threads", 1]
    assert main(arguments(tmp_path / "codes.npy", tmp_path / "one", *more)) == 0
    subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "-m", "being_vl", *arguments(tmp_path / "codes.npy", tmp_path / "two", *more, *limit),
        ],
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )  # fmt: skip
    one = (tmp_path / "one/image_bpe.json").read_bytes()
    assert (tmp_path / "two/image_bpe.json").read_bytes() == one


LAW = {"codebook_size": 4, "merge_rule": "shape"}


def whole(rows: list) -> str:
    return json.dumps({"version": 1, "options": {"a": 1, **LAW}, "merges_and_counts": rows})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not a checkpoint"),
        ("{}", "not a checkpoint"),
        ('{"version": 2, "options": {}, "merges_and_counts": []}', "version must be 1, got 2"),
        ('{"version": 1, "options": {}, "merges_and_counts": [[1, 2]]}', "not a checkpoint"),
        ('{"version": 1, "options": {"a": 2}, "merges_and_counts": []}', "made with a=2, not 1"),
        (
            whole([[2, 10**9, 0, 1, 12]]),
            r"merges\[0\].second is 1000000000, but only 4 tokens exist",
        ),
        (whole([[2, 1, 0, 0, 12]]), r"merges\[0\]"),
        (whole([[2, 1.5, 0, 1, 12]]), r"merges_and_counts must be list\[list\[int\]\], got"),
        (whole([[2, True, 0, 1, 12]]), r"merges_and_counts must be list\[list\[int\]\], got"),
        (whole([[2, 1, 0, 1, 1 << 63]]), "not a checkpoint"),
        ('{"version": 1, "options": {}, "merges_and_counts": []}', "made with a='nothing', not 1"),
        (whole([[2, 1, 0, 1, 12], [2, 1, 0, 1, 12]]), r"merges\[1\]"),
    ],
)
def test_a_wrong_checkpoint_is_named(tmp_path, content, message):
    (tmp_path / FILE_NAME).write_text(content)
    with pytest.raises(ValueError, match=f"{FILE_NAME}: .*{message}"):
        load_checkpoint(tmp_path, {"a": 1, **LAW})


def test_a_checkpoint_comes_back(tmp_path):
    assert load_checkpoint(tmp_path, LAW) is None
    rules = np.array([[0, 1, 0, 1], [4, 2, 1, -3]], np.int32)
    save_checkpoint(tmp_path, Checkpoint(rules, np.array([9, 7])), {"a": None, **LAW})
    found = load_checkpoint(tmp_path, {"a": None, **LAW})
    assert (found.merges == rules).all() and found.counts.tolist() == [9, 7]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "a .npy file needs --codebook-size"),
        (["--codebook-size", "4"], r"must be in \[0, 4\), got"),
        (
            ["--codebook-size", "32", "--merge-rule", "pair", "--scoring", "spatial"],
            "needs the offsets",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, codes_file, capsys, more, message):
    assert main(arguments(codes_file, tmp_path / "bpe", *more)) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("being-vl train-bpe: error:")

    assert re.search(message, last)
