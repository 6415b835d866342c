"""Each cell of the table of families in docs/families.md."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys

import pytest
import torch
import transformers
from family_fixtures import (
    NAMES,
    PADDED_ROWS,
    WINDOW,
    base_config,
    base_model,
    extended,
    family_named,
)
from model_fixtures import BOI, EOI, IMAGE, LAYOUT, TEXT_SIZE, generated_grids, random_ids
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    ContinuousBatchingConfig,
    GenerationConfig,
)
from transformers.utils import find_labels

import being_vl
from being_vl import VocabularyLayout
from being_vl.models.families import MODEL_TYPES, family_of_base, family_of_checkpoint
from being_vl.models.frozen_rows import FreezesRows
from being_vl.models.loading import base_family, extend_text_model, load_base, load_language_model
from being_vl.serving.plain import export_checkpoint
from being_vl.training.arguments import ModelArguments, StageArguments
from being_vl.training.stages import add_lora, merge_lora, prepare_stage

TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
EACH = pytest.mark.parametrize("name", NAMES)


@EACH
@TIED
def test_text_stays_and_the_stock_class_loads_it(tmp_path, name, tied):
    """Also: unused rows of the base's matrices are taken first, and softcapping and scales are kept."""
    base = base_model(name, tied=tied)
    assert base.get_input_embeddings().weight.shape[0] == TEXT_SIZE + PADDED_ROWS
    model = extended(base)
    text = random_ids(2, 15, high=TEXT_SIZE)
    assert torch.equal(model(text).logits[..., :TEXT_SIZE], base(text).logits[..., :TEXT_SIZE])
    assert model.get_input_embeddings().weight.shape[0] == LAYOUT.size
    model.save_pretrained(tmp_path)
    ids = random_ids(2, 15)
    expected = model(ids).logits
    stock = type(base).from_pretrained(tmp_path)
    assert type(stock) is type(base) and torch.equal(stock(ids).logits, expected)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is type(model) and torch.equal(loaded(ids).logits, expected)
    assert type(load_language_model(tmp_path)) is type(model)
    if name == "being_vl_gemma3":
        assert expected.abs().max() <= 5.0


_IN_A_NEW_PROCESS = """
import json, sys, torch, being_vl
from transformers import AutoModelForCausalLM
ids, seen = torch.tensor([json.loads(sys.argv[2])]), {}
for name in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}").eval()
    image = model.generate(ids, generation_mode="image", do_sample=False)
    seen[name] = [model(ids).logits.double().sum().item(), image[0].tolist()]
print(json.dumps(seen))
"""


@pytest.fixture(scope="module")
def new_process(tmp_path_factory):
    """(ids, family → sum of logits and generated image): one process for all families, since it takes seconds."""
    folder, ids = tmp_path_factory.mktemp("saved"), random_ids(1, 6, high=TEXT_SIZE)
    for name in NAMES:
        extended(base_model(name)).save_pretrained(folder / name)
    run = subprocess.run(
        [sys.executable, "-c", _IN_A_NEW_PROCESS, str(folder), json.dumps(ids[0].tolist()), *NAMES],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return ids, json.loads(run.stdout.splitlines()[-1])


@EACH
def test_a_new_process_gives_the_same_logits_and_image(new_process, name):
    ids, seen = new_process
    model = extended(base_model(name))
    total, image = seen[name]
    assert total == model(ids).logits.double().sum().item()
    generated_grids(torch.tensor([image]))
    assert image == model.generate(ids, generation_mode="image", do_sample=False)[0].tolist()


@EACH
def test_generation_of_text_ends_at_any_of_the_ends(name):
    model = extended(base_model(name))
    assert model.generation_config.eos_token_id == [2, 3]
    ids = random_ids(3, 6, high=TEXT_SIZE)
    out = model.generate(ids, max_new_tokens=9, do_sample=False)[:, 6:]
    assert out.max() < TEXT_SIZE or (out[out >= TEXT_SIZE] == model.config.pad_token_id).all()
    for row in out.tolist():
        ends = [place for place, token_id in enumerate(row) if token_id in (2, 3)]
        assert not ends or set(row[ends[0] + 1 :]) <= {model.config.pad_token_id}


@pytest.mark.parametrize("name", ["being_vl", "being_vl_mistral"])
def test_continuous_batching_generates_text_as_generate_does(name):
    model = extended(base_model(name))
    config = GenerationConfig(max_new_tokens=20, do_sample=False, eos_token_id=-1)
    sizes = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=32)
    ids = random_ids(3, 9, high=TEXT_SIZE)
    expected = model.generate(ids, generation_config=config)[:, ids.shape[1] :]
    out = model.generate_batch(ids.tolist(), config, continuous_batching_config=sizes, warmup=False)
    assert [one.generated_tokens for one in out.values()] == expected.tolist()


