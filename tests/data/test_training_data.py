"""Loading tokenized folders, mixtures with weights and shares, and the filters for many concepts."""

from __future__ import annotations

import json
import sys
from collections import Counter
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import yaml
from checkpoint_fixtures import tiny_checkpoint
from data_fixtures import make_codes, make_rows, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from being_vl.data import (
    TokenizeSettings,
    cap_per_group,
    cap_per_phrase,
    load_tokenized,
    load_training_data,
    mix,
    noun_phrases,
    open_samples,
    select_samples,
    tokenize_samples,
)


@pytest.fixture(scope="module")
def processor():
    return tiny_checkpoint()[1]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, processor):
    """Three tokenized folders of 10, 20 and 30 rows."""
    root = tmp_path_factory.mktemp("mixture")
    grids = make_codes(root / "codes")
    for name, count in (("base", 10), ("extra", 20), ("more", 30)):
        source = open_samples(str(write_rows(root / f"{name}.json", make_rows(list(grids), count))))
        tokenize_samples(
            source,
            processor,
            root / name,
            TokenizeSettings(source=name),
            checkpoint="",
            codes=[str(root / "codes")],
        )
    return root


def write_mixture(folders, spec) -> str:
    path = folders / "mixture.yaml"
    path.write_text(yaml.safe_dump(spec))
    return str(path)


SOURCES = {"base": "base", "extra": "extra", "more": "more"}


def test_a_folder_keeps_its_order_and_its_rows_on_disk(folders, processor) -> None:
    loaded = load_training_data(folders / "base", processor.tokenizer)
    assert loaded["id"] == [f"r{i}" for i in range(10)]
    assert loaded.cache_files


def test_weights_count_epochs(folders, processor) -> None:
    spec = {"sources": SOURCES, "weights": {"base": 2.5, "extra": 0.5, "more": 1}}
    mixed = load_training_data(write_mixture(folders, spec), processor.tokenizer)
    assert Counter(mixed["source"]) == {"base": 25, "extra": 10, "more": 30}
    base = Counter(i for i, s in zip(mixed["id"], mixed["source"], strict=True) if s == "base")
    assert sorted(base.values()) == [2] * 5 + [3] * 5  # whole epochs, and half of the rows again
    assert mixed["source"] != sorted(mixed["source"])  # shuffled


def test_shares_are_exact_and_by_default_repeat_nothing(folders, processor) -> None:
    spec = {
        "sources": SOURCES,
        "stages": {
            "pretrain": {"weights": {"more": 1}},
            "sft": {"shares": {"base": 0.5, "extra": 0.25, "more": 0.25}, "samples": 41},
            "all": {"shares": {"base": 1, "extra": 3}},
        },
    }
    path = write_mixture(folders, spec)
    sft = load_training_data(path, processor.tokenizer, stage="sft")
    assert len(sft) == 41 and sorted(Counter(sft["source"]).values()) == [10, 10, 21]
    fitting = load_training_data(path, processor.tokenizer, stage="all")
    assert Counter(fitting["source"]) == {"base": 7, "extra": 19}
    assert len(set(zip(fitting["id"], fitting["source"], strict=True))) == 26
    assert len(load_training_data(path, processor.tokenizer, stage="pretrain")) == 30


