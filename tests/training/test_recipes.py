"""hub_configs/training: every recipe loads through the real parser, says its command, and the small ones run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from training_fixtures import checkpoint_folder, tokenized, tokenized_folder
from transformers import AutoModelForImageTextToText, AutoProcessor

from being_vl.cli import main
from being_vl.cli.train import make_parser, parse_arguments

FOLDER = Path(__file__).parents[2] / "hub_configs" / "training"
RECIPES = sorted(FOLDER.glob("*.yaml"))
PAPER = {  # Table B.3
    "pretrain": {"learning_rate": 1e-3, "gradient_accumulation_steps": 2, "num_train_epochs": 3},
    "sft": {"learning_rate": 3e-5, "gradient_accumulation_steps": 4, "num_train_epochs": 2},
}


def load(recipe: Path):
    """As the command loads it; these tests have no GPU, and none is asked for by `use_cpu`."""
    return parse_arguments(make_parser().parse_args(["--config", str(recipe), "--use_cpu", "true"]))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_the_real_parser_takes_it(recipe):
    parts = load(recipe)
    options = yaml.safe_load(recipe.read_text())
    for name, value in options.items():
        holder = next(part for part in parts if hasattr(part, name))
        assert type(value) is not str or not re.fullmatch(r"[\d.]+e-?\d+", value), (name, value)
        found = getattr(holder, name)
        assert found == value or str(getattr(found, "value", found)) == str(value), name
    assert {"checkpoint", "data", "output_dir", "stage"} <= set(options)
    assert recipe.read_text().startswith("# ")
    assert f"hub_configs/training/{recipe.name}" in recipe.read_text().split("\nmodel_name")[0]
    assert recipe.name in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("base", ["llama-3.1-8b", "smollm2-135m"])
@pytest.mark.parametrize("stage", PAPER)
def test_table_b3(base, stage):
    _, _, stages, training = load(FOLDER / f"{base}-{stage}.yaml")
    assert stages.stage == stage
    for name, value in PAPER[stage].items():
        assert getattr(training, name) == value
    assert (training.lr_scheduler_type, training.warmup_steps) == ("cosine", 0.03)
    assert training.weight_decay == 0 and training.optim == "adamw_torch_fused"


def test_unknown_keys_are_refused(tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPES[0].read_text() + "learning_rte: 1.0e-3\n")
    with pytest.raises(SystemExit) as stop:
        make_parser().parse_args(["--config", str(recipe)])
    assert stop.value.code == 2
    assert "learning_rte" in capsys.readouterr().err


def run(recipe: str, *options: str) -> None:
    assert main(["train", "--config", str(FOLDER / f"{recipe}.yaml"), *options]) == 0


def test_the_small_ones_run(tmp_path, monkeypatch):
    """Both stages of easy-VQA, then LoRA, on a tiny checkpoint: only folders and steps are others."""
    monkeypatch.chdir(tmp_path)
    _, processor = checkpoint_folder(tmp_path / "start")
    tokenized_folder(tmp_path / "tokenized", tokenized(processor), processor)
    few = (
        "--max_steps",
        "3",
        "--save_strategy",
        "no",
        "--disable_tqdm",
        "true",
        "--max_length",
        "256",
    )
    run("easy-vqa-pretrain", *few)
    run("easy-vqa-sft", *few)
    folders = ("--checkpoint", "easy-vqa-sft", "--data", "tokenized")
    run("llama-3.2-1b-lora", *folders, *few, "--use_cpu", "true", "--dtype", "float32")
    for folder in ("easy-vqa-pretrain", "easy-vqa-sft", "llama-3.2-1b-lora"):
        model = AutoModelForImageTextToText.from_pretrained(folder)
        assert AutoProcessor.from_pretrained(folder).vq_model is not None
        assert all(torch.isfinite(p).all() for p in model.parameters())
