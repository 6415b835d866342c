"""The language model among its neighbours: PEFT, TRL, quantization, torch.compile, static cache."""

import numpy as np
import pytest
import torch
from checkpoint_fixtures import tiny_checkpoint
from model_fixtures import LAYOUT, TEXT_SIZE, being_vl_model, generated_grids, random_ids
from PIL import Image
from transformers import AutoModelForCausalLM, LlamaForCausalLM, StaticCache

from being_vl.hub.checkpoint import save_checkpoint

peft = pytest.importorskip("peft")

TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
IMAGE_ROWS = list(range(TEXT_SIZE, LAYOUT.size))
# Of the trainers of TRL.
UNRECORDED = {"report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False}
LEARNING = {**UNRECORDED, "learning_rate": 1e-2, "max_length": None, "logging_steps": 1, "seed": 0}


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def _with_lora(tied: bool):
    model = being_vl_model(tied=tied)
    rows = IMAGE_ROWS if tied else {"embed_tokens": IMAGE_ROWS, "lm_head": IMAGE_ROWS}
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj"],
        trainable_token_indices=rows,
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, config)


def _train(model, steps=4):
    model.train()
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    for step in range(steps):
        ids = random_ids(4, 12, seed=step)
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@TIED
def test_lora_trains_image_rows_and_merges_exactly(tied, tmp_path):
    before = being_vl_model(tied=tied)
    model = _train(_with_lora(tied))
    ids = random_ids(2, 9)
    expected = model(input_ids=ids).logits
    assert not torch.allclose(expected, before(ids).logits, atol=1e-2)
    model.save_pretrained(tmp_path / "adapter")
    loaded = peft.PeftModel.from_pretrained(being_vl_model(tied=tied), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected)

    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-5)
    head, embedding = merged.get_output_embeddings().weight, merged.get_input_embeddings().weight
    assert (head is embedding) == tied
    for matrix, old in (
        (head, before.lm_head.weight),
        (embedding, before.model.embed_tokens.weight),
    ):
        assert torch.equal(matrix[:TEXT_SIZE], old[:TEXT_SIZE])
        assert not torch.equal(matrix[TEXT_SIZE:], old[TEXT_SIZE:])
    merged.save_pretrained(tmp_path / "merged")
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "merged")
    assert torch.equal(stock(ids).logits, merged(ids).logits)


@TIED
def test_a_model_with_lora_generates_images(tied):
    model = _with_lora(tied).eval()
    prompt = random_ids(2, 5, high=TEXT_SIZE)
    out = model.generate(input_ids=prompt, generation_mode="image")
    assert len(generated_grids(out)) == 2
    assert torch.equal(out, being_vl_model(tied=tied).generate(prompt, generation_mode="image"))


def test_row_freezing_works_under_lora():
    model = being_vl_model()
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    model.freeze_text_embeddings()
    before = model.lm_head.weight.detach().clone()
    _train_without_decay(wrapped, model)
    moved = (model.lm_head.weight != before).any(dim=1)
    assert not moved[:TEXT_SIZE].any() and moved[TEXT_SIZE:].all()


def test_freezing_what_peft_has_wrapped_is_refused():
    model = being_vl_model()
    whole = ["embed_tokens", "lm_head"]
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], modules_to_save=whole))
    with pytest.raises(TypeError, match="ModulesToSaveWrapper cannot be frozen"):
        model.freeze_text_embeddings()
    assert model.frozen_row_parameter_names == set() and not _frozen_layers(model)


@pytest.mark.parametrize("wrapped", ["embed_tokens", "lm_head"])
def test_freezing_takes_both_matrices_or_none(wrapped):
    model = being_vl_model()
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=[wrapped])
    peft.get_peft_model(model, config)
    with pytest.raises(TypeError, match="ModulesToSaveWrapper cannot be frozen"):
        model.freeze_text_embeddings()
    assert model.frozen_row_parameter_names == set() and not _frozen_layers(model)


def test_unfreezing_reaches_into_what_peft_has_wrapped():
    model = being_vl_model()
    model.freeze_text_embeddings()
    whole = ["embed_tokens", "lm_head"]
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=whole)
    wrapped = peft.get_peft_model(model, config)
    assert _frozen_layers(model)
    model.unfreeze()
    assert not _frozen_layers(model)
    before = model.lm_head.weight.detach().clone()
    _train_without_decay(wrapped, model)
    assert (model.lm_head.weight != before).any(dim=1).all()


def _frozen_layers(model):
    return [
        name
        for name, layer in model.named_modules()
        if getattr(layer, "frozen_rows", None) is not None
    ]