def test_a_seed_has_one_mixture(folders, processor) -> None:
    spec = {"sources": SOURCES, "weights": {"base": 0.5, "extra": 0.5}}
    path = write_mixture(folders, spec)
    one, two, other = (
        load_training_data(path, processor.tokenizer, seed=seed) for seed in (3, 3, 4)
    )
    assert one["id"] == two["id"]
    assert one["id"] != other["id"]
    absolute = {**spec, "sources": {name: str(folders / name) for name in SOURCES}}
    assert load_training_data(absolute, processor.tokenizer, seed=3)["id"] == one["id"]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    rows=st.integers(1, 80),
    seed=st.integers(0, 5),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_any_shares_give_that_many_rows_each_within_one_of_its_share(
    sizes, rows, seed, data
) -> None:
    names = [f"s{i}" for i in range(len(sizes))]
    sources = {
        name: datasets.Dataset.from_dict({"source": [name] * size, "row": range(size)})
        for name, size in zip(names, sizes, strict=True)
    }
    shares = {name: data.draw(st.floats(0.01, 1)) for name in names}
    mixed = mix(sources, shares, by_share=True, samples=rows, seed=seed)
    assert len(mixed) == rows
    counts = Counter(mixed["source"])
    for name, share in shares.items():
        assert abs(counts[name] - rows * share / sum(shares.values())) < 1
    repeats = Counter(zip(mixed["source"], mixed["row"], strict=True))
    for name, size in zip(names, sizes, strict=True):  # no row twice before each came once
        own = [repeats[name, row] for row in range(size)]
        assert max(own) - min(own) <= 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([], "must be a mapping with sources"),
        ({"sources": {}}, "sources must map names to folders"),
        ({"sources": {"base": 3}, "weights": {"base": 1}}, "sources.base must be a folder, got 3"),
        ({"sources": SOURCES}, "exactly one of weights and shares"),
        ({"sources": SOURCES, "weights": {"base": 1}, "shares": {"base": 1}}, "exactly one of"),
        ({"sources": SOURCES, "weights": {"bass": 1}}, "weights.bass is not one of sources: base"),
        ({"sources": SOURCES, "weights": {"base": -1}}, "weights.base must be a positive number up to 1e+18, got -1"),
        ({"sources": SOURCES, "weights": {"base": 10**400}}, "weights.base must be a positive number"),
        ({"sources": SOURCES, "weights": {"base": True}}, "weights.base must be a positive number"),
        ({"sources": SOURCES, "weights": {"base": 1}, "samples": 4}, "samples must be an integer from 1 to 1000000000 beside"),
        ({"sources": SOURCES, "shares": {"base": 1}, "samples": True}, "samples must be an integer from 1"),
        ({"sources": SOURCES, "shares": {"base": 1}, "samples": 10**400}, "samples must be an integer from 1"),
        ({"sources": SOURCES, "weights": {"base": 1e308}}, "weights.base must be a positive number up to 1e+18, got 1e+308"),
        ({"sources": SOURCES, "weight": {"base": 1}}, "unknown field 'weight'"),
        ({"sources": SOURCES, "stages": {"a": {"weights": {"base": 1}}}, "samples": 3}, "not both"),
        ({"sources": SOURCES, "stages": {"a": {}, "b": {}}}, "stages has no None; there are a, b"),
        ({"sources": SOURCES, "stages": {"a": {"wights": {}}}}, "stages.a: unknown field 'wights'"),
    ],
)  # fmt: skip
def test_a_bad_mixture_is_named(folders, processor, spec, words) -> None:
    with pytest.raises(ValueError, match=r"mixture\.yaml") as error:
        load_training_data(write_mixture(folders, spec), processor.tokenizer)
    assert words in str(error.value)


def test_rows_of_another_tokenizer_are_refused(folders, processor) -> None:
    other = tiny_checkpoint("smollm")[1].tokenizer
    with pytest.raises(ValueError, match=r"base: made with another tokenizer: (size|layout) is"):
        load_training_data(folders / "base", other)
    with pytest.raises(ValueError, match="made with another tokenizer"):
        load_training_data({"sources": {"b": str(folders / "base")}, "weights": {"b": 1}}, other)


def test_a_tokenizer_that_was_used_saved_and_loaded_is_the_same(
    folders, processor, tmp_path
) -> None:
    from being_vl import BeingVLTokenizer

    processor.tokenizer(["a", "a b c"], padding=True, truncation=True, max_length=8)
    processor.tokenizer.save_pretrained(tmp_path / "tokenizer")
    again = BeingVLTokenizer.from_pretrained(tmp_path / "tokenizer")
    again(["a", "a b c"], padding="max_length", max_length=9)
    assert len(load_tokenized(folders / "base", again)) == 10


