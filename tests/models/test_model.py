"""BeingVLForCausalLM: a stock Llama on disk, new rows, frozen rows, label-only logits, grid positions."""

import json
import re

import pytest
import torch
from model_fixtures import (
    BOI,
    EOI,
    GRID,
    IMAGE,
    LAYOUT,
    MERGES,
    TEXT_SIZE,
    being_vl_model,
    random_ids,
    text_model,
)
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from being_vl import BeingVLConfig, BeingVLForCausalLM, ImageBPE, VocabularyLayout
from being_vl.models.quiet_rows import quiet_shift

INITS = ["normal", "mean_text", "codebook", "constituents"]
TIED = pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])


def test_config_sizes_agree():
    config = BeingVLConfig(
        text_vocab_size=10, num_special_tokens=2, codebook_size=4, num_merges=3, boi_token_id=11
    )
    assert config.layout == VocabularyLayout(10, 2, 4, 3)
    assert config.vocab_size == 19
    assert BeingVLConfig(**{**config.to_dict(), "vocab_size": 32}).layout.size == 19
    with pytest.raises(ValueError, match=r"vocab_size must be at least .* = 19, got 18"):
        BeingVLConfig(**{**config.to_dict(), "vocab_size": 18})
    with pytest.raises(ValueError, match=r"eoi_token_id must be .* in \[0, 12\), got 12"):
        BeingVLConfig(**{**config.to_dict(), "eoi_token_id": 12})
    with pytest.raises(ValueError, match="codebook_size must not be negative, got -1"):
        BeingVLConfig(codebook_size=-1)
    with pytest.raises(
        ValueError, match=r"image_grid_size must be \(height, width\).* got \[0, 3\]"
    ):
        BeingVLConfig(image_grid_size=[0, 3])
    assert BeingVLConfig(image_grid_size=[1, 7]).image_grid_size == [1, 7]  # of a sequence
    with pytest.raises(ValueError, match=r"image_grid_size \(3, 9\) exceeds max_grid_size 8"):
        BeingVLConfig(image_grid_size=[3, 9], image_positions="grid", max_grid_size=8)


@TIED
def test_stock_llama_loads_the_checkpoint_with_equal_logits(tmp_path, tied):
    model = being_vl_model(tied=tied)
    model.save_pretrained(tmp_path)
    ids = random_ids(2, 11)
    expected = model(ids).logits
    stock, info = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(stock(ids).logits, expected)
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForMultimodalLM):
        loaded = auto.from_pretrained(tmp_path)
        assert type(loaded) is BeingVLForCausalLM
        assert torch.equal(loaded(ids).logits, expected)
        assert loaded.image_bpe == ImageBPE(MERGES, LAYOUT.codebook_size)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "being_vl"


