"""The merge rules that came with a checkpoint are saved with the model again, touched or not."""

from __future__ import annotations

import json

import pytest
from checkpoint_fixtures import tiny_checkpoint
from transformers import AutoModelForCausalLM

from being_vl.hub.checkpoint import save_checkpoint


@pytest.fixture
def folder(tmp_path):
    save_checkpoint(*tiny_checkpoint(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    "change", [lambda m: m, lambda m: m.bfloat16(), lambda m: m.to("meta").to_empty(device="cpu")]
)
def test_untouched_moved_and_cast(folder, tmp_path, monkeypatch, change):
    monkeypatch.chdir(folder.parent)
    model = change(AutoModelForCausalLM.from_pretrained("checkpoint"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.save_pretrained("saved")
    wanted = json.loads((folder / "image_bpe.json").read_text())
    assert json.loads((tmp_path / "elsewhere" / "saved" / "image_bpe.json").read_text()) == wanted