def test_sources_of_two_quantizers_are_not_mixed(folders, processor, tmp_path) -> None:
    make_codes(tmp_path / "codes", quantizer="another")
    grids = make_codes(tmp_path / "same")
    source = open_samples(str(write_rows(tmp_path / "x.json", make_rows(list(grids), 5))))
    tokenize_samples(
        source, processor, tmp_path / "x", TokenizeSettings(source="x"), checkpoint="",
        codes=[str(tmp_path / "codes")], accept_mismatch=["quantizer"],
    )  # fmt: skip
    sources = {"base": str(folders / "base"), "x": str(tmp_path / "x")}
    with pytest.raises(
        ValueError,
        match=r"codes of one quantizer, got those of base: sha256:[0-9a-f]{64}, x: another",
    ):
        load_training_data(
            {"sources": sources, "weights": {"base": 1, "x": 1}}, processor.tokenizer
        )


def test_what_is_no_tokenized_folder_is_refused(folders, processor, tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no tokenized data set"):
        load_training_data(tmp_path, processor.tokenizer)
    with pytest.raises(FileNotFoundError):
        load_training_data(tmp_path / "absent.yaml", processor.tokenizer)
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text("sources: {base: none-there}\nweights: {base: 1}\n")
    with pytest.raises(FileNotFoundError, match=rf"{mixture}: sources: base: .*no tokenized data"):
        load_training_data(mixture, processor.tokenizer)
    mixture.write_text(f"sources: {{base: {folders / 'base'}}}\nweights: {{base: 1.0e+9}}\n")
    with pytest.raises(ValueError, match=rf"{mixture}: the mixture has \d+ samples, more than"):
        load_training_data(mixture, processor.tokenizer)
    (tmp_path / "tokenized.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="version must be 3, got 99"):
        load_training_data(tmp_path, processor.tokenizer)


# ---- filters


def test_a_cap_per_label_keeps_small_groups_whole() -> None:
    groups = ["cat"] * 50 + ["dog"] * 3 + [None] * 2 + ["cat"] * 50
    kept = cap_per_group(groups, 5, seed=0)
    assert Counter(groups[i] for i in kept) == {"cat": 5, "dog": 3, None: 2}
    assert list(kept) == sorted(set(kept))
    assert max(i for i in kept if groups[i] == "cat") > 55  # at random, not the first
    assert (
        list(cap_per_group(groups, 5, seed=0))
        == list(kept)
        != list(cap_per_group(groups, 5, seed=1))
    )


def test_phrases_bring_in_rows_as_in_llava() -> None:
    phrases = [["a dog"]] * 200 + [["A  Dog", "a red kite"]] * 4 + [["a pangolin"]] * 2 + [[]]
    kept = cap_per_phrase(phrases, cap=10, min_count=3, seed=0)
    assert set(range(200, 204)) <= set(kept)  # four rows of the kite, each brought in
    assert 10 <= len(kept) <= 14  # ten of the dog's, of which some may have kites
    assert not set(kept) & {204, 205, 206}  # too rare, and no phrase at all
    assert list(cap_per_phrase(phrases, cap=10, min_count=2, seed=0)[-2:]) == [204, 205]


@given(
    phrases=st.lists(st.lists(st.sampled_from("abcde"), max_size=3), max_size=60),
    cap=st.integers(1, 6),
    min_count=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(max_examples=80, deadline=None)
def test_every_frequent_phrase_keeps_as_many_rows_as_its_cap_allows(phrases, cap, min_count, seed):
    kept = set(cap_per_phrase(phrases, cap, min_count=min_count, seed=seed).tolist())
    counts = Counter(phrase for own in phrases for phrase in set(own))
    for phrase, count in counts.items():
        rows = {i for i, own in enumerate(phrases) if phrase in own}
        if count >= min_count:
            assert len(rows & kept) >= min(cap, count)
    for row in kept:
        assert any(counts[phrase] >= min_count for phrase in phrases[row])


def test_filters_together_keep_what_each_keeps() -> None:
    rows = [{"label": f"l{i % 3}", "phrases": [f"p{i % 7}"]} for i in range(60)]
    both = select_samples(
        lambda: iter(rows), label_field="label", max_per_label=9, phrase_field="phrases",
        max_per_phrase=4, seed=1,
    )  # fmt: skip
    label = select_samples(lambda: iter(rows), label_field="label", max_per_label=9, seed=1)
    phrase = select_samples(lambda: iter(rows), phrase_field="phrases", max_per_phrase=4, seed=1)
    assert set(both) == set(label) & set(phrase) and len(label) == 27 and len(phrase) == 28
    assert select_samples(lambda: iter(rows)) is None


def test_bad_filters_are_named() -> None:
    rows = [{"label": [1]}]
    for options, words in (
        ({"label_field": "label"}, "go together"),
        ({"label_field": "absent", "max_per_label": 1}, "no sample has the field 'absent'"),
        (
            {"label_field": "label", "max_per_label": 1},
            r"sample 0: label must be text or an integer, got \[1\]",
        ),
        ({"phrase_field": "label"}, "sample 0: label must be a list of texts"),
        ({"phrase_field": "a", "spacy_model": "b"}, "got both"),
    ):
        with pytest.raises(ValueError, match=words):
            select_samples(lambda: iter(rows), **options)


def test_noun_phrases_need_spacy(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(ImportError, match=r"being-vl\[phrases\]"):
        noun_phrases(["a red kite"])


def test_noun_phrases_are_of_what_the_assistant_says(monkeypatch) -> None:
    """With a stand-in for spaCy, whose models do not come from PyPI: every word is a noun chunk."""
    document = type("Document", (), {"__init__": lambda self, text: setattr(self, "noun_chunks", [
        SimpleNamespace(text=word) for word in text.split()])})  # fmt: skip
    model = SimpleNamespace(pipe=lambda texts: map(document, texts))
    loaded = []

    def load(name: str, **options: object) -> SimpleNamespace:
        loaded.append(name)
        return model

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    rows = [
        {
            "conversations": [
                {"from": "human", "value": "unseen"},
                {"from": "gpt", "value": f"kite n{i}"},
            ]
        }
        for i in range(9)
    ] + [{"messages": [{"role": "assistant", "content": [{"type": "text", "text": "rare"}]}]}]
    kept = select_samples(lambda: iter(rows), spacy_model="a_model", max_per_phrase=4, seed=0)
    assert loaded == ["a_model"]
    assert len(kept) == 4 and 9 not in kept  # only "kite" is frequent enough


def test_selected_rows_keep_their_numbers(processor, folders, tmp_path) -> None:
    grids = make_codes(tmp_path / "codes")
    rows = make_rows(list(grids), 12)
    for row in rows:
        del row["id"]
    source = open_samples(str(write_rows(tmp_path / "x.jsonl", rows)))
    made = tokenize_samples(
        source, processor, tmp_path / "x", TokenizeSettings(source="x", shard_size=2), checkpoint="",
        codes=[str(tmp_path / "codes")], selection=np.array([2, 5, 11]),
    )  # fmt: skip
    assert made["counts"]["samples"] == 3
    assert load_tokenized(tmp_path / "x", processor.tokenizer)["id"] == ["2", "5", "11"]


def test_a_source_is_not_taken_thousands_of_times():
    rows = datasets.Dataset.from_dict({"a": [1, 2, 3]})
    assert len(mix({"s": rows}, {"s": 1.0}, by_share=True, samples=1000)) == 1000
    for options in ({"by_share": True, "samples": 10**7}, {}):
        with pytest.raises(ValueError, match="samples of 's', which has 3: more than 100 times"):
            mix({"s": rows}, {"s": 1e7}, **options)