@TIED
@pytest.mark.parametrize("image_init", INITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_text_rows_and_text_logits_are_kept_bit_for_bit(tied, image_init, dtype):
    text = text_model(tied=tied, dtype=dtype)
    codebook = torch.randn(LAYOUT.codebook_size, 7)
    model = being_vl_model(tied=tied, dtype=dtype, image_init=image_init, codebook=codebook)
    assert model.dtype == dtype and model.config.dtype == dtype
    assert torch.equal(model.model.embed_tokens.weight[:TEXT_SIZE], text.model.embed_tokens.weight)
    assert torch.equal(model.lm_head.weight[:TEXT_SIZE], text.lm_head.weight)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    ids = random_ids(2, 9, high=TEXT_SIZE)
    assert torch.equal(model(ids).logits[..., :TEXT_SIZE], text(ids).logits)


def test_from_text_model_copies_and_does_not_share():
    text = text_model()
    model = BeingVLForCausalLM.from_text_model(
        text, LAYOUT, boi_token_id=BOI, eoi_token_id=EOI, image_token_id=IMAGE
    )
    before = text.model.layers[0].mlp.up_proj.weight.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(text.model.layers[0].mlp.up_proj.weight, before)


def test_padded_text_rows_are_dropped_and_too_few_refused():
    layout = VocabularyLayout(90, 4, 16, 0)
    ids = {"boi_token_id": 92, "eoi_token_id": 93, "image_token_id": 91}
    model = BeingVLForCausalLM.from_text_model(text_model(), layout, **ids)
    assert model.lm_head.weight.shape[0] == 110
    with pytest.raises(
        ValueError, match=r"layout.text_size is 101, but the text model has 100 rows"
    ):
        BeingVLForCausalLM.from_text_model(text_model(), VocabularyLayout(101, 4, 16, 0), **ids)
    with pytest.raises(TypeError, match="text_model must be a LlamaForCausalLM, got Linear"):
        BeingVLForCausalLM.from_text_model(torch.nn.Linear(2, 2), layout, **ids)


@TIED
def test_what_the_initialisations_start_from(tied):
    text = text_model(tied=tied)
    rows = text.model.embed_tokens.weight.detach()
    first = LAYOUT.first_code_id
    codebook = torch.randn(LAYOUT.codebook_size, 7, generator=torch.Generator().manual_seed(1))
    made = {
        name: being_vl_model(
            tied=tied, image_init=name, codebook=codebook
        ).model.embed_tokens.weight.detach()
        for name in INITS
    }
    assert made["normal"][TEXT_SIZE:].std().item() == pytest.approx(rows.std().item(), rel=0.1)
    spread = made["mean_text"][TEXT_SIZE:] - rows.mean(dim=0)
    assert 0 < spread.abs().max() < 0.1 * rows.std()
    for name in ("codebook", "constituents"):
        image_rows = made[name][first:]
        for rank, (a, b, _, _) in enumerate(MERGES.tolist()):
            mean = (image_rows[a] + image_rows[b]) / 2
            assert torch.equal(image_rows[LAYOUT.codebook_size + rank], mean)
    codes = made["codebook"][first : first + LAYOUT.codebook_size]
    assert codes.std().item() == pytest.approx(rows.std().item(), rel=0.01)
    # A projection keeps which codes are near and which are far.
    near_and_far = torch.stack([torch.pdist(codebook), torch.pdist(codes)])
    assert torch.corrcoef(near_and_far)[0, 1] > 0.7


def test_initialisation_is_reproducible_and_says_what_it_lacks():
    a, b, c = (being_vl_model(seed=seed).lm_head.weight for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a[TEXT_SIZE:], c[TEXT_SIZE:])
    with pytest.raises(ValueError, match=r"image_init must be one of .* got 'zeros'"):
        being_vl_model(image_init="zeros")
    with pytest.raises(ValueError, match="needs merges="):
        being_vl_model(image_init="constituents", merges=None)
    with pytest.raises(ValueError, match="needs codebook="):
        being_vl_model(image_init="codebook")
    for std in ("-1.0", "1e+38", "nan"):  # not all numbers drawn with 1e38 are a float32
        with pytest.raises(ValueError, match=rf"image_init_std must be .* got {re.escape(std)}"):
            being_vl_model(image_init_std=float(std))
    with pytest.raises(ValueError, match=r"codebook must have shape \(16, dim\), got \(15, 3\)"):
        being_vl_model(image_init="codebook", codebook=torch.zeros(15, 3))
    with pytest.raises(ValueError, match=r"merges must have shape \(5, 4\), got \(4, 4\)"):
        being_vl_model(merges=MERGES[:4])
    with pytest.raises(TypeError, match="no_field is no field of ImageVocabularyConfig"):
        being_vl_model(no_field=1)


@TIED
def test_resize_image_embeddings_keeps_rows_and_layout_in_step(tied):
    model = being_vl_model(tied=tied)
    before = model.lm_head.weight.detach().clone()
    model.freeze_text_embeddings()
    for num_image_tokens in (30, 18, 21, 16):
        model.resize_image_embeddings(num_image_tokens)
        size = LAYOUT.first_code_id + num_image_tokens
        assert model.config.layout.num_image_tokens == num_image_tokens
        assert model.config.vocab_size == model.config.layout.size == size
        assert model.lm_head.weight.shape[0] == model.lm_head.out_features == size
        assert model.model.embed_tokens.weight.shape[0] == size
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        kept = LAYOUT.first_code_id + 16
        assert torch.equal(model.lm_head.weight[:kept], before[:kept])
        assert model.lm_head.frozen_rows == model.model.embed_tokens.frozen_rows == (0, TEXT_SIZE)
        assert model(random_ids(1, 4, high=size)).logits.shape == (1, 4, size)
    with pytest.raises(ValueError, match="at least codebook_size = 16, got 15"):
        model.resize_image_embeddings(15)
    with pytest.raises(ValueError, match="no image BPE yet"):
        _ = model.image_bpe


def test_resize_draws_new_rows_around_the_mean_text_row():
    model = being_vl_model()
    model.resize_image_embeddings(216, generator=torch.Generator().manual_seed(3))
    for matrix in (model.lm_head.weight, model.model.embed_tokens.weight):
        new, text = matrix[LAYOUT.size :].detach(), matrix[:TEXT_SIZE]
        spread = new - new.mean(dim=0)
        assert spread.std().item() == pytest.approx(0.01 * text.std().item(), rel=0.05)
    embedding = model.model.embed_tokens.weight
    torch.testing.assert_close(
        embedding[LAYOUT.size :].mean(dim=0), embedding[:TEXT_SIZE].mean(dim=0), rtol=0, atol=1e-3
    )


def test_the_shift_of_new_rows_is_that_of_a_model_without_dropout():
    shifts = []
    for training in (False, True):
        model = being_vl_model().train(training)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = 0.9
        rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(5))
        shifts.append(quiet_shift(model, TEXT_SIZE, rows).detach())
        assert model.training == training
    assert shifts[0].any() and torch.equal(*shifts)


