"""BeingVLTokenizer: the text tokenizer's ids untouched, image ids after them, and no way in for text."""

from __future__ import annotations

import copy
import json
import pickle
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
from checkpoint_fixtures import (
    CODEBOOK_SIZE,
    NUM_MERGES,
    TEXT_TOKENIZERS,
    image_bpe,
    llama_3_tokenizer,
    random_grids,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast, ProcessorMixin

from being_vl import BeingVLTokenizer, ImageBPE, VocabularyLayout
from being_vl.processing.tokenization_being_vl import LLAMA_31_SPECIAL_TOKENS, visual_token

FAMILIES = sorted(TEXT_TOKENIZERS)


@pytest.fixture(scope="module")
def pairs() -> dict[str, tuple[PreTrainedTokenizerFast, BeingVLTokenizer]]:
    bases = {family: build() for family, build in TEXT_TOKENIZERS.items()}
    return {
        family: (base, BeingVLTokenizer.from_text_tokenizer(base, image_bpe()))
        for family, base in bases.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(max_size=40) | st.text("a <|>ied▁\n\t🙂é0", max_size=40))
def test_text_keeps_its_ids(pairs, family: str, text: str) -> None:
    base, tokenizer = pairs[family]
    if any(token in text for token in ("<image>", "<|boi|>", "<|eoi|>", "<|visual", "<pad>")):
        return
    assert tokenizer(text).input_ids == base(text).input_ids
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == base.decode(ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_ids(pairs, family: str) -> None:
    base, tokenizer = pairs[family]
    added = 3 + (base.pad_token is None)
    layout = tokenizer.layout
    assert layout == VocabularyLayout(len(base), added, CODEBOOK_SIZE, NUM_MERGES)
    assert len(tokenizer) == layout.size
    special = list(range(len(base), layout.first_code_id))
    assert [tokenizer.boi_token_id, tokenizer.eoi_token_id, tokenizer.image_token_id] == special[
        -3:
    ]
    assert tokenizer.pad_token_id == (special[0] if base.pad_token is None else base.pad_token_id)
    for name in ("bos_token", "eos_token", "unk_token"):
        assert getattr(tokenizer, name) == getattr(base, name)
    for visual_id in (0, CODEBOOK_SIZE - 1, CODEBOOK_SIZE, tokenizer.image_bpe.vocab_size - 1):
        token_id = tokenizer.convert_tokens_to_ids(visual_token(visual_id))
        assert token_id == layout.token_id(visual_id)


def test_the_authors_layout_is_reachable() -> None:
    base = llama_3_tokenizer()
    tokenizer = BeingVLTokenizer.from_text_tokenizer(base, image_bpe(), LLAMA_31_SPECIAL_TOKENS)
    ids = tokenizer.convert_tokens_to_ids(
        ["<pad>", "<reserved08706>", "<eoss>", "<image>", "<racm3:break>"]
    )
    assert ids == [len(base) + offset for offset in range(5)]
    names = ("pad", "sep", "eoi", "image", "boi")
    assert [getattr(tokenizer, f"{name}_token_id") for name in names] == ids
    assert tokenizer.layout.first_code_id == len(base) + 5


def test_a_special_token_of_the_base_keeps_its_id() -> None:
    base = llama_3_tokenizer()
    base.add_special_tokens({"extra_special_tokens": ["<|reserved_special_token_0|>", "<|image|>"]})
    names = {
        "boi_token": "<|reserved_special_token_0|>",
        "eoi_token": "<|eoi|>",
        "image_token": "<|image|>",
    }
    tokenizer = BeingVLTokenizer.from_text_tokenizer(base, image_bpe(), names)
    assert tokenizer.boi_token_id == base.convert_tokens_to_ids("<|reserved_special_token_0|>")
    assert tokenizer.layout.num_special_tokens == 1
    assert tokenizer.pad_token is None  # only what was asked for
    assert tokenizer.extra_special_tokens == base.extra_special_tokens


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load(pairs, family: str, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(pairs[family][1])
    tokenizer.padding_side = "left"
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BeingVLTokenizer
    assert loaded.image_bpe == tokenizer.image_bpe
    assert loaded.layout == tokenizer.layout
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.special_tokens_map == tokenizer.special_tokens_map
    assert (loaded.padding_side, loaded.chat_template) == ("left", "{{ messages }}")
    assert loaded.model_max_length == tokenizer.model_max_length
    text = f"A red square {visual_token(3)} <image>\n."
    assert loaded(text).input_ids == tokenizer(text).input_ids
    loaded.save_pretrained(tmp_path / "again")
    for name in ("tokenizer.json", "image_bpe.json"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_plain_fast_tokenizer_loads_the_files(pairs, tmp_path: Path) -> None:
    tokenizer = pairs["llama-3"][1]
    tokenizer.save_pretrained(tmp_path)
    plain = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    text = f"A red {visual_token(20)}<|boi|> square"
    assert len(plain) == len(tokenizer)
    assert plain(text).input_ids == tokenizer(text).input_ids
    ids = tokenizer(text).input_ids
    assert plain.decode(ids, skip_special_tokens=True) == tokenizer.decode(
        ids, skip_special_tokens=True
    )
    assert plain.image_token == "<image>"


@pytest.mark.parametrize("family", FAMILIES)
def test_skip_special_tokens_drops_images(pairs, family: str) -> None:
    tokenizer = pairs[family][1]
    image = tokenizer.encode_codes(random_grids(1))[0].tolist()
    text = tokenizer("It is red.", add_special_tokens=False).input_ids
    ids = [*text, tokenizer.boi_token_id, *image, tokenizer.eoi_token_id, *text]
    shown = tokenizer.decode(ids, skip_special_tokens=True)
    assert shown.replace(" ", "") == "Itisred.Itisred."
    assert visual_token(tokenizer.layout.visual_id(image[0])) in tokenizer.decode(ids)


def test_encode_codes_is_the_image_bpe_shifted(pairs) -> None:
    tokenizer = pairs["smollm"][1]
    grids = [*random_grids(3), np.zeros((2, 5), dtype=np.int64)]
    encoded = tokenizer.encode_codes(grids)
    for grid, ids in zip(grids, encoded, strict=True):
        assert ids.dtype == np.int32
        visual = ids - tokenizer.layout.first_code_id
        assert visual.tolist() == tokenizer.image_bpe.encode(grid).tolist()
        assert (tokenizer.image_bpe.decode(visual, *grid.shape) == grid).all()


_SMUGGLED = st.lists(
    st.sampled_from([visual_token(0), visual_token(21), "<|boi|>", "<|eoi|>", "<image>", "<pad>"])
    | st.text("ab <|>", max_size=5),
    max_size=6,
).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=_SMUGGLED)
def test_text_cannot_smuggle_ids_in_when_asked(pairs, family: str, text: str) -> None:
    base, tokenizer = pairs[family]
    ids = tokenizer(text, split_special_tokens=True).input_ids
    assert all(token_id < len(base) for token_id in ids)
    if "sanitize_control_tokens" not in signature(ProcessorMixin.apply_chat_template).parameters:
        return  # asking for it is an error there: test_sanitizing.py
    chat = [{"role": "user", "content": text}]
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    ids = tokenizer.apply_chat_template(
        chat, chat_template=template, sanitize_control_tokens=True, return_dict=False
    )
    assert all(token_id < len(base) for token_id in ids)


def test_by_default_text_that_spells_an_image_token_is_one(pairs) -> None:
    """The default of every added token; the documentation of the class says so."""
    tokenizer = pairs["llama-3"][1]
    assert tokenizer(visual_token(7), add_special_tokens=False).input_ids == [
        tokenizer.layout.token_id(7)
    ]


def test_copies_and_pickles(pairs) -> None:
    tokenizer = pairs["llama-2"][1]
    for other in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert other.image_bpe == tokenizer.image_bpe
        assert other("a <image> b").input_ids == tokenizer("a <image> b").input_ids


def test_more_tokens_can_be_added(pairs, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(pairs["llama-3"][1])
    size = tokenizer.layout.size
    tokenizer.add_tokens(["<|tool|>"])
    assert (len(tokenizer), tokenizer.layout.size) == (size + 1, size)
    tokenizer.save_pretrained(tmp_path)
    assert BeingVLTokenizer.from_pretrained(tmp_path)("<|tool|>").input_ids[-1] == size


def test_a_special_token_without_a_row_is_refused(pairs, tmp_path: Path) -> None:
    pairs["llama-3"][1].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(path.read_text().replace('"eoi_token": "', '"eoi_token": "/'))
    tokenizer = BeingVLTokenizer.from_pretrained(tmp_path)
    tokenizer.check_rows(len(tokenizer))
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json of .*: eoi_token is '/.*but the model has"
    ):
        tokenizer.check_rows(tokenizer.layout.size)


def test_a_token_without_a_row_is_refused(pairs, tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(pairs["llama-3"][1])
    tokenizer.add_tokens(["<|tool|>"])
    size = tokenizer.layout.size
    with pytest.raises(ValueError, match=rf"'<\|tool\|>' has the id {size}, but .* {size} rows"):
        tokenizer.check_rows(size)
    tokenizer = pairs["llama-3"][1]
    tokenizer.check_rows(size)
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    *_, template = content["post_processor"]["processors"]
    template["special_tokens"]["<|begin_of_text|>"]["ids"] = [1_000_000_000]
    path.write_text(json.dumps(content))
    with pytest.raises(
        ValueError, match=r"tokenizer\.json of .* around each text' has the id 1000000000"
    ):
        BeingVLTokenizer.from_pretrained(tmp_path).check_rows(size)
    template["special_tokens"] = {}  # tokenizers panics over the name in the template
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{path}: no text can be tokenized: PanicException"):
        BeingVLTokenizer.from_pretrained(tmp_path).check_rows(size)


def test_a_saved_vocabulary_with_a_gap_is_refused(pairs, tmp_path: Path) -> None:
    """tokenizers writes 4 GB for an id of 10⁹ where it says itself as JSON."""
    pairs["llama-3"][1].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"][max(content["model"]["vocab"])] = 1_000_000_000
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer\.json of .* its largest id is 1000000000"):
        BeingVLTokenizer.from_pretrained(tmp_path)


def test_another_backend_is_refused(pairs, tmp_path: Path) -> None:
    """transformers takes the word of the file for it, and then says that the tokenizer is a slow one."""
    pairs["llama-3"][1].save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    text = path.read_text()
    assert '"backend": "tokenizers"' in text
    path.write_text(text.replace('"backend": "tokenizers"', '"backend": "sentencepiece"'))
    with pytest.raises(
        ValueError, match=r"tokenizer_config\.json of .*: backend must be 'tokenizers', got 'sen"
    ):
        BeingVLTokenizer.from_pretrained(tmp_path)


def test_repr_is_short(pairs) -> None:
    assert len(repr(pairs["llama-3"][1])) < 700


# ---- bad input


def test_a_tokenizer_with_gaps_is_refused() -> None:
    backend = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    broken = PreTrainedTokenizerFast(tokenizer_object=backend)
    with pytest.raises(ValueError, match="ids with gaps"):
        BeingVLTokenizer.from_text_tokenizer(broken, image_bpe())


def test_bad_special_tokens_are_refused(pairs) -> None:
    base, tokenizer = pairs["llama-3"]
    names = {"boi_token": "<b>", "eoi_token": "<e>", "image_token": "<i>"}
    for wrong, message in (
        ({"boi_token": "<b>", "eoi_token": "<e>"}, "lacks 'image_token'"),
        ({**names, "eoi_token": "<b>"}, "must differ"),
        ({**names, "sep": "<s>"}, "end in '_token'"),
        ({**names, "sep_token": ""}, "end in '_token'"),
    ):
        with pytest.raises(ValueError, match=message):
            BeingVLTokenizer.from_text_tokenizer(base, image_bpe(), wrong)
    with pytest.raises(ValueError, match="already has the image token"):
        BeingVLTokenizer.from_text_tokenizer(tokenizer, image_bpe())
    with pytest.raises(ValueError, match="must be a fast tokenizer"):
        BeingVLTokenizer.from_text_tokenizer(object(), image_bpe())


def test_files_that_do_not_belong_together_are_refused(pairs, tmp_path: Path) -> None:
    pairs["llama-3"][1].save_pretrained(tmp_path)
    ImageBPE(image_bpe().merges[:-1], CODEBOOK_SIZE).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"image_bpe.json has 27 visual ids"):
        BeingVLTokenizer.from_pretrained(tmp_path)
    (tmp_path / "image_bpe.json").unlink()
    with pytest.raises(ValueError, match=r"image_bpe.json is missing"):
        BeingVLTokenizer.from_pretrained(tmp_path)


def test_a_text_tokenizers_folder_is_refused(tmp_path: Path) -> None:
    llama_3_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="text_vocab_size is missing"):
        BeingVLTokenizer.from_pretrained(tmp_path)
