"""The merge rules that came with a checkpoint are saved with the model again, touched or not."""

from __future__ import annotations

import json

import pytest
import torch
from checkpoint_fixtures import tiny_checkpoint
from transformers import AutoModelForCausalLM

from being_vl import ImageBPE
from being_vl.hub.checkpoint import save_checkpoint


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """PEFT asks the Hub for files that an adapter has not."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


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


def test_wrapped_by_peft(folder, tmp_path, monkeypatch):
    """Adapters saved alone find the rules with their base; merged, or within a whole model, they are saved."""
    peft = pytest.importorskip("peft")
    model = AutoModelForCausalLM.from_pretrained(folder)
    wanted = model.image_bpe
    adapted = peft.get_peft_model(
        model,
        peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    assert adapted.image_bpe == wanted
    adapted.save_pretrained(tmp_path / "alone")
    assert not (tmp_path / "alone" / "config.json").exists()
    monkeypatch.chdir(tmp_path)
    ids = torch.tensor([[1, 2, 3]])
    logits = adapted(input_ids=ids).logits
    for loaded in (
        peft.AutoPeftModelForCausalLM.from_pretrained("alone"),
        AutoModelForCausalLM.from_pretrained("alone"),
        peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), "alone"),
    ):
        assert loaded.image_bpe == wanted
        assert torch.equal(loaded(input_ids=ids).logits, logits)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained("merged")
    assert ImageBPE.from_pretrained("merged") == merged.image_bpe == wanted
    assert torch.allclose(merged(input_ids=ids).logits, logits, atol=1e-5)


def test_a_base_named_by_a_relative_path(folder, tmp_path, monkeypatch):
    """Adapters name their base where it lay, not where the process is when they are saved or loaded."""
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(folder.parent)
    model = AutoModelForCausalLM.from_pretrained(folder.name)
    config = peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    monkeypatch.chdir("/")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "alone")
    again = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone")
    assert again.image_bpe == model.image_bpe


def test_rules_that_do_not_fit_are_said_at_loading(folder):
    ImageBPE([[0, 1, 0, 1]], 2).save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"image_bpe\.json is not loaded.*2 codes and 1 merges"):
        model = AutoModelForCausalLM.from_pretrained(folder)
    with pytest.raises(ValueError, match="2 codes and 1 merges, the model 16 and 12"):
        model.image_bpe  # noqa: B018
