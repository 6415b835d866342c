"""`--streaming`: each sample once an epoch, the batches of a run that never stopped, on one process and on two."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_fixtures import (
    SMALL_RUN,
    StopAt,
    arguments,
    checkpoint_folder,
    tokenized,
    tokenized_folder,
)

from being_vl.cli import main
from being_vl.data import load_tokenized, stream_tokenized
from being_vl.training.checkpoints import checkpoint_folders
from being_vl.training.run import run_stage
from being_vl.training.samples import IGNORE_INDEX, TokenizedSamples
from being_vl.training.streaming import StreamedEpochs, StreamedSamples

SHARDS = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint, and 19 samples in five shards, of four samples and of three."""
    folder = tmp_path_factory.mktemp("streaming")
    _, processor = checkpoint_folder(folder / "start")
    tokenized_folder(folder / "rows", tokenized(processor), processor, shards=SHARDS)
    return folder, processor


def streamed(made, kind=StreamedEpochs, *, rank=0, world=1, **options):
    folder, processor = made
    values = {
        "labels": "assistant", "max_length": 200, "drop_long": False, "packed": False,
        "buffer_size": 4, "seed": 0,
    }  # fmt: skip
    stream = stream_tokenized(folder / "rows", processor)
    layout = processor.tokenizer.layout
    return kind(stream, layout, rank=rank, world=world, **{**values, **options})


def mapped(made):
    """The plain reference: the samples of `load_tokenized` with their labels, in the order of the folder."""
    samples = TokenizedSamples(
        load_tokenized(made[0] / "rows", made[1]), made[1].tokenizer.layout, max_length=200
    )
    return [samples[i] for i in range(len(samples))]


def key(sample):
    return (sample["input_ids"].tobytes(), np.asarray(sample["labels"]).astype(np.int32).tobytes())


def is_stand_in(sample):
    return len(sample["input_ids"]) == 1 and (sample["labels"] == IGNORE_INDEX).all()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_an_epoch_holds_each_sample_once_and_is_as_long_on_all_processes(made, world):
    parts = [streamed(made, rank=rank, world=world) for rank in range(world)]
    assert len({len(part) for part in parts}) == 1
    for epoch in range(3):
        found = []
        for part in parts:
            part.start(epoch, 0)
            sequences = list(part)
            assert len(sequences) == len(part)
            real = [s for s in sequences if not is_stand_in(s)]
            assert all(map(is_stand_in, sequences[len(real) :]))  # the last ones
            found += real
        assert sorted(map(key, found)) == sorted(map(key, mapped(made)))


def test_each_process_reads_shards_of_its_own(made):
    rows = stream_tokenized(made[0] / "rows", made[1])
    wanted = [row["id"] for row in load_tokenized(made[0] / "rows", made[1])]
    own = [[row["id"] for row in rows.rows.shard(2, rank, contiguous=False)] for rank in range(2)]
    assert [len(part) for part in own] == [rows.samples_of(rank, 2) for rank in range(2)]
    assert [*itertools.chain(*own)] != wanted and sorted(own[0] + own[1]) == sorted(wanted)


def test_seed_and_epoch_decide_the_order(made):
    def order(epoch, **options):
        stream = streamed(made, **options)
        stream.start(epoch, 0)
        return [key(sample) for sample in stream]

    first = order(0)
    assert order(0) == first != order(1) and order(1) == order(1)
    assert order(0, seed=1) != first != [key(sample) for sample in mapped(made)]


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_passed_over_changes_nothing_of_what_follows(made, packed):
    def take(passed):
        stream = streamed(made, StreamedSamples, packed=packed, max_length=120)
        stream.start(0, passed)
        return list(itertools.islice(stream, 60))

    whole = take(0)
    for passed in (1, 7, 45):
        resumed = take(passed)
        assert list(map(key, resumed[passed:])) == list(map(key, whole[passed:]))
        assert all(map(is_stand_in, resumed[:passed]))


def test_packed_sequences_are_whole_samples_that_fit(made):
    stream = streamed(made, StreamedSamples, packed=True, max_length=120)
    found, total = [], 0
    for sequence in stream:
        assert sequence["length"] == len(sequence["input_ids"]) <= 120
        starts = [*np.flatnonzero(sequence["position_ids"] == 0), sequence["length"]]
        for start, end in itertools.pairwise(starts):
            found.append({name: sequence[name][start:end] for name in ("input_ids", "labels")})
        total += 1
        if len(found) >= 19:
            break
    assert sorted(map(key, found)) == sorted(map(key, mapped(made))) and total < 19


CASES = {
    "epochs": ({}, {"max_steps": -1, "num_train_epochs": 2}),
    "steps": ({}, {"max_steps": 9, "gradient_accumulation_steps": 2}),
    "packed": ({"packing": "samples", "max_length": 120}, {"max_steps": 12}),
}