@EACH
@TIED
def test_two_stages_move_what_they_may(name, tied):
    model = extended(base_model(name, tied=tied))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for stage in ("pretrain", "sft"):
        prepare_stage(model, stage)
        held = model.frozen_row_parameter_names
        groups = [
            {"params": [p], "weight_decay": 0.0 if key in held else 0.1}
            for key, p in model.named_parameters()
            if p.requires_grad
        ]
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        for step in range(3):
            ids = random_ids(3, 12, seed=step)
            model(ids, labels=ids, loss_logits_only=True).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        moved = {
            key for key, value in model.state_dict().items() if not torch.equal(value, before[key])
        }
        rows = model.get_output_embeddings().weight
        if stage == "pretrain":
            assert moved == {"model.embed_tokens.weight", "lm_head.weight"}
            for key in moved:
                assert torch.equal(model.state_dict()[key][:TEXT_SIZE], before[key][:TEXT_SIZE])
            assert (rows[TEXT_SIZE:] != before["lm_head.weight"][TEXT_SIZE:]).any(dim=1).all()
        else:
            assert not torch.equal(rows[:TEXT_SIZE], before["lm_head.weight"][:TEXT_SIZE])
            assert "model.norm.weight" in moved


@EACH
@TIED
def test_lora_moves_new_rows_and_adapters_alone(name, tied):
    pytest.importorskip("peft")
    model = extended(base_model(name, tied=tied))
    before = model.get_output_embeddings().weight.detach().clone()
    wrapped = add_lora(model, ModelArguments("x", lora_r=2), StageArguments(stage="sft"))
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    ids = random_ids(3, 12)
    for _ in range(3):
        wrapped(input_ids=ids, labels=ids, loss_logits_only=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    wrapped.eval()
    expected = wrapped(input_ids=ids).logits
    merged = merge_lora(wrapped)
    rows = merged.get_output_embeddings().weight
    assert torch.equal(rows[:TEXT_SIZE], before[:TEXT_SIZE])
    assert (rows[TEXT_SIZE:] != before[TEXT_SIZE:]).any(dim=1).all()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-4)
    assert isinstance(merged.get_input_embeddings(), FreezesRows)


@EACH
def test_label_only_logits_give_the_same_loss(name):
    model = extended(base_model(name))
    ids = random_ids(2, 12)
    labels = torch.where(ids % 3 == 0, ids, -100)
    whole, few = model(ids, labels=labels), model(ids, labels=labels, loss_logits_only=True)
    torch.testing.assert_close(whole.loss, few.loss)
    assert few.logits.shape == (int((labels[:, 1:] != -100).sum()), LAYOUT.size)


@EACH
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_samples_see_what_each_sees_alone(name, attention):
    """Longer than the window of the families that have one."""
    model = extended(base_model(name))
    model.set_attn_implementation(attention)
    first, second = random_ids(1, WINDOW + 3), random_ids(1, 2 * WINDOW, seed=1)
    sizes = [ids.shape[1] for ids in (first, second)]
    block = torch.block_diag(*(torch.ones(size, size) for size in sizes)).tril().bool()[None, None]
    positions = torch.cat([torch.arange(size) for size in sizes])[None]
    both = torch.cat([first, second], dim=1)
    for mask in (block, torch.where(block, 0.0, torch.finfo(torch.float32).min)):
        packed = model(both, attention_mask=mask, position_ids=positions).logits
        torch.testing.assert_close(packed[:, : sizes[0]], model(first).logits)
        torch.testing.assert_close(packed[:, sizes[0] :], model(second).logits)


