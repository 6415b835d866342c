"""BeingVLProcessor: every id in its place, through padding, truncation, chats and pixels."""

from __future__ import annotations

import copy
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_fixtures import (
    GRID,
    TEXT_TOKENIZERS,
    image_bpe,
    patch_vq,
    random_grids,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor, ProcessorMixin
from transformers.generation import GenerateDecoderOnlyOutput

from being_vl import BeingVLImageProcessor, BeingVLProcessor, BeingVLTokenizer
from being_vl.hub.checkpoint import default_image_processor
from being_vl.processing.chat_templates import default_chat_template

FAMILIES = sorted(TEXT_TOKENIZERS)


def build(family: str = "llama-3", **options) -> BeingVLProcessor:
    tokenizer = BeingVLTokenizer.from_text_tokenizer(TEXT_TOKENIZERS[family](), image_bpe())
    tokenizer.chat_template = default_chat_template(tokenizer.get_vocab())
    vq = patch_vq()
    return BeingVLProcessor(default_image_processor(vq.config), tokenizer, vq_model=vq, **options)


@pytest.fixture(scope="module")
def processors() -> dict[str, BeingVLProcessor]:
    return {family: build(family) for family in FAMILIES}


@pytest.fixture(scope="module")
def processor(processors) -> BeingVLProcessor:
    return processors["llama-3"]


def picture(seed: int = 0, size: tuple[int, int] = (30, 20)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def image_ids(processor: BeingVLProcessor, grid: np.ndarray) -> list[int]:
    """What stands for a grid in input_ids: begin, the image BPE's ids shifted, end."""
    shift = processor.tokenizer.layout.first_code_id
    inner = [int(visual_id) + shift for visual_id in processor.tokenizer.image_bpe.encode(grid)]
    return [processor.boi_token_id, *inner, processor.eoi_token_id]


def expected_ids(processor: BeingVLProcessor, text: str, grids: list[np.ndarray]) -> list[int]:
    """The ids of a text whose placeholders are grids, found by encoding a text with one token for each.

    The tokenizer meets one `<image>` for an image here and many in the processor.
    """
    grids = list(grids)
    ids = []
    for token_id in processor.tokenizer(text).input_ids:
        is_image = token_id == processor.image_token_id
        ids += image_ids(processor, grids.pop(0)) if is_image else [token_id]
    assert not grids
    return ids


# ---- ids


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["<image>", " a red", "square ", "\n", "é🙂"]), max_size=6).map(
            "".join
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 1000),
    side=st.sampled_from(["left", "right"]),
)
def test_every_id_in_its_place(processors, family, texts, seed, side) -> None:
    """No, several and adjacent images in one text, in batches, padded on either side."""
    processor = processors[family]
    counts = [text.count("<image>") for text in texts]
    grids = random_grids(sum(counts), seed=seed, smooth=seed % 2 == 0)
    nested, rest = [], list(grids)
    for count in counts:
        nested.append(rest[:count])
        rest = rest[count:]
    wanted = [expected_ids(processor, text, own) for text, own in zip(texts, nested, strict=True)]
    assert processor(text=texts, image_codes=nested)["input_ids"] == wanted
    assert processor(text=texts, image_codes=grids or None)["input_ids"] == wanted

    batch = processor(
        text=texts, image_codes=nested, padding=True, padding_side=side, return_tensors="pt"
    )
    longest = max(map(len, wanted))
    assert batch["input_ids"].dtype == torch.int64
    for row, mask, ids in zip(batch["input_ids"], batch["attention_mask"], wanted, strict=True):
        padding = longest - len(ids)
        pads = [processor.tokenizer.pad_token_id] * padding
        assert row.tolist() == (pads + ids if side == "left" else ids + pads)
        ones = [1] * len(ids)
        assert mask.tolist() == ([0] * padding + ones if side == "left" else ones + [0] * padding)


def test_forms_of_codes_agree(processor) -> None:
    grids = random_grids(3)
    text = ["<image> a <image>", "b <image>"]
    wanted = processor(text=text, image_codes=[grids[:2], grids[2:]])["input_ids"]
    stacked = np.stack(grids)
    for form in (
        grids,
        stacked,
        stacked.astype(np.int16),
        torch.from_numpy(stacked),
        stacked.tolist(),
        [torch.from_numpy(grid) for grid in grids],
        [[grid.tolist() for grid in grids[:2]], [grids[2].tolist()]],
        [stacked[:2], stacked[2:]],
    ):
        assert processor(text=text, image_codes=form)["input_ids"] == wanted
    one = processor(text="<image>", image_codes=grids[0])["input_ids"]
    assert one == processor(text="<image>", image_codes=grids[0].tolist())["input_ids"]


