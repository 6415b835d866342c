"""Frozen rows, losses, checkpoints and resuming on two CPU processes: DDP, FSDP2, ZeRO-2, ZeRO-3."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_fixtures import LAYOUT, TEXT_SIZE, being_vl_model
from resume_fixtures import steps_on_disk
from safetensors.torch import load_file
from transformers import AutoConfig

import being_vl  # noqa: F401  (registers the configuration)
from being_vl.training.checkpoints import DamagedCheckpointError, read_manifest

TESTS = Path(__file__).parent
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def train(folder: Path, strategies: list[str], *more: str) -> Path:
    stages = ("pretrain", "tied", "bf16", "sft", "resume")
    cases = [f"{strategy}-{stage}-2" for strategy in strategies for stage in stages]
    command = [sys.executable, str(TESTS / "sharded_worker.py"), str(folder), *cases, *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parents[1]), *sys.path])}
    environment["CUDA_VISIBLE_DEVICES"] = ""  # where there is a GPU, FSDP takes it
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=550)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return folder


@pytest.fixture(scope="module")
def pytorch_runs(tmp_path_factory):
    return train(tmp_path_factory.mktemp("pytorch"), ["ddp", "fsdp2"], "ddp-pretrain-1")


@pytest.fixture(scope="module")
def deepspeed_runs(tmp_path_factory):
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("deepspeed is not installed")
    folder = tmp_path_factory.mktemp("deepspeed")
    return train(
        folder,
        ["zero2", "zero3"],
        "zero2-pretrain-1",
        "ddp-pretrain-1",
        "ddp-loaded-1",
        "zero3-loaded-2",
        "zero3-refused-1",
        "zero3-command-2",
    )


@pytest.fixture
def runs(request, strategy):
    return request.getfixturevalue(
        "deepspeed_runs" if strategy.startswith("zero") else "pytorch_runs"
    )


STRATEGIES = pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2", "zero3"])


def final_weights(run: Path) -> dict[str, torch.Tensor]:
    """From the newest checkpoint's safetensors file, which must hold whole matrices."""
    return load_file(run / steps_on_disk(run)[0] / "model.safetensors")


@STRATEGIES
@pytest.mark.parametrize("stage", ["pretrain", "tied", "bf16", "sft"])
def test_only_rows_that_may_move_have_moved(runs, strategy, stage):
    model = being_vl_model(tied=stage == "tied")
    before, after = model.state_dict(), final_weights(runs / f"{strategy}-{stage}-2")
    rows = torch.arange(LAYOUT.size)
    frozen = rows >= LAYOUT.first_code_id if stage == "sft" else rows < TEXT_SIZE
    assert after.keys() <= before.keys()
    if stage == "bf16" and strategy.startswith("zero"):  # DeepSpeed saves what the forward saw
        before = {name: value.bfloat16() for name, value in before.items()}
    for name, old in before.items():
        if stage == "tied" and name == "lm_head.weight" and name not in after:
            continue  # the same matrix
        if name in EMBEDDINGS:
            moved = (after[name] != old).any(dim=1)
            assert not moved[frozen].any(), name
            assert moved[~frozen].sum() > 15, name
        else:
            assert torch.equal(after[name], old) == (stage != "sft"), name


def losses(run: Path) -> list[float]:
    values = json.loads((run / "losses.json").read_text())
    assert len(values) == 9
    return values


@STRATEGIES
def test_losses_are_those_of_one_process(runs, strategy):
    """The same global batch, and the same mean over its labels."""
    wanted = losses(runs / "ddp-pretrain-1")
    assert losses(runs / f"{strategy}-pretrain-2") == pytest.approx(wanted, rel=1e-5)
    if strategy == "zero2":
        assert losses(runs / "zero2-pretrain-1") == pytest.approx(wanted, rel=1e-5)
    assert max(wanted) - min(wanted) > 0.05


@STRATEGIES
def test_a_stopped_run_goes_on_and_damage_is_named(tmp_path, runs, strategy):
    """Stopped amid the second epoch, whose first step is the seventh; the checkpoint is of step 7."""
    wanted = final_weights(runs / f"{strategy}-resume-2")
    got = final_weights(runs / f"{strategy}-resume-2-stopped")
    assert wanted.keys() == got.keys()
    for name in wanted:
        assert torch.equal(wanted[name], got[name]), name
    checkpoint = runs / f"{strategy}-resume-2" / "checkpoint-7"
    files = read_manifest(checkpoint)["files"]
    states = [name for name in files if name.endswith((".pt", ".pth", ".bin"))]
    assert len(states) >= 4
    for number, name in enumerate(states):
        copy = tmp_path / str(number) / "checkpoint-7"
        shutil.copytree(checkpoint, copy)
        os.truncate(copy / name, files[name]["size"] // 2)
        with pytest.raises(DamagedCheckpointError, match=f"{name}. has .* bytes"):
            read_manifest(copy)


def test_a_model_that_zero3_loads_in_pieces_can_be_resized(deepspeed_runs):
    """As in one process: the losses, the rows that stay, and the new ones."""
    assert losses(deepspeed_runs / "zero3-loaded-2") == pytest.approx(
        losses(deepspeed_runs / "ddp-loaded-1"), rel=1e-5
    )
    wanted = final_weights(deepspeed_runs / "ddp-loaded-1")
    for name, value in final_weights(deepspeed_runs / "zero3-loaded-2").items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=name)
        if name in EMBEDDINGS:
            assert torch.equal(value[:TEXT_SIZE], wanted[name][:TEXT_SIZE]), name


def test_a_trainer_refuses_at_once(deepspeed_runs):
    said = (deepspeed_runs / "refused.txt").read_text()
    assert "stage3_gather_16bit_weights_on_model_save must be true" in said


def test_the_command_trains_in_pieces(deepspeed_runs):
    """One process saves the quantizer; it must not wait for the others to load it."""
    start, output = deepspeed_runs / "start", deepspeed_runs / "zero3-command-2"
    assert json.loads((output / "metrics.json").read_text())["steps"] == 4
    before, after = load_file(start / "model.safetensors"), load_file(output / "model.safetensors")
    layout = AutoConfig.from_pretrained(start).layout
    for name in EMBEDDINGS:
        moved = (before[name] != after[name]).any(dim=1)
        assert not moved[: layout.text_size].any(), name
        assert moved[layout.text_size :].any(), name
    quantizer = load_file(output / "vq_model" / "model.safetensors")
    for name, value in load_file(start / "vq_model" / "model.safetensors").items():
        assert torch.equal(value, quantizer[name]), name