@EACH
def test_grid_positions_start_at_nothing(name):
    base = base_model(name)
    codes = torch.arange(20) % LAYOUT.codebook_size + LAYOUT.first_code_id
    ids = torch.cat([torch.tensor([1, BOI]), codes, torch.tensor([EOI, 5])])[None]
    model = extended(base, image_positions="grid")
    assert torch.equal(model(ids).logits, extended(base)(ids).logits)
    torch.nn.init.normal_(model.model.grid_positions.rows)
    assert not torch.equal(model(ids).logits, extended(base)(ids).logits)
    generated_grids(model.generate(ids, generation_mode="image", do_sample=False))


@EACH
def test_rows_are_resized(name):
    model = extended(base_model(name))
    model.freeze_text_embeddings()
    model.resize_image_embeddings(LAYOUT.num_image_tokens + 7)
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        assert isinstance(layer, FreezesRows) and layer.frozen_rows == (0, TEXT_SIZE)
        assert layer.weight.shape[0] == LAYOUT.size + 7
    assert model(random_ids(1, 5, high=LAYOUT.size + 7)).logits.shape[-1] == LAYOUT.size + 7


@EACH
def test_the_forward_takes_what_the_stock_forward_takes(name):
    family = family_named(name)
    kind = getattr(being_vl, family.language_model_class)
    stock = inspect.signature(getattr(transformers, family.stock_class).forward).parameters
    ours = inspect.signature(kind.forward).parameters
    assert list(ours)[: len(stock) - 1] == [key for key in stock if key != "kwargs"]
    assert set(ours) - set(stock) == {"image_token_positions", "loss_logits_only"}
    assert find_labels(kind) == [
        "labels"
    ]  # a Trainer evaluates a loss only where each of these is given
    with pytest.raises(TypeError, match="arguments, got"):
        extended(base_model(name))(*range(40))


@EACH
def test_an_export_is_the_plain_text_model(tmp_path, name):
    class Tokenizer:
        def save_pretrained(self, folder):
            (folder / "tokenizer_config.json").write_text("{}")

    model = extended(base_model(name))
    export_checkpoint(model, Tokenizer(), tmp_path / "plain")
    config = json.loads((tmp_path / "plain/config.json").read_text())
    family = family_named(name)
    assert (config["model_type"], config["architectures"]) == (
        family.base_type,
        [family.stock_class],
    )
    assert config["being_vl"]["text_vocab_size"] == TEXT_SIZE and "codebook_size" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    ids = random_ids(2, 9)
    assert type(plain).__name__ == family.stock_class
    assert torch.equal(plain(ids).logits, model(ids).logits)


def test_a_leftover_window_in_a_llama_changes_nothing():
    """Its attention has none, so a 4D mask is not cut to it."""
    model = extended(base_model("being_vl"))
    model.config.sliding_window = 2
    model.config.layer_types = ["sliding_attention"] * 2
    ids = random_ids(1, 9)
    block = torch.ones(9, 9).tril().bool()[None, None]
    torch.testing.assert_close(model(ids, attention_mask=block).logits, model(ids).logits)


# ---------------------------------------------------------------- what cannot be extended


def test_each_family_is_found_by_its_configuration(tmp_path):
    for name in NAMES:
        folder = tmp_path / name
        base_config(name).save_pretrained(folder)
        assert base_family(folder) == family_named(name) == family_of_checkpoint(name, "x")
    base_model("being_vl_qwen2").save_pretrained(tmp_path / "model")
    assert type(load_base(tmp_path / "model")) is transformers.Qwen2ForCausalLM


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen3_moe", "num_experts": 128}, "is a mixture of experts"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "is a mixture of experts"),
        ({"model_type": "gemma3", "vision_config": {"a": 1}}, "vision or audio tower of its own"),
        (
            {"model_type": "a", "vision_config": {"b": 1}, "text_config": {"model_type": "qwen3"}},
            r"give its text model \(qwen3\), saved by itself",
        ),
        (
            {"model_type": "a", "vision_config": {"b": 1}, "text_config": {"model_type": "c"}},
            r"tower of its own\. What can be extended",  # its text model could not be either
        ),
        ({"model_type": "gpt2"}, "no class extends that type. What can be extended: Llama"),
        ({"model_type": "being_vl_qwen3"}, "is a Being-VL checkpoint .* not a text model"),
        ({}, "type None"),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(config, message):
    with pytest.raises(ValueError, match=message):
        family_of_base(config, "the base")