def test_grids_of_several_sizes(processor) -> None:
    grids = [np.zeros((1, 7), int), np.ones((5, 2), int), np.full((3, 3), 2)]
    ids = processor(text="<image><image> and <image>", image_codes=grids)["input_ids"][0]
    assert ids == expected_ids(processor, "<image><image> and <image>", grids)


def test_images_are_their_codes(processor) -> None:
    images = [picture(seed) for seed in range(3)]
    codes = processor(images=images)["image_codes"]
    assert [grid.shape for grid in codes] == [(GRID, GRID)] * 3
    text = ["<image> a", "<image><image> b"]
    from_pixels = processor(images=[images[:1], images[1:]], text=text)
    from_codes = processor(image_codes=[codes[:1], codes[1:]], text=text)
    assert from_pixels["input_ids"] == from_codes["input_ids"]
    assert set(from_pixels) == set(processor.model_input_names) == {"input_ids", "attention_mask"}


def test_an_array_of_images_is_a_list_of_them(processor) -> None:
    images = [picture(seed) for seed in range(3)]
    array, text = np.stack([np.asarray(image) for image in images]), "<image> a <image><image>"
    wanted = processor(images=images, text=text)
    for form in (
        array,
        torch.from_numpy(array).permute(0, 3, 1, 2),
        [array],
        [array[:1], array[1:]],
    ):
        assert processor(images=form, text=text) == wanted
    with pytest.raises(ValueError, match=r"\[1\] '<image>' placeholders.*given are \[3\]"):
        processor(images=array, text="<image>")


def test_texts_without_images_among_others(processor) -> None:
    image, plain = picture(), processor(text="b")["input_ids"]
    with_image = processor(images=image, text="<image> a")["input_ids"]
    assert (
        processor(images=[[image], []], text=["<image> a", "b"])["input_ids"] == with_image + plain
    )
    assert (
        processor(images=[[], [image]], text=["b", "<image> a"])["input_ids"] == plain + with_image
    )
    for none in ({"images": []}, {"images": [[]]}, {"image_codes": []}, {"image_codes": [[]]}):
        assert processor(text="b", **none)["input_ids"] == plain


def test_images_of_several_sizes_are_quantized_in_order() -> None:
    processor = build()
    processor.image_processor = BeingVLImageProcessor(
        do_resize=False, do_center_crop=False, size_divisor=4
    )
    images = [picture(seed, size) for seed, size in enumerate([(8, 12), (16, 4), (8, 12), (4, 4)])]
    together = processor.quantize(images)
    assert [grid.shape for grid in together] == [(3, 2), (1, 4), (3, 2), (1, 1)]
    for image, grid in zip(images, together, strict=True):
        assert (processor.quantize([image])[0] == grid).all()


def test_ids_of_images_are_those_of_the_call(processor) -> None:
    images = [picture(seed) for seed in range(3)]
    found = processor.image_ids(images)
    assert found == [image_ids(processor, grid) for grid in processor.quantize(images)]
    called = processor(text=["<image>"] * 3, images=images, add_special_tokens=False)
    assert found == called["input_ids"]


@pytest.mark.parametrize(
    ("text", "count"),
    [("no image", 1), ("<image>", 0), ("<image><image>", 1), (["<image>", "<image><image>"], 2)],
)
def test_images_and_placeholders_must_agree(processor, text, count) -> None:
    with pytest.raises(ValueError, match="placeholders"):
        processor(text=text, image_codes=random_grids(count))


def test_images_of_another_text_are_refused(processor) -> None:
    grids = random_grids(3)
    with pytest.raises(ValueError, match=r"\[1, 2\] '<image>' placeholders.*given are \[2, 1\]"):
        processor(text=["<image>", "<image><image>"], image_codes=[grids[:2], grids[2:]])


def test_bad_calls_are_refused(processor) -> None:
    grids = random_grids(1)
    with pytest.raises(ValueError, match="not both"):
        processor(text="<image>", images=[picture()], image_codes=grids)
    with pytest.raises(ValueError, match="text, images or both"):
        processor()
    with pytest.raises(ValueError, match="grids"):
        processor(text="<image>", image_codes=3)
    with pytest.raises(ValueError, match="99"):
        processor(text="<image>", image_codes=[np.full((4, 4), 99)])
    with pytest.raises(ValueError, match="sanitize_control_tokens"):
        processor(text="<image>", image_codes=grids, split_special_tokens=True)
    with pytest.raises(ValueError, match="return_overflowing_tokens"):
        processor(
            text="<image> a b c d",
            image_codes=grids,
            truncation=True,
            max_length=8,
            return_overflowing_tokens=True,
        )


