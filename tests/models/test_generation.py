"""generate(): text never shows an image token, every image decodes, whatever decodes it."""

import os

import numpy as np
import pytest
import torch
from model_fixtures import (
    BOI,
    EOI,
    IMAGE,
    LAYOUT,
    MERGES,
    PAD,
    TEXT_SIZE,
    being_vl_model,
    generated_grids,
    random_ids,
)
from transformers import (
    DynamicCache,
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
)

from being_vl import ImageBPE
from being_vl.bpe.grid_tracking import OpenImageTracker
from being_vl.models.image_grid_positions import image_token_positions
from being_vl.models.legal_logits import ImageGridLogitsProcessor, image_token_bound
from being_vl.models.stopping import StopOutsideImages

NUM_SOAK_IMAGES = int(os.environ.get("BEING_VL_SOAK_IMAGES", "5000"))
PROMPT = random_ids(3, 7, high=TEXT_SIZE)


@pytest.fixture(scope="module")
def model():
    return being_vl_model()


def _has_image_ids(ids: torch.Tensor) -> bool:
    special = torch.isin(ids, torch.tensor([BOI, EOI, IMAGE]))
    return bool((special | (ids >= LAYOUT.first_code_id)).any())


@pytest.mark.parametrize("mode", [None, "text"])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 3}], ids=str)
def test_text_mode_emits_no_image_token(model, mode, settings):
    torch.manual_seed(0)
    # All but the last prompt row end inside an image, which draws a model to go on with it.
    prompt = torch.cat([PROMPT, torch.tensor([[BOI], [BOI], [9]])], dim=1)
    out = model.generate(prompt, generation_mode=mode, max_new_tokens=30, **settings)
    assert not _has_image_ids(out[:, prompt.shape[1] :])


def test_text_mode_is_llama_with_image_ids_suppressed(model):
    stock = LlamaForCausalLM(model.config).eval()
    stock.load_state_dict(model.state_dict())
    banned = [IMAGE, BOI, EOI, *range(LAYOUT.first_code_id, LAYOUT.size)]
    expected = stock.generate(PROMPT, max_new_tokens=20, suppress_tokens=banned, pad_token_id=PAD)
    assert torch.equal(model.generate(PROMPT, max_new_tokens=20), expected)