def test_checkpoints_of_another_family_or_kind_are_named(tmp_path):
    extended(base_model("being_vl_qwen3")).save_pretrained(tmp_path / "qwen3")
    with pytest.raises(ValueError, match="AutoModelForCausalLM and AutoConfig know its class"):
        being_vl.BeingVLForCausalLM.from_pretrained(tmp_path / "qwen3")
    base_config("being_vl_qwen3").save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match="`being-vl init` makes one"):
        load_language_model(tmp_path / "stock")
    with pytest.raises(OSError):
        base_family(tmp_path / "nothing")
    assert "being_vl" in MODEL_TYPES and len(MODEL_TYPES) == 8


def test_a_head_with_a_bias_is_refused():
    base = base_model("being_vl")
    base.lm_head = torch.nn.Linear(32, 112)
    with pytest.raises(ValueError, match="head with a bias"):
        extended(base)


# ---------------------------------------------------------------- new rows and text


def trained_looking(name: str, *, tied: bool):
    """A base whose hidden states share a direction and whose logits are sharp, as a trained model's are."""
    base = base_model(name, tied=tied, rows=TEXT_SIZE)
    generator = torch.Generator().manual_seed(5)
    common = torch.nn.functional.normalize(torch.randn(32, generator=generator), dim=0)
    with torch.no_grad():
        base.get_input_embeddings().weight.add_(3 * common)
        # The final norm makes hidden states long, so that logits are sharp.
        gain = base.model.norm.weight
        gain.add_(2 if name == "being_vl_gemma3" else 4)
    return base


@EACH
@TIED
@pytest.mark.parametrize("codes", [16, 16384])
def test_the_default_leaves_text_alone_in_an_unmasked_softmax(name, tied, codes):
    base = trained_looking(name, tied=tied)
    if name == "being_vl_gemma3":
        base.config.final_logit_softcapping = None  # caps at 5, where 16,384 rows cannot be quiet
    layout = VocabularyLayout(TEXT_SIZE, 4, codes, 0)
    special = {"boi_token_id": BOI, "eoi_token_id": EOI, "image_token_id": IMAGE}
    ids = random_ids(8, 32, high=TEXT_SIZE, seed=9)
    losses = {}
    for image_init in ("mean_text", "normal"):
        model = extend_text_model(
            base,
            layout,
            **special,
            image_init=image_init,
            generator=torch.Generator().manual_seed(0),
        )
        with torch.no_grad():
            losses[image_init] = model.eval()(ids, labels=ids).loss - base(ids, labels=ids).loss
    assert losses["mean_text"] < 0.01
    if codes == 16384 and name == "being_vl":  # the test can fail
        assert losses["normal"] > 0.1


def test_a_base_with_damaged_weights_is_refused():
    base = base_model("being_vl")
    torch.nn.init.zeros_(base.model.norm.weight)
    layout = VocabularyLayout(TEXT_SIZE, 4, 16, 0)
    special = {"boi_token_id": BOI, "eoi_token_id": EOI, "image_token_id": IMAGE}
    with pytest.raises(ValueError, match="hidden states are not finite, or all zero"):
        extend_text_model(base, layout, **special, image_init="mean_text")


def test_a_base_whose_rows_cannot_be_quiet_is_told(caplog):
    base = base_model(
        "being_vl", initializer_range=0.001
    )  # all logits alike: rows count by their number
    layout = VocabularyLayout(TEXT_SIZE, 4, 4096, 0)
    with caplog.at_level("WARNING", logger="being_vl"):
        extend_text_model(base, layout, boi_token_id=BOI, eoi_token_id=EOI, image_token_id=IMAGE)
    assert "raise the loss on text by" in caplog.text