def test_split_special_tokens_without_images(processor) -> None:
    ids = processor(text="a <|visual_3|><|boi|>", split_special_tokens=True)["input_ids"][0]
    assert max(ids) < processor.tokenizer.layout.text_size


# ---- truncation


@pytest.mark.parametrize("side", ["left", "right"])
def test_truncation_cuts_text_but_never_an_image(side: str) -> None:
    """Every length is either refused, or its ids are the whole sequence's first or last."""
    processor = build()
    processor.tokenizer.truncation_side = side
    grid = random_grids(1)[0]
    text = "Is it red? <image> Yes, it is."
    whole = expected_ids(processor, text, [grid])
    inside = image_ids(processor, grid)
    start = next(i for i in range(len(whole)) if whole[i : i + len(inside)] == inside)
    accepted = refused = 0
    for length in range(3, len(whole) + 1):
        options = {"image_codes": [grid], "truncation": True, "max_length": length}
        # Right: bos and the first ids. Left: bos, then the last ids.
        kept = whole[:length] if side == "right" else [whole[0], *whole[len(whole) - length + 1 :]]
        keeps = (
            start + len(inside) <= length if side == "right" else len(whole) - length + 1 <= start
        )
        if keeps:
            assert processor(text=text, **options)["input_ids"][0] == kept
            accepted += 1
        else:
            with pytest.raises(ValueError, match="truncation cuts an image"):
                processor(text=text, **options)
            refused += 1
    assert accepted and refused


# ---- chats


def conversation(content_as_list: bool) -> list[dict]:
    def content(text: str) -> str | list[dict]:
        return [{"type": "text", "text": text}] if content_as_list else text

    image = {"type": "image"}
    return [
        {"role": "system", "content": content("Be brief.")},
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}, image]},
        {"role": "assistant", "content": content("A red square.")},
        {"role": "user", "content": [{"type": "text", "text": "And this?"}, image]},
        {"role": "assistant", "content": content("Blue é🙂.")},
    ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("as_list", [True, False])
@pytest.mark.parametrize("side", ["left", "right"])
def test_assistant_masks_cover_the_answers(processors, family, as_list, side) -> None:
    processor = processors[family]
    long, short = conversation(as_list), conversation(not as_list)[1:3]
    grids = random_grids(5, smooth=True)
    options = {"image_codes": [grids[:3], grids[3:]], "padding": True, "padding_side": side}
    batch = processor.apply_chat_template(
        [long, short],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        return_tensors="pt",
        processor_kwargs=options,
    )
    answers = [["A red square.", "Blue é🙂."], ["A red square."]]
    end = {"llama-3": "<|eot_id|>", "llama-2": "</s>", "smollm": "<|im_end|>"}[family]
    for ids, mask, own in zip(batch["input_ids"], batch["assistant_masks"], answers, strict=True):
        edges = torch.diff(mask, prepend=torch.zeros(1, dtype=mask.dtype))
        assert (edges == 1).sum() == len(own)
        starts = (edges == 1).nonzero()[:, 0].tolist()
        stops = [*(edges == -1).nonzero()[:, 0].tolist(), len(ids)][: len(own)]
        spoken = [
            processor.tokenizer.decode(ids[start:stop]).strip()
            for start, stop in zip(starts, stops, strict=True)
        ]
        assert spoken == [answer + end for answer in own]
    assert set(batch) == {"input_ids", "attention_mask", "assistant_masks"}


def test_an_image_that_the_assistant_draws_is_masked_whole(processor) -> None:
    grid = random_grids(1)[0]
    messages = [
        {"role": "user", "content": "Draw a square."},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Here: "},
                {"type": "image"},
                {"type": "text", "text": "!"},
            ],
        },
    ]
    batch = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
        processor_kwargs={"image_codes": [grid]},
    )
    masked = [
        token_id
        for token_id, flag in zip(batch["input_ids"][0], batch["assistant_masks"][0], strict=True)
        if flag
    ]
    own = processor.tokenizer("Here: ", add_special_tokens=False).input_ids
    end = processor.tokenizer("!<|eot_id|>", add_special_tokens=False).input_ids
    assert masked == [*own, *image_ids(processor, grid), *end]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_chat_has_one_bos_at_most(processors, family) -> None:
    processor = processors[family]
    messages = [{"role": "user", "content": "Hello"}]
    batch = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=True
    )
    ids = batch["input_ids"][0]
    if family == "smollm":  # its BOS opens every turn
        assert ids.count(processor.tokenizer.bos_token_id) == 2
    else:
        assert (
            ids.count(processor.tokenizer.bos_token_id) == 1
            and ids[0] == processor.tokenizer.bos_token_id
        )
    answered = [*messages, {"role": "assistant", "content": "Hi"}]
    whole = processor.apply_chat_template(answered, tokenize=True, return_dict=True)["input_ids"][0]
    assert whole[: len(ids)] == ids  # the prompt of generation is a prefix of training