@TIED
def test_resize_token_embeddings_pads_and_cuts(tied):
    model = being_vl_model(tied=tied)
    model.freeze_image_embeddings()
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 128 and model.config.layout == LAYOUT
    for size, sizes in (
        (LAYOUT.size - 2, (TEXT_SIZE, 4, 16, 3)),
        (TEXT_SIZE + 6, (TEXT_SIZE, 4, 2, 0)),
        (TEXT_SIZE - 1, (TEXT_SIZE - 1, 0, 0, 0)),
    ):
        model.resize_token_embeddings(size)
        assert model.config.layout == VocabularyLayout(*sizes)
        for layer in (model.lm_head, model.model.embed_tokens):
            assert layer.frozen_rows == (model.config.layout.first_code_id, size)


def _train(model, steps=6, **forward):
    """AdamW with weight decay on all but the parameters that hold frozen rows."""
    held = model.frozen_row_parameter_names
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if n not in held], "weight_decay": 0.1},
        {"params": [p for n, p in named if n in held], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=1e-2)
    model.train()
    for step in range(steps):
        ids = random_ids(4, 12, seed=step)
        loss = model(ids, labels=ids, **forward).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return loss


def _moved(after, before):
    return (after.float() != before.float()).any(dim=1)


@TIED
@pytest.mark.parametrize("which", ["text", "image"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_only_rows_that_may_move_move(tied, which, checkpointing, dtype):
    model = being_vl_model(tied=tied, dtype=dtype)
    if checkpointing:
        model.gradient_checkpointing_enable()
    matrices = {"embedding": model.model.embed_tokens.weight, "head": model.lm_head.weight}
    before = {name: matrix.detach().clone() for name, matrix in matrices.items()}
    body = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    if which == "text":
        model.freeze_text_embeddings()
        may_move = torch.arange(LAYOUT.size) >= TEXT_SIZE
    else:
        model.freeze_image_embeddings()
        may_move = torch.arange(LAYOUT.size) < LAYOUT.first_code_id
    _train(model)
    inputs = torch.cat([random_ids(4, 12, seed=step)[:, :-1] for step in range(6)])
    seen = torch.isin(torch.arange(LAYOUT.size), inputs)
    assert torch.equal(_moved(matrices["head"], before["head"]), may_move)
    expected = may_move if tied else may_move & seen
    # The embedding of the pad token has no gradient: nn.Embedding's padding_idx.
    expected[model.config.pad_token_id] &= tied
    assert torch.equal(_moved(matrices["embedding"], before["embedding"]), expected)
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, body)

    model.unfreeze()
    assert model.frozen_row_parameter_names == set()
    _train(model, steps=2)
    assert _moved(matrices["head"], before["head"]).all()


@TIED
def test_frozen_rows_survive_a_frozen_body_and_label_only_logits(tied):
    model = being_vl_model(tied=tied)
    model.requires_grad_(False)
    model.freeze_text_embeddings()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    _train(model, loss_logits_only=True)
    for name, parameter in model.named_parameters():
        moved = (
            _moved(parameter, before[name]) if parameter.ndim == 2 else parameter != before[name]
        )
        if name in model.frozen_row_parameter_names:
            assert not moved[:TEXT_SIZE].any() and moved[TEXT_SIZE:].any()
        else:
            assert not moved.any()


def test_freezing_changes_no_value_and_only_the_frozen_gradients():
    free, frozen = being_vl_model(), being_vl_model()
    frozen.freeze_text_embeddings()
    ids = random_ids(3, 10)
    losses = [model(ids, labels=ids).loss for model in (free, frozen)]
    torch.testing.assert_close(losses[0], losses[1])
    for loss in losses:
        loss.backward()
    for (name, a), (_, b) in zip(free.named_parameters(), frozen.named_parameters(), strict=True):
        if name in frozen.frozen_row_parameter_names:
            assert a.grad[:TEXT_SIZE].any() and not b.grad[:TEXT_SIZE].any()
            torch.testing.assert_close(a.grad[TEXT_SIZE:], b.grad[TEXT_SIZE:])
        else:
            torch.testing.assert_close(a.grad, b.grad)
    with torch.no_grad():
        assert torch.equal(free(ids).logits, frozen(ids).logits)


def test_rows_of_a_new_head_can_be_frozen():
    model = being_vl_model()
    model.set_output_embeddings(torch.nn.Linear(32, LAYOUT.size, bias=False))
    model.freeze_text_embeddings()
    ids = random_ids(2, 9)
    model(ids, labels=ids).loss.backward()
    gradient = model.lm_head.weight.grad
    assert not gradient[:TEXT_SIZE].any() and gradient[TEXT_SIZE:].any()


def test_frozen_rows_hold_under_torch_compile():
    model = being_vl_model()
    model.freeze_text_embeddings()
    ids = random_ids(3, 10)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(ids, labels=ids).loss.backward()
    assert not model.lm_head.weight.grad[:TEXT_SIZE].any()
    assert model.lm_head.weight.grad[TEXT_SIZE:].any()


@pytest.mark.parametrize("num_items", [None, 7])
@pytest.mark.parametrize("shifted", [False, True])
def test_label_only_logits_give_the_loss_and_gradients_of_all_logits(num_items, shifted):
    ids = random_ids(3, 10)
    labels = torch.where(random_ids(3, 10, seed=5) % 3 == 0, ids, -100)
    extra = {} if num_items is None else {"num_items_in_batch": num_items}
    if shifted:
        extra["shift_labels"] = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    gradients = []
    for only in (False, True):
        model = being_vl_model()
        output = model(ids, labels=labels, loss_logits_only=only, **extra)
        output.loss.backward()
        gradients.append([output.loss.detach(), *(p.grad for p in model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1])
    full = model(ids).logits
    predicts = torch.nn.functional.pad(labels[:, 1:] != -100, (0, 1))
    torch.testing.assert_close(output.logits, full[predicts])
    assert output.logits.shape == (int((labels[:, 1:] != -100).sum()), LAYOUT.size)
    with pytest.raises(ValueError, match="loss_logits_only needs labels"):
        model(ids, loss_logits_only=True)
    with pytest.raises(ValueError, match="exclude each other"):
        model(ids, labels=labels, loss_logits_only=True, logits_to_keep=1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("as_bool", [True, False])
def test_a_block_mask_isolates_packed_samples(attention, as_bool):
    model = being_vl_model()
    model.set_attn_implementation(attention)
    first, second = random_ids(1, 5), random_ids(1, 7, seed=1)
    block = torch.block_diag(torch.ones(5, 5), torch.ones(7, 7)).tril().bool()[None, None]
    if not as_bool:
        block = torch.where(block, 0.0, torch.finfo(torch.float32).min)
    positions = torch.cat([torch.arange(5), torch.arange(7)])[None]
    packed = model(
        torch.cat([first, second], dim=1), attention_mask=block, position_ids=positions
    ).logits
    torch.testing.assert_close(packed[:, :5], model(first).logits)
    torch.testing.assert_close(packed[:, 5:], model(second).logits)


def _image_ids() -> torch.Tensor:
    """Two rows, each with one whole 4x5 image of single codes and some text."""
    codes = torch.arange(20) % LAYOUT.codebook_size + LAYOUT.first_code_id
    row = torch.cat([torch.tensor([1, BOI]), codes, torch.tensor([EOI, 5, 6])])
    return torch.stack([row, torch.cat([row[:2], codes.flip(0), row[22:]])])


def test_grid_positions_start_as_a_llama_and_learn(tmp_path):
    model = being_vl_model(image_positions="grid")
    ids = _image_ids()
    assert torch.equal(model(ids).logits, being_vl_model()(ids).logits)
    model(ids, labels=ids).loss.backward()
    rows, columns = model.model.grid_positions.rows, model.model.grid_positions.columns
    assert rows.grad[: GRID[0]].any(dim=1).all() and not rows.grad[GRID[0] :].any()
    assert columns.grad[: GRID[1]].any(dim=1).all()
    with torch.no_grad():
        rows.normal_()
        columns.normal_()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert not torch.equal(loaded(ids).logits, being_vl_model()(ids).logits)


def test_grid_positions_are_computed_where_none_are_given():
    model = being_vl_model(image_positions="grid")
    torch.nn.init.normal_(model.model.grid_positions.rows)
    ids = _image_ids()
    positions = torch.full((*ids.shape, 2), -1)
    positions[:, 2:22] = torch.cartesian_prod(torch.arange(4), torch.arange(5))
    assert torch.equal(model(ids).logits, model(ids, image_token_positions=positions).logits)
    with pytest.raises(ValueError, match=r"input_ids\[0, 0\] is image token 104 outside an image"):
        model(ids[:, 2:4])
    cache = model(ids[:, :4]).past_key_values
    with pytest.raises(ValueError, match=r"image_token_positions must be given .* behind a cache"):
        model(ids[:, 4:6], past_key_values=cache)


@pytest.mark.parametrize("positions", [None, "grid"])
def test_a_model_can_be_built_from_its_configuration(positions):
    config = being_vl_model(image_positions=positions).config
    model = BeingVLForCausalLM(config)
    assert model(_image_ids()[:, :1]).logits.shape == (2, 1, LAYOUT.size)
    if positions:
        assert not model.model.grid_positions.rows.any()


def test_a_size_given_to_from_pretrained_is_checked_and_moves_the_vocabulary(tmp_path):
    config = being_vl_model().config
    config.save_pretrained(tmp_path)
    assert BeingVLConfig.from_pretrained(tmp_path).vocab_size == LAYOUT.size
    assert BeingVLConfig.from_pretrained(tmp_path, num_merges=9).vocab_size == LAYOUT.size + 4
    padded = BeingVLConfig.from_pretrained(tmp_path, num_merges=9, vocab_size=192)
    assert padded.vocab_size == 192 and padded.layout.num_merges == 9
    with pytest.raises(ValueError, match="vocab_size must be at least"):
        BeingVLConfig.from_pretrained(tmp_path, vocab_size=100)


def test_another_kind_of_checkpoint_is_refused(tmp_path):
    # transformers would build a new model of the default sizes, several billion parameters, from it.
    LlamaConfig(vocab_size=32, hidden_size=64).save_pretrained(tmp_path)
    for load in (BeingVLConfig.from_pretrained, BeingVLForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"model_type must be 'being_vl'.*got 'llama'"):
            load(tmp_path)


def test_a_model_read_from_gguf_becomes_a_plain_one(tmp_path):
    # transformers leaves a mark on what it read from a GGUF file, and would not save what bears it.
    text = text_model(tied=True)
    text.config.quantization_config = {"quant_method": "gguf"}
    ids = {"boi_token_id": BOI, "eoi_token_id": EOI, "image_token_id": IMAGE}
    BeingVLForCausalLM.from_text_model(text, LAYOUT, **ids).save_pretrained(tmp_path / "first")
    model = BeingVLForCausalLM.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    assert "quantization_config" not in json.loads((tmp_path / "second/config.json").read_text())


def test_a_quantized_text_model_is_refused():
    text = text_model(tied=False)
    text.model.norm.weight = torch.nn.Parameter(
        torch.ones(32, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(ValueError, match=r"model\.norm\.weight has dtype torch\.int8"):
        BeingVLForCausalLM.from_text_model(
            text, LAYOUT, boi_token_id=BOI, eoi_token_id=EOI, image_token_id=IMAGE
        )