DECODERS = {
    "greedy": {},
    "no cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "sampling": {"do_sample": True},
    "sampling, hot": {"do_sample": True, "temperature": 5.0, "num_return_sequences": 4},
    "top k and p": {"do_sample": True, "top_k": 2, "top_p": 0.5},
    "beam search": {"num_beams": 3},
    "beam search, all": {"num_beams": 3, "num_return_sequences": 3},
    "beam sampling": {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
    "guided": {"guidance_scale": 3.0, "do_sample": True, "num_return_sequences": 2},
    "no repeats": {"no_repeat_ngram_size": 1, "do_sample": True},
    "too short": {"max_new_tokens": 3},
    "too long": {"min_new_tokens": 100},
    "length in a config": {"generation_config": GenerationConfig(max_new_tokens=5, do_sample=True)},
    "max length": {"max_length": 12},
}


@pytest.mark.parametrize("settings", DECODERS.values(), ids=DECODERS.keys())
@pytest.mark.parametrize("positions", [None, "grid"])
def test_every_image_decodes(settings, positions):
    torch.manual_seed(0)
    model = being_vl_model(image_positions=positions)
    if positions and "guidance_scale" in settings:
        with pytest.raises(ValueError, match="does not work with image_positions='grid'"):
            model.generate(PROMPT, generation_mode="image", **settings)
        return
    out = model.generate(PROMPT, generation_mode="image", **settings)
    copies = settings.get("num_return_sequences", 1)
    assert torch.equal(out[:, :7], PROMPT.repeat_interleave(copies, dim=0))
    assert (out[:, 7] == BOI).all()
    assert len(generated_grids(out)) == 3 * copies
    for ids in out[:, 8:].tolist():  # after eoi there is only padding
        assert set(ids[ids.index(EOI) + 1 :]) <= {PAD}


@pytest.mark.parametrize("positions", [None, "grid"])
@pytest.mark.parametrize("grid_size", [(1, 1), (1, 9), (9, 1), (6, 3)], ids=str)
def test_any_grid_size(grid_size, positions):
    model = being_vl_model(image_positions=positions)
    torch.manual_seed(1)
    out = model.generate(PROMPT, generation_mode="image", image_grid_size=grid_size, do_sample=True)
    grids = generated_grids(out, grid_size)
    assert [grid.shape for grid in grids] == [grid_size] * 3
    assert out.shape[1] <= 7 + image_token_bound(*grid_size)


def test_cache_and_no_cache_agree(model):
    for mode in ("text", "image", "interleaved"):
        outs = [
            model.generate(PROMPT, generation_mode=mode, max_new_tokens=40, use_cache=use_cache)
            for use_cache in (True, False)
        ]
        assert torch.equal(*outs)


def test_grid_positions_are_the_same_with_and_without_a_cache():
    model = being_vl_model(image_positions="grid")
    for table in (model.model.grid_positions.rows, model.model.grid_positions.columns):
        torch.nn.init.normal_(table, std=0.5)
    outs = [
        model.generate(PROMPT, generation_mode="image", use_cache=use_cache)
        for use_cache in (True, False)
    ]
    assert torch.equal(*outs)
    plain = being_vl_model().generate(PROMPT, generation_mode="image")
    assert outs[0].shape != plain.shape or not torch.equal(outs[0], plain)


def test_left_padding_changes_nothing(model):
    padded = torch.cat([torch.full((1, 4), PAD), PROMPT[:1]], dim=1)
    mask = (padded != PAD).long()
    for settings in ({"generation_mode": "image"}, {"max_new_tokens": 12}):
        alone = model.generate(PROMPT[:1], **settings)
        out = model.generate(padded, attention_mask=mask, **settings)
        assert torch.equal(out[:, 4:], alone)


def test_a_prompt_may_end_in_boi_or_inside_an_image(model):
    whole = model.generate(PROMPT[:1], generation_mode="image")
    for cut in (8, 11, whole.shape[1] - 1):
        assert torch.equal(model.generate(whole[:, :cut], generation_mode="image"), whole)
    with pytest.raises(
        ValueError, match=r"prompt 0 ends in does not fit a grid of 1x2 cells: ids\["
    ):
        model.generate(whole[:, :-1], generation_mode="image", image_grid_size=(1, 2))
    text_inside = torch.cat([whole[:, :9], PROMPT[:1]], dim=1)
    with pytest.raises(ValueError, match=r"prompt 0 ends in .* is not an image token"):
        model.generate(text_inside, generation_mode="interleaved")


def test_generation_continues_from_a_cache(model):
    for settings in ({"generation_mode": "image"}, {"max_new_tokens": 15}):
        whole = model.generate(PROMPT[:1], **settings)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            model(whole[:, :9], past_key_values=cache)
        prompt = whole[:, :10]
        rest = {**settings, "max_new_tokens": 12}
        assert torch.equal(model.generate(prompt, past_key_values=cache, **rest), whole)


def test_generation_from_embeddings(model):
    embeds = model.model.embed_tokens(PROMPT)
    for settings in ({"generation_mode": "image"}, {"max_new_tokens": 15}):
        by_ids = model.generate(PROMPT, **settings)
        assert torch.equal(model.generate(inputs_embeds=embeds, **settings), by_ids[:, 7:])
    out = model.generate(
        inputs_embeds=embeds, generation_mode="image", guidance_scale=2.0, do_sample=True
    )
    assert len(generated_grids(out)) == 3


@pytest.mark.parametrize("assistant", ["itself", "another", "stock", "prompt lookup"])
def test_assisted_generation_gives_the_greedy_result(model, assistant):
    stock = LlamaForCausalLM(model.config).eval()
    helpers = {
        "itself": {"assistant_model": model},
        "another": {"assistant_model": being_vl_model(seed=4)},
        "stock": {"assistant_model": stock},
        "prompt lookup": {"prompt_lookup_num_tokens": 3},
    }
    for settings in ({"generation_mode": "image"}, {"max_new_tokens": 15}):
        alone = model.generate(PROMPT[:1], **settings)
        assert torch.equal(model.generate(PROMPT[:1], **settings, **helpers[assistant]), alone)


def test_interleaved_emits_text_and_whole_images(model):
    torch.manual_seed(0)
    bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
    num_images = num_texts = 0
    for _ in range(4):
        out = model.generate(
            PROMPT,
            generation_mode="interleaved",
            image_grid_size=(2, 3),
            max_new_tokens=60,
            do_sample=True,
            temperature=3.0,
        )
        for ids in out[:, 7:].tolist():
            assert IMAGE not in ids
            while BOI in ids:
                begin, end = ids.index(BOI), ids.index(EOI)
                num_texts += any(token_id < TEXT_SIZE for token_id in ids[:begin])
                bpe.decode(np.array(ids[begin + 1 : end]) - LAYOUT.first_code_id, 2, 3)
                num_images += 1
                ids = ids[end + 1 :]
            assert EOI not in ids and all(token_id < LAYOUT.first_code_id for token_id in ids)
    assert num_images > 5 and num_texts > 3


def test_time_ends_no_image_in_the_middle(model):
    """`max_time` is over before the first token: the row in an image draws it to its end, the others stop."""
    prompt = torch.cat([PROMPT[:2], torch.tensor([[BOI], [9]])], dim=1)
    settings = {"generation_mode": "interleaved", "image_grid_size": (2, 3), "max_new_tokens": 60}
    out = model.generate(prompt, max_time=1e-9, **settings)[:, 8:]
    assert out[0].tolist().count(EOI) == 1 and out[0, -1] == EOI
    bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
    bpe.decode(out[0, :-1].numpy() - LAYOUT.first_code_id, 2, 3)
    assert (out[1, 1:] == PAD).all()
    (image,) = model.generate(
        PROMPT[:1], max_time=1e-9, generation_mode="image", image_grid_size=(2, 3)
    )
    assert image[7] == BOI and image[-1] == EOI
    assert model.generate(prompt, max_time=1e-9, max_new_tokens=9).shape[1] == 9  # text


def test_a_stop_string_that_an_image_token_spells_ends_no_image():
    outside = StopOutsideImages(being_vl_model().config)
    outside.criteria.append(lambda ids, scores: torch.tensor([True] * len(ids)))
    rows = [[5, BOI, 40], [5, BOI, 40, EOI], [5, 6, 7, 8]]
    ids = torch.tensor([[PAD] * (4 - len(row)) + row for row in rows])
    assert outside(ids, None).tolist() == [False, True, True]


@pytest.mark.parametrize("room", [{"max_new_tokens": 7}, {"max_length": 14}, {}], ids=str)
def test_interleaved_begins_no_image_that_it_cannot_finish(model, room):
    size = (4, 5) if room == {} else (2, 3)  # 20 new tokens are what generate makes by default
    wants_boi = {"generation_mode": "interleaved", "sequence_bias": {(BOI,): 1e4}}
    out = model.generate(PROMPT, image_grid_size=size, **wants_boi, **room)
    assert not _has_image_ids(out[:, 7:])
    room = {name: value + 1 for name, value in room.items()} or {"max_new_tokens": 22}
    out = model.generate(PROMPT, image_grid_size=size, **wants_boi, **room)
    assert (out[:, 7] == BOI).all() and len(generated_grids(out, size)) == 3


def test_guidance_moves_the_scores_and_refuses_what_would_be_wrong(model):
    kwargs = {"generation_mode": "image", "output_scores": True, "return_dict_in_generate": True}
    plain = model.generate(PROMPT, **kwargs).scores[1]
    guided = model.generate(PROMPT, guidance_scale=3.0, **kwargs).scores[1]
    assert (plain > -torch.inf).equal(guided > -torch.inf)
    bos = torch.full((3, 1), model.generation_config.bos_token_id)
    explicit = model.generate(PROMPT, guidance_scale=3.0, negative_prompt_ids=bos, **kwargs).scores[
        1
    ]
    assert torch.equal(explicit, guided)
    # By hand: s * (conditional - unconditional) + unconditional, of log-probabilities.
    boi = torch.full((3, 1), BOI)
    with torch.no_grad():
        conditional = model(torch.cat([PROMPT, boi], dim=1)).logits[:, -1].log_softmax(-1)
        unconditional = model(torch.cat([bos, boi], dim=1)).logits[:, -1].log_softmax(-1)
    expected = 3.0 * (conditional - unconditional) + unconditional
    legal = guided > -torch.inf
    torch.testing.assert_close(guided[legal], expected[legal], rtol=1e-4, atol=1e-4)

    begun = torch.cat([PROMPT, boi], dim=1)
    from_boi = model.generate(begun, guidance_scale=3.0, **kwargs).scores[0]
    torch.testing.assert_close(from_boi, guided)
    with pytest.raises(ValueError, match="guidance_scale works with greedy search and sampling"):
        model.generate(PROMPT, generation_mode="image", guidance_scale=3.0, num_beams=2)
    uneven = torch.cat([PROMPT, torch.tensor([[BOI], [5], [5]])], dim=1)
    with pytest.raises(ValueError, match=r"prompts' images are unequally far"):
        model.generate(uneven, generation_mode="image", guidance_scale=3.0)


def test_a_streamer_sees_the_image(model):
    class Tokens:
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Tokens()
    out = model.generate(PROMPT[:1], generation_mode="image", streamer=streamer)
    assert streamer.ended and streamer.ids == out[0].tolist()


def test_what_generate_says_when_it_cannot(model):
    with pytest.raises(ValueError, match=r"generation_mode must be one of .* got 'audio'"):
        model.generate(PROMPT, generation_mode="audio")
    unsized = being_vl_model(image_grid_size=None)
    with pytest.raises(ValueError, match=r"image_grid_size=\(height, width\) must be given"):
        unsized.generate(PROMPT, generation_mode="image")
    bare = being_vl_model(merges=None)
    with pytest.raises(ValueError, match=r"no image BPE yet: set model\.image_bpe"):
        bare.generate(PROMPT, generation_mode="image")
    with pytest.raises(ValueError, match="16 codes and 0 merges, the model 16 and 5"):
        bare.image_bpe = ImageBPE(np.zeros((0, 4), np.int32), 16)
    bare.image_bpe = ImageBPE(MERGES, 16)
    assert len(generated_grids(bare.generate(PROMPT, generation_mode="image"))) == 3
    bare.config.boi_token_id = None
    with pytest.raises(ValueError, match=r"config\.boi_token_id must be set"):
        bare.generate(PROMPT, generation_mode="image")


def test_pair_rules_make_a_model_that_draws_nothing():
    model = being_vl_model(merges=MERGES * [1, 1, 0, 0])
    assert model.image_bpe.merge_rule == "pair"
    assert model.generate(PROMPT, max_new_tokens=2).shape == (3, 9)
    with pytest.raises(ValueError, match="cannot be decoded"):
        model.generate(PROMPT, generation_mode="image")


def test_image_bpe_is_found_beside_the_weights(tmp_path):
    model = being_vl_model()
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    expected = model.generate(PROMPT, generation_mode="image")
    assert torch.equal(loaded.generate(PROMPT, generation_mode="image"), expected)
    (tmp_path / "image_bpe.json").unlink()
    with pytest.raises(OSError, match=r"image_bpe\.json"):
        type(model).from_pretrained(tmp_path).generate(PROMPT, generation_mode="image")


def test_random_logits_always_give_a_legal_grid():
    """The processor alone, under random scores, on grids and vocabularies of many kinds."""
    rng = np.random.default_rng(0)
    config = being_vl_model().config
    batch, made = 250, 0
    while made < NUM_SOAK_IMAGES:
        height, width = rng.integers(1, 9, size=2)
        bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
        processor = ImageGridLogitsProcessor(
            OpenImageTracker(LAYOUT, bpe, (height, width), BOI, EOI),
            config,
            prompt_length=1,
            max_new_tokens=None,
        )
        ids = torch.full((batch, 1), 1)
        for _ in range(image_token_bound(height, width)):
            scores = torch.from_numpy(rng.normal(scale=9.0, size=(batch, LAYOUT.size)))
            chosen = processor(ids, scores).argmax(dim=-1)
            finished = (ids == EOI).any(dim=1)
            ids = torch.cat([ids, torch.where(finished, PAD, chosen)[:, None]], dim=1)
        made += len(generated_grids(ids, (height, width)))
    assert made >= NUM_SOAK_IMAGES


def test_positions_follow_anchors_and_trust_what_is_known():
    bpe = ImageBPE(MERGES, LAYOUT.codebook_size)
    first = LAYOUT.first_code_id
    # 2x3 cells: a 2x1 merge (id 20), a code, a 1x2 merge (id 16) cannot stand; codes fill the rest.
    ids = torch.tensor([[5, BOI, first + 20, first + 1, first + 2, first + 16, EOI, 5]])
    names = {"boi_token_id": BOI, "eoi_token_id": EOI}
    found = image_token_positions(ids, LAYOUT, bpe, (2, 3), **names)
    assert found[0].tolist() == [[-1, -1]] * 2 + [[0, 0], [0, 1], [0, 2], [1, 1]] + [[-1, -1]] * 2
    with pytest.raises(ValueError, match=r"input_ids\[0, 2\]: ids\[0\] is 20: .* over the border"):
        image_token_positions(ids, LAYOUT, bpe, (1, 1), **names)
    lenient = image_token_positions(ids, LAYOUT, bpe, (1, 1), **names, strict=False)
    assert (lenient[0, 3:] == -1).all()
    known = torch.full((1, 7, 2), 9)
    extended = image_token_positions(ids, LAYOUT, bpe, (1, 1), **names, known=known)
    assert torch.equal(extended[:, :7], known) and extended[0, 7].tolist() == [-1, -1]


def test_user_processors_run_before_the_grid(model):
    def only_text(input_ids, scores):
        return scores.index_fill(1, torch.arange(TEXT_SIZE, LAYOUT.size), -torch.inf)

    out = model.generate(
        PROMPT, generation_mode="image", logits_processor=LogitsProcessorList([only_text])
    )
    assert len(generated_grids(out)) == 3