def run(made, output, case, callbacks=(), **changes):
    data, training = CASES[case]
    options = {"streaming": True, "shuffle_buffer_size": 4, **data}
    given = arguments(
        made[0] / "start", output, data=options,
        **{"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, **training, **changes},
    )  # fmt: skip
    given[1].data = str(made[0] / "rows")
    return run_stage(*given, callbacks=callbacks)


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_was_stopped_ends_with_the_same_weights(made, tmp_path, case):
    whole = run(made, tmp_path / "whole", case)
    wanted = load_file(tmp_path / "whole" / "model.safetensors")
    steps = whole.metrics["steps"]
    assert steps == {"epochs": 20, "steps": 9, "packed": 12}[case]
    for stop in (3, steps - 2):  # in the first epoch, and later
        output = tmp_path / f"stopped-{stop}"
        with pytest.raises(KeyboardInterrupt):
            run(made, output, case, [StopAt(stop)])
        assert checkpoint_folders(output)
        resumed = run(made, output, case)
        found = load_file(output / "model.safetensors")
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert resumed.metrics["train_loss"] == whole.metrics["train_loss"]
    assert run(made, tmp_path / "whole", case).finished_before


def test_another_buffer_or_shards_are_another_run(made, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(made, tmp_path / "run", "steps", [StopAt(3)])
    given = arguments(
        made[0] / "start", tmp_path / "run", data={"streaming": True, "shuffle_buffer_size": 5},
        save_strategy="steps", save_steps=2, **CASES["steps"][1],
    )  # fmt: skip
    given[1].data = str(made[0] / "rows")
    with pytest.raises(ValueError, match="shuffle_buffer_size is 4, but this run's is 5"):
        run_stage(*given)


def command(made, output, *more):
    options = {
        **SMALL_RUN, "checkpoint": made[0] / "start", "data": made[0] / "rows", "streaming": True,
        "shuffle_buffer_size": 4, "output_dir": output, "max_steps": 12, "learning_rate": 1e-2,
        "per_device_train_batch_size": 2, "save_strategy": "steps", "save_steps": 2,
    }  # fmt: skip
    return ["train", *(w for n, v in options.items() for w in (f"--{n}", str(v))), *more]


def test_two_processes_killed_and_started_again_end_with_the_same_weights(made, tmp_path):
    def start(output):
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        line = [sys.executable, *torchrun, "-m", "being_vl", *command(made, output)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        log = open(tmp_path / "log.txt", "w")
        return subprocess.Popen(
            line, env=environment, stderr=log, stdout=log, start_new_session=True
        )

    whole = start(tmp_path / "whole")
    assert whole.wait(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    killed = start(tmp_path / "killed")
    try:
        while killed.poll() is None and not (tmp_path / "killed" / "checkpoint-4").exists():
            time.sleep(0.02)
    finally:
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    again = start(tmp_path / "killed")
    assert again.wait(300) == 0, (tmp_path / "log.txt").read_text()[-3000:]
    one, other = (load_file(tmp_path / n / "model.safetensors") for n in ("whole", "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_two_processes_take_the_step_of_one(made):
    """Without shuffling of the batches' parts: their samples of an epoch together are those of one process."""
    alone = [key(sample) for sample in streamed(made)]
    parts = [
        [key(s) for s in streamed(made, rank=r, world=2) if not is_stand_in(s)] for r in (0, 1)
    ]
    assert not set(parts[0]) & set(parts[1]) and sorted(parts[0] + parts[1]) == sorted(alone)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--packing", "shared_image"], "packing must be none or samples with streaming"),
        (["--mixture_stage", "sft"], "streaming reads one folder, not a mixture, got 'sft'"),
        (["--data", "mixture.yaml"], "not a mixture, got 'mixture.yaml'"),
        (
            ["--train_sampling_strategy", "group_by_length"],
            "train_sampling_strategy must be random",
        ),
        (["--dataloader_num_workers", "2"], "dataloader_num_workers must be 0 with streaming"),
        (
            ["--packing", "samples", "--max_steps", "-1"],
            "packing=samples with streaming needs max_steps",
        ),
        (["--shuffle_buffer_size", "0"], "shuffle_buffer_size must be positive, got 0"),
        (["--max_length", "20"], "tokens, but max_length is 20; drop_long leaves such samples out"),
    ],
)
def test_what_cannot_work_is_one_line(made, tmp_path, capsys, more, message):
    assert main(command(made, tmp_path / "out", *more)) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("being-vl train: error:") and message in last


def test_more_processes_than_shards_are_refused(made):
    with pytest.raises(ValueError, match="a shard for each process, got 5 shards for 6 processes"):
        streamed(made, rank=0, world=6)


def test_long_samples_may_be_dropped_and_evaluation_goes_on_as_ever(made, tmp_path):
    lengths = sorted(len(sample["input_ids"]) for sample in mapped(made))
    longest = lengths[len(lengths) // 2]
    stream = streamed(made, max_length=longest, drop_long=True)
    with pytest.warns(UserWarning, match="drop_long leaves out longer samples, first: .*row"):
        kept = [len(s["input_ids"]) for s in stream if not is_stand_in(s)]
    assert sorted(kept) == [length for length in lengths if length <= longest]
    evaluation = ["--eval_data", str(made[0] / "rows"), "--eval_strategy", "steps"]
    assert main(command(made, tmp_path / "out", *evaluation, "--eval_steps", "6")) == 0