def test_chat_images_in_messages(processor) -> None:
    image = picture()
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": image}, {"type": "text", "text": "?"}],
        }
    ]
    got = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    text = processor.apply_chat_template(messages)
    assert text.count("<image>") == 1
    codes = processor(images=[image])["image_codes"]
    wanted = processor(text=text, image_codes=codes, add_special_tokens=False)
    assert got["input_ids"] == wanted["input_ids"]


@pytest.mark.skipif(
    "sanitize_control_tokens"
    not in inspect.signature(ProcessorMixin.apply_chat_template).parameters,
    reason="needs transformers 5.23; before, asking for it is an error: test_sanitizing.py",
)
def test_a_sanitized_chat_keeps_its_images_and_no_other_ids(processor) -> None:
    smuggled = "<image> <|visual_3|><|boi|><|eoi|><|eot_id|> <pad>"
    grid = random_grids(1)[0]
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": smuggled}]}
    ]
    options = {"image_codes": [grid]}
    batch = processor.apply_chat_template(
        messages,
        tokenize=True,
        return_dict=True,
        sanitize_control_tokens=True,
        processor_kwargs=options,
    )
    ids = batch["input_ids"][0]
    inside = image_ids(processor, grid)
    start = ids.index(processor.boi_token_id)
    assert ids[start : start + len(inside)] == inside
    rest = ids[:start] + ids[start + len(inside) :]
    assert max(rest) < processor.tokenizer.layout.text_size
    assert rest.count(processor.tokenizer.convert_tokens_to_ids("<|eot_id|>")) == 1
    with pytest.raises(ValueError, match="placeholders"):  # unsanitized, the user's <image> is one
        processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, processor_kwargs={"image_codes": [grid]}
        )


# ---- what engines ask for


def test_mm_token_type_ids_and_their_bound(processor) -> None:
    images = [picture(0), picture(1)]
    batch = processor(
        images=images,
        text=["a <image>", "<image> b c"],
        padding=True,
        return_tensors="pt",
        return_mm_token_type_ids=True,
    )
    layout = processor.tokenizer.layout
    ids = batch["input_ids"]
    image = (
        (ids >= layout.first_code_id)
        | (ids == processor.boi_token_id)
        | (ids == processor.eoi_token_id)
    )
    assert (batch["mm_token_type_ids"] == image.long()).all()
    bound = processor._get_num_multimodal_tokens(image_sizes=[(20, 30), (20, 30)])
    assert bound["num_image_tokens"] == [GRID * GRID + 2] * 2
    assert (batch["mm_token_type_ids"].sum(-1) <= GRID * GRID + 2).all()


# ---- ids → pixels


def test_decode_image_of_token_and_visual_ids(processor) -> None:
    grid = random_grids(1, smooth=True)[0]
    wanted = np.asarray(processor.reconstruct(grid))
    token_ids = processor.tokenizer.encode_codes([grid])[0]
    visual_ids = processor.tokenizer.image_bpe.encode(grid)
    wrapped = image_ids(processor, grid)
    for ids in (token_ids, wrapped, torch.tensor(wrapped), token_ids.tolist()):
        assert (np.asarray(processor.decode_image(ids)) == wanted).all()
    assert (np.asarray(processor.decode_image(visual_ids, visual=True)) == wanted).all()
    with pytest.raises(ValueError, match=r"position 0 is no image token's.*visual=True"):
        processor.decode_image(visual_ids)
    assert (processor.decode_codes(visual_ids, visual=True) == grid).all()
    assert (processor.decode_codes(wrapped, GRID, GRID, visual=False) == grid).all()


def test_decode_image_of_another_shape(processor) -> None:
    grid = np.zeros((2, 3), dtype=np.int64)
    ids = processor.tokenizer.encode_codes([grid])[0]
    assert processor.decode_image(ids, 2, 3).size == (12, 8)
    with pytest.raises(ValueError, match="give its height and width"):
        processor.decode_image(ids)