def _train_without_decay(wrapped, model):
    optimizer = torch.optim.AdamW(
        [p for p in wrapped.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0
    )
    ids = random_ids(4, 12)
    for _ in range(3):
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_quantizing_the_linear_layers_leaves_embedding_and_head():
    """As bitsandbytes, torchao and quanto choose what to replace: every linear layer but the head."""
    from transformers.quantizers.base import get_keys_to_not_convert

    model = being_vl_model()
    kept = get_keys_to_not_convert(model)
    assert "lm_head" in kept
    replaced = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in kept
    }
    assert len(replaced) == 7 * model.config.num_hidden_layers


def test_static_cache_gives_the_logits_of_a_dynamic_one():
    model = being_vl_model()
    ids = random_ids(2, 9)
    cache = StaticCache(config=model.config, max_cache_len=16)
    with torch.no_grad():
        first = model(ids[:, :6], past_key_values=cache).logits
        second = model(
            ids[:, 6:], past_key_values=cache, position_ids=torch.arange(6, 9)[None]
        ).logits
    torch.testing.assert_close(torch.cat([first, second], dim=1), model(ids).logits)


def test_compiled_without_graph_breaks():
    model = being_vl_model()
    ids = random_ids(2, 9)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits)


def test_half_precision_is_a_stock_llamas(tmp_path):
    being_vl_model(dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    stock = LlamaForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == stock.dtype == torch.bfloat16
    ids = random_ids(2, 9)
    assert torch.equal(loaded(ids).logits, stock(ids).logits)


def test_trl_trains_on_messages_with_images(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, processor = tiny_checkpoint()
    image = noise()
    question = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": "A red square."}]},
    ]
    rows = Dataset.from_list([{"messages": messages, "images": [image]}] * 4)
    args = trl.SFTConfig(
        output_dir=str(tmp_path),
        max_steps=8,
        per_device_train_batch_size=2,
        assistant_only_loss=True,
        gradient_checkpointing=False,
        **LEARNING,
    )
    trainer = trl.SFTTrainer(model, args=args, train_dataset=rows, processing_class=processor)
    batch = next(iter(trainer.get_train_dataloader()))
    learned = batch["labels"][0][batch["labels"][0] != -100]
    assert processor.decode(learned).startswith("A red square.")
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.7 * losses[0]


def test_trl_makes_the_reference_model_from_the_folder(tmp_path):
    """DPO of all weights, which loads the checkpoint a second time by what its configuration says."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    save_checkpoint(*tiny_checkpoint(), tmp_path / "checkpoint")
    image = noise()
    prompt = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    row = {"images": [image], "prompt": [{"role": "user", "content": prompt}]}
    for name, text in (("chosen", "A red square."), ("rejected", "No.")):
        row[name] = [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
    args = trl.DPOConfig(output_dir=str(tmp_path / "run"), max_steps=4, **LEARNING)
    folder = str(tmp_path / "checkpoint")
    trainer = trl.DPOTrainer(folder, args=args, train_dataset=Dataset.from_list([row] * 4))
    trainer.train()
    margins = [e["rewards/margins"] for e in trainer.state.log_history if "rewards/margins" in e]
    assert margins[-1] > margins[0]
    assert "auto_map" not in trainer.ref_model.config.to_dict()  # nothing of this is written


def test_trl_rewards_answers_to_prompts_that_contain_images(tmp_path):
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    model, processor = tiny_checkpoint()
    image = noise()
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is this?"}]
    options = {"add_generation_prompt": True, "return_dict": True}
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, tokenize=False, **options)
    tokens = processor.tokenizer.convert_ids_to_tokens(processor.image_ids(image)[0])
    prompt = text.replace(processor.image_token, "".join(tokens))
    ids = processor.apply_chat_template(messages, tokenize=True, **options)["input_ids"]
    assert processor.tokenizer(prompt, add_special_tokens=False).input_ids == ids[0]

    def reward(completions, completion_ids, **_):
        seen.extend(completion_ids)
        return [float(len(text)) for text in completions]

    seen: list[list[int]] = []
    args = trl.GRPOConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        num_generations=2,
        per_device_train_batch_size=2,
        max_completion_length=6,
        **UNRECORDED,
    )
    rows = Dataset.from_list([{"prompt": prompt}] * 2)
    trl.GRPOTrainer(model, reward, args, rows, processing_class=processor.tokenizer).train()
    first = model.config.layout.first_code_id
    assert len(seen) == 2 and all(token_id < first for row in seen for token_id in row)
