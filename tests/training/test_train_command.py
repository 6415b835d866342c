"""`being-vl train` and `run_stage`: options, stages from folder to folder, what a finished run leaves."""

from __future__ import annotations

import dataclasses
import json
import resource
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from training_fixtures import StopAt, arguments, checkpoint_folder, tokenized, tokenized_folder
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    HfArgumentParser,
    LlamaConfig,
)

from being_vl.cli import main
from being_vl.cli.train import make_parser, parse_arguments
from being_vl.training.arguments import (
    BeingVLTrainingArguments,
    DataArguments,
    ModelArguments,
    StageArguments,
)
from being_vl.training.run import run_stage
from being_vl.training.stage_trainer import load_for_training

CLASSES = (ModelArguments, DataArguments, StageArguments, BeingVLTrainingArguments)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "start"
    model, processor = checkpoint_folder(folder)
    return folder, model, processor


@pytest.fixture(scope="module")
def data(checkpoint):
    return tokenized(checkpoint[2])


# ---------------------------------------------------------------- options


def test_hf_argument_parser_reads_the_same_options(tmp_path):
    """The dataclasses parse with HfArgumentParser, to what the command makes of the same flags."""
    flags = [
        "--checkpoint", "folder", "--data", "rows", "--stage", "selective",
        "--code_weight", "0.25", "--output_dir", str(tmp_path), "--learning_rate", "1e-3",
        "--packing", "samples", "--use_cpu", "true", "--bf16", "false", "--max_length", "77",
        "--warmup_steps", "0.1", "--lora_r", "4", "--drop_long", "true", "--activation_checkpointing", "true",
    ]  # fmt: skip
    theirs = HfArgumentParser(CLASSES).parse_args_into_dataclasses(
        [*flags, "--train_layers", "0", "2"], look_for_args_file=False
    )
    ours = parse_arguments(make_parser().parse_args([*flags, "--train_layers", "[0, 2]"]))
    for one, other in zip(theirs, ours, strict=True):
        for field in dataclasses.fields(one):
            if field.init:
                pair = getattr(one, field.name), getattr(other, field.name)
                assert str(pair[0]) == str(pair[1]), (field.name, pair)
    assert ours[2].train_layers == [0, 2] and ours[3].learning_rate == 1e-3


def test_a_yaml_file_is_overridden_by_flags(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "checkpoint: a\ndata: b\nlearning_rate: 2.0e-3\nstage: pretrain\n"
    )
    options = [
        "--config",
        str(tmp_path / "run.yaml"),
        "--learning_rate",
        "5e-4",
        "--use_cpu",
        "true",
    ]
    model, _, stage, training = parse_arguments(make_parser().parse_args(options))
    assert (model.checkpoint, stage.stage) == ("a", "pretrain")
    assert training.learning_rate == 5e-4
    assert (training.lr_scheduler_type, training.warmup_steps) == ("cosine", 0.03)  # Table B.3
    assert training.weight_decay == 0


@pytest.mark.parametrize(
    "line, message",
    [
        ("learning_rat: 1.0e-3", "learning_rat"),
        ("stage: stage-1", "stage-1"),
        ("learning_rate: fast", "learning_rate"),
        ("code_weight: -1", "code_weight must not be negative, got -1"),
        ("remove_unused_columns: true", "remove_unused_columns must be false"),
        ("push_to_hub: true", "push_to_hub must be false: being-vl push uploads"),
    ],
)
def test_bad_options_are_one_line_and_status_2(tmp_path, capsys, line, message):
    (tmp_path / "run.yaml").write_text(
        f"checkpoint: a\ndata: b\noutput_dir: {tmp_path}/out\n{line}\n"
    )
    try:
        status = main(["train", "--config", str(tmp_path / "run.yaml")])
    except SystemExit as stop:
        status = stop.code
    assert status == 2
    assert message in capsys.readouterr().err


# ---------------------------------------------------------------- runs


def test_two_stages_from_folder_to_folder(tmp_path, checkpoint, data):
    """Each stage's folder is a whole checkpoint, which the next begins with and the Auto classes load."""
    start, model, processor = checkpoint
    first = run_stage(
        *arguments(start, tmp_path / "pt", stage={"stage": "pretrain"}),
        train_dataset=data,
        eval_dataset=data,
    )
    assert first.metrics["steps"] == 4
    assert set(first.metrics) >= {"train_loss", "eval_loss", "eval_loss_text"}
    second = run_stage(*arguments(first.output_dir, tmp_path / "sft"), train_dataset=data)
    trained = AutoModelForImageTextToText.from_pretrained(second.output_dir)
    again = AutoProcessor.from_pretrained(second.output_dir)
    assert again.vq_model.config.num_embeddings == model.config.codebook_size
    assert len(again.tokenizer) == len(processor.tokenizer)
    text = model.config.text_vocab_size
    rows = {
        name: AutoModelForImageTextToText.from_pretrained(folder).get_input_embeddings().weight
        for name, folder in (("start", start), ("pt", first.output_dir))
    }
    assert torch.equal(rows["start"][:text], rows["pt"][:text])
    assert not torch.equal(rows["start"][text:], rows["pt"][text:])
    assert not torch.equal(rows["pt"][:text], trained.get_input_embeddings().weight[:text])
    left = {path.name for path in Path(second.output_dir).iterdir()}
    assert left >= {
        "train.yaml",
        "metrics.json",
        "trainer_state.json",
        "vq_model",
        "image_bpe.json",
    }
    assert not left & {"training_args.bin", ".finished"}