def test_bad_images_are_refused(processor) -> None:
    first = processor.tokenizer.layout.first_code_id
    with pytest.raises(ValueError, match="visual id 28 at position 1"):
        processor.decode_image([first, first + 28, first, first])
    with pytest.raises(ValueError, match=r"ids\[4\]"):
        processor.decode_image([first + 16] * 4 + [first] * 8, 4, 2)
    with pytest.raises(ValueError, match="this one has 0"):
        processor.decode_image([])


def test_post_processing_of_what_was_generated(processor) -> None:
    grids = random_grids(2, smooth=True)
    rows = processor(
        text=["Draw <image>: <image>", "<image> so"], image_codes=[grids, grids[:1]], padding=True,
        return_tensors="pt",
    )["input_ids"]  # fmt: skip
    drawn = [np.asarray(processor.reconstruct(grid)) for grid in grids]
    texts = processor.post_process_multimodal_output(rows)
    assert texts == ["Draw : ", " so"]
    whole = GenerateDecoderOnlyOutput(sequences=rows)  # of return_dict_in_generate
    assert processor.post_process_multimodal_output(whole) == texts
    images = processor.post_process_multimodal_output(rows, generation_mode="image")
    assert (np.asarray(images[0]) == drawn[1]).all() and (np.asarray(images[1]) == drawn[0]).all()
    both = processor.post_process_multimodal_output(rows, generation_mode="interleaved")
    assert [[part["type"] for part in row] for row in both] == [
        ["text", "image", "text", "image"],
        ["image", "text"],
    ]
    assert (np.asarray(both[0][1]["image"]) == drawn[0]).all()
    assert both[1][1]["text"] == " so"
    with pytest.raises(ValueError, match=r"row 0 .* no image"):
        processor.post_process_multimodal_output(rows[1:, -2:], generation_mode="image")
    with pytest.raises(ValueError, match="'audio'"):
        processor.post_process_multimodal_output(rows, generation_mode="audio")


# ---- the VQ model and files


def test_save_and_load_with_the_vq_model_on_first_use(processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "processor_config.json").read_text())
    assert not {"vq_model", "vq_device"} & set(config)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is BeingVLProcessor
    assert loaded.chat_template == processor.chat_template
    text, grid = "<image> a", random_grids(1)
    assert loaded(text=text, image_codes=grid) == processor(text=text, image_codes=grid)
    assert not loaded._vq.loaded
    image = picture()
    assert loaded(images=image, text=text) == processor(images=image, text=text)
    assert loaded._vq.loaded
    assert not loaded.vq_model.training
    # Saved again before the VQ model was needed, it is all there.
    AutoProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    again = AutoProcessor.from_pretrained(tmp_path / "again")
    assert again(images=image, text=text) == processor(images=image, text=text)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_damaged_vq_model_is_named_on_first_use(processor, tmp_path: Path, name: str) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    path = tmp_path / "vq_model" / name
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises((ValueError, OSError), match="vq_model"):
        loaded(images=picture(), text="<image>")


def test_text_only_without_a_vq_model(processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, vq=False)
    grids = random_grids(1)
    assert loaded(text="<image> a", image_codes=grids) == processor(
        text="<image> a", image_codes=grids
    )
    for call in (
        lambda: loaded(text="<image>", images=picture()),
        lambda: loaded.decode_image(processor.tokenizer.image_bpe.encode(grids[0])),
    ):
        with pytest.raises(ValueError, match="no VQ model"):
            call()
    loaded.save_pretrained(tmp_path / "text")
    assert not (tmp_path / "text" / "vq_model").exists()
    assert "vq" not in json.loads((tmp_path / "text" / "tokenizer_config.json").read_text())


def test_the_vq_model_goes_where_it_is_asked_to(processor, tmp_path: Path) -> None:
    """The meta device stands for any other."""
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path, vq_device="meta")
    assert loaded.vq_device == torch.device("meta") and not loaded._vq.loaded
    assert loaded.vq_model.device == torch.device("meta")
    here = build(vq_device="meta")
    assert here.vq_model.device == torch.device("meta")
    fresh = AutoProcessor.from_pretrained(tmp_path)
    assert fresh.vq_device == torch.device("cpu")
    assert fresh.vq_model.device == torch.device("cpu")
    fresh.vq_device = "meta"
    assert fresh.vq_model.device == torch.device("meta")


def test_printing_and_copying_leave_the_vq_model_alone(processor) -> None:
    assert len(repr(processor)) < 5000
    assert copy.deepcopy(processor)(text="a") == processor(text="a")