def test_the_saved_settings_run_again(tmp_path, checkpoint, data):
    """train.yaml is read by the command's parser, to the arguments that wrote it."""
    given = arguments(
        checkpoint[0],
        tmp_path / "out",
        stage={"stage": "selective", "train_layers": [1]},
        model={"lora_target_modules": ["q_proj"]},
        max_steps=1,
    )
    run_stage(*given, train_dataset=data)
    read = parse_arguments(
        make_parser().parse_args(["--config", str(tmp_path / "out" / "train.yaml")])
    )
    assert read[:3] == given[:3]
    assert read[3].to_dict() == given[3].to_dict()


def test_a_finished_run_returns_and_another_is_refused(tmp_path, checkpoint, data):
    given = arguments(checkpoint[0], tmp_path / "out", max_steps=1)
    result = run_stage(*given, train_dataset=data)
    weights = (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns
    again = arguments(checkpoint[0], tmp_path / "out", max_steps=1, logging_steps=7)
    assert run_stage(*again, train_dataset=data) == result
    assert (tmp_path / "out" / "model.safetensors").stat().st_mtime_ns == weights
    other = arguments(checkpoint[0], tmp_path / "out", max_steps=1, learning_rate=0.5)
    with pytest.raises(ValueError, match=r"learning_rate is 0\.01, but this run's is 0\.5"):
        run_stage(*other, train_dataset=data)
    with pytest.raises(ValueError, match="holds a checkpoint that no run of this command made"):
        run_stage(*arguments(checkpoint[0], checkpoint[0]), train_dataset=data)


def test_the_command_end_to_end(tmp_path, checkpoint, data, capsys):
    """A YAML file and a tokenized folder → a checkpoint; the metrics as JSON."""
    tokenized_folder(tmp_path / "rows", data, checkpoint[2])
    options = {
        "checkpoint": str(checkpoint[0]),
        "data": str(tmp_path / "rows"),
        "eval_data": str(tmp_path / "rows"),
        "output_dir": str(tmp_path / "out"),
        "stage": "pretrain",
        "packing": "samples",
        "max_length": 120,
        "max_steps": 2,
        "use_cpu": True,
        "save_strategy": "no",
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["steps"] == 2 and printed["eval_loss"] > 0
    assert (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("save", "limit", "file"),
    [
        ("steps", 0.5, ".partial/checkpoint-1/model.safetensors"),
        ("steps", 1.2, ".partial/checkpoint-1/optimizer.pt"),
        ("no", 0.5, ".finished/model.safetensors"),
    ],
)
def test_a_full_disk_is_one_line_that_names_the_file(
    tmp_path, checkpoint, data, capsys, save, limit, file
):
    """safetensors' and torch's own errors; the next run makes what this one could not write."""
    tokenized_folder(tmp_path / "rows", data, checkpoint[2])
    out = tmp_path / "out"
    argv = [
        "train",
        "--checkpoint",
        checkpoint[0],
        "--data",
        tmp_path / "rows",
        "--output_dir",
        out,
    ]
    argv += ["--max_steps", 1, "--use_cpu", "true", "--save_strategy", save, "--save_steps", 1]
    argv = [*map(str, argv), "--report_to", "none", "--disable_tqdm", "true"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (checkpoint[0] / "model.safetensors").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit * size), limits[1]))
    try:
        assert main(argv) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1
    assert lines[0].startswith(f"being-vl train: error: {out}/{file}: cannot be written, ")
    assert not (out / "finished.json").exists() and not (out / "checkpoint-1").exists()
    assert main(argv) == 0


def test_a_plain_llama_is_refused(tmp_path):
    LlamaConfig().save_pretrained(tmp_path)
    with pytest.raises(
        ValueError,
        match="is a model of type 'llama', not a Being-VL checkpoint; `being-vl init` makes",
    ):
        load_for_training(ModelArguments(checkpoint=str(tmp_path)), StageArguments())


@pytest.mark.parametrize(
    "options",
    [
        {
            "data": {"packing": "samples", "max_length": 120},
            "activation_checkpointing": True,
            "gradient_accumulation_steps": 2,
        },
        {
            "model": {"use_peft": True, "lora_dropout": 0.5},
            "train_sampling_strategy": "group_by_length",
        },
    ],
    ids=["packed", "lora"],
)
def test_a_stopped_run_goes_on_to_the_same_weights(tmp_path, checkpoint, data, options):
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2, **options}
    whole = run_stage(*arguments(checkpoint[0], tmp_path / "whole", **options), train_dataset=data)
    given = arguments(checkpoint[0], tmp_path / "stopped", **options)
    with pytest.raises(KeyboardInterrupt):
        run_stage(*given, train_dataset=data, callbacks=[StopAt(5)])
    again = run_stage(*given, train_dataset=data)
    assert again.metrics["steps"] == 6
    weights = [load_file(Path(r.output_dir) / "model.safetensors") for r in (whole, again)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"stage": {"stage": "sft", "train_layers": [0]}},
            "train_layers is for the stage selective",
        ),
        ({"stage": {"stage": "pretrain", "freeze": "image"}}, "freeze is for the stage sft"),
        ({"stage": {"stage": "selective", "train_layers": [9]}}, r"must be in \[0, 2\), got 9"),
    ],
)
def test_stages_that_do_not_fit(tmp_path, checkpoint, options, message):
    model_args, _, stage_args, _ = arguments(checkpoint[0], tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        load_for_training(model_args, stage_args)
