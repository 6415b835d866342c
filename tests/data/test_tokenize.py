"""`being-vl tokenize`: ids and masks, missing images, bad rows, restarts, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_fixtures import folder_bytes, forked, make_checkpoint, make_codes, make_rows, write_rows
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from being_vl import BeingVLProcessor
from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import ShardInfo, write_shard
from being_vl.data import TokenizeSettings, load_tokenized, load_training_data
from being_vl.data.codes import CodeIndex, build_index
from being_vl.data.conversations import parse_sample
from being_vl.data.identity import processor_identity


class Data:
    """A checkpoint, codes, and the command that joins them with rows."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoint = make_checkpoint(folder / "checkpoint")
        self.grids = make_codes(folder / "codes")
        self.processor = BeingVLProcessor.from_pretrained(self.checkpoint, vq=False)

    def run(self, data: Path | str, output: Path, *flags: str) -> int:
        return being_vl_command(
            ["tokenize", "--checkpoint", str(self.checkpoint), "--data", str(data), "--codes",
             str(self.folder / "codes"), "--output", str(output), "--workers", "0",
             "--shard-size", "4", *flags]
        )  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Data:
    return Data(tmp_path_factory.mktemp("data"))


def test_ids_and_masks_are_those_of_the_processor_alone(data, tmp_path) -> None:
    rows = make_rows(list(data.grids))
    assert data.run(write_rows(tmp_path / "rows.json", rows), tmp_path / "out") == 0
    loaded = load_training_data(tmp_path / "out", data.processor.tokenizer)
    assert loaded["id"] == [row["id"] for row in rows]
    assert set(loaded["source"]) == {"rows"}
    tokenizer = data.processor.tokenizer
    for row, made in zip(rows, loaded, strict=True):
        images = row.get("image", [])
        images = [images] if isinstance(images, str) else images
        assert made["image_ids"] == images
        expected = data.processor(
            text="<|begin_of_text|>"
            + "".join(
                f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>"
                for role, text in (
                    ({"human": "user", "gpt": "assistant"}[turn["from"]],
                     turn["value"].replace("<image>\n", "<image>").replace("\n<image>", "<image>"))
                    for turn in row["conversations"]
                )
            ),
            image_codes=[data.grids[i] for i in images] or None,
            add_special_tokens=False,
        )["input_ids"][0]  # fmt: skip
        assert made["input_ids"] == expected
        assert made["length"] == len(expected) == len(made["assistant_masks"])
        spoken = [i for i, m in zip(made["input_ids"], made["assistant_masks"], strict=True) if m]
        answers = [turn["value"] for turn in row["conversations"] if turn["from"] == "gpt"]
        assert tokenizer.decode(spoken) == "".join(f"{answer}<|eot_id|>" for answer in answers)


def test_the_folder_is_a_memory_mapped_data_set_with_counts(data, tmp_path) -> None:
    rows = make_rows(list(data.grids))
    assert data.run(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out") == 0
    loaded = load_tokenized(tmp_path / "out", data.processor.tokenizer)
    assert loaded.features["input_ids"].feature.dtype == "int32"
    assert len(loaded.cache_files) == 3  # mapped from three shards of at most four rows
    manifest = json.loads((tmp_path / "out/tokenized.json").read_text())
    counts = manifest["counts"]
    assert counts["samples"] == len(rows) and counts["skipped_samples"] == 0
    assert counts["tokens"] == sum(loaded["length"])
    assert counts["assistant_tokens"] == sum(map(sum, loaded["assistant_masks"]))
    assert counts["images"] == sum(map(len, loaded["image_ids"]))
    grids = [data.grids[i] for ids in loaded["image_ids"] for i in ids]
    assert counts["cells"] == sum(grid.size for grid in grids)
    assert counts["image_tokens"] == sum(map(len, data.processor.tokenizer.encode_codes(grids)))
    assert manifest["parts"]["tokenizer"]["size"] == len(data.processor.tokenizer)


def test_json_json_lines_data_sets_and_processes_give_the_same_rows(data, tmp_path) -> None:
    rows = make_rows(list(data.grids))
    for row in rows:  # one type a column, as Arrow wants it
        row["image"] = [row["image"]] if isinstance(row.get("image"), str) else row.get("image", [])
    saved = tmp_path / "saved"
    datasets.Dataset.from_list(rows).save_to_disk(saved)
    chat = [
        {
            "id": row["id"],
            "images": row["image"],
            "messages": [
                {"role": {"human": "user", "gpt": "assistant"}[t["from"]], "content": t["value"]}
                for t in row["conversations"]
            ],
        }
        for row in rows
    ]
    sources = [
        write_rows(tmp_path / "rows.json", rows),
        write_rows(tmp_path / "rows.jsonl", rows),
        saved,
        write_rows(tmp_path / "chat.jsonl", chat),
    ]
    made = []
    for i, source in enumerate(sources):
        flags = ["--source", "one"]
        if i == 1:
            flags += ["--workers", "2"]
        assert data.run(source, tmp_path / f"out{i}", *flags) == 0
        made.append({k: v for k, v in folder_bytes(tmp_path / f"out{i}").items() if "data-" in k})
    assert made[0] and all(one == made[0] for one in made)


def test_a_data_set_of_pictures_finds_the_codes_that_encode_named_by_row(data, tmp_path) -> None:
    picture = Image.new("RGB", (4, 4))
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "red"}]
    rows = [{"name": n, "image": picture, "conversations": turns} for n in list(data.grids)[:3]]
    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [
                {"from": datasets.Value("string"), "value": datasets.Value("string")}
            ],
        }
    )
    datasets.Dataset.from_list(rows, features=features).save_to_disk(tmp_path / "saved")
    assert data.run(tmp_path / "saved", tmp_path / "out", "--id-column", "name") == 0
    loaded = load_training_data(tmp_path / "out", data.processor.tokenizer)
    assert loaded["image_ids"] == [[name] for name in list(data.grids)[:3]]


def test_messages_of_parts_name_their_images(data) -> None:
    content = [
        {"type": "image", "image": "a/0.png", "text": None},
        {"type": "text", "text": "\nWhat?"},
    ]
    row = {
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "red"}]
    }
    parsed = parse_sample(row, where="row 7", number=7)
    assert parsed.id == "7" and parsed.image_ids == ("a/0.png",)
    assert parsed.messages[0]["content"] == [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]


@pytest.mark.parametrize("policy", ["raise", "skip", "text"])
def test_missing_images(data, tmp_path, capsys, policy) -> None:
    rows = make_rows(list(data.grids), 4)
    rows[0]["image"] = "gone.png"
    rows[1]["image"][0] = "gone too.png"
    path = write_rows(tmp_path / "rows.jsonl", rows)
    status = data.run(path, tmp_path / "out", "--on-missing", policy)
    if policy == "raise":
        assert status == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "rows.jsonl: line 1: image 'gone.png': no codes" in error
        assert not (tmp_path / "out/tokenized.json").exists()
        with pytest.raises(ValueError, match="not finished"):
            load_training_data(tmp_path / "out", data.processor.tokenizer)
        return
    assert status == 0
    skipped = [json.loads(line) for line in (tmp_path / "out/skipped.jsonl").open()]
    assert [(s["id"], s["image_id"]) for s in skipped] == [
        ("r0", "gone.png"),
        ("r1", "gone too.png"),
    ]
    assert all(s["reason"] == "no codes for this image" for s in skipped)
    loaded = load_training_data(tmp_path / "out", data.processor.tokenizer)
    if policy == "skip":
        assert loaded["id"] == ["r2", "r3"]
        return
    assert loaded["id"] == ["r0", "r1", "r2", "r3"]
    assert loaded["image_ids"][:2] == [[], [rows[1]["image"][1]]]
    boi = data.processor.boi_token_id
    assert [ids.count(boi) for ids in loaded["input_ids"]] == [0, 1, 0, 1]
    assert "What is in the picture?" in data.processor.tokenizer.decode(loaded["input_ids"][0])


def test_a_long_row_is_refused_or_left_out_and_never_cut(data, tmp_path, capsys) -> None:
    rows = make_rows(list(data.grids))
    path = write_rows(tmp_path / "rows.json", rows)
    assert data.run(path, tmp_path / "whole") == 0
    lengths = load_training_data(tmp_path / "whole", data.processor.tokenizer)["length"]
    limit = sorted(lengths)[len(lengths) // 2]
    assert data.run(path, tmp_path / "out", "--max-length", str(limit)) == 2
    assert f"tokens, but max_length is {limit}" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    flags = ("--max-length", str(limit), "--on-too-long", "skip")
    assert data.run(path, tmp_path / "out", *flags) == 0
    kept = load_training_data(tmp_path / "out", data.processor.tokenizer)["length"]
    assert kept == [length for length in lengths if length <= limit]
    assert len((tmp_path / "out/skipped.jsonl").read_text().splitlines()) == len(rows) - len(kept)


def test_a_chat_template_that_drops_images_is_no_rows_fault(data, tmp_path, capsys) -> None:
    checkpoint = Path(shutil.copytree(data.checkpoint, tmp_path / "checkpoint"))
    template = checkpoint / "chat_template.jinja"
    text = template.read_text()
    assert text.count("image_token") == 1
    template.write_text(re.sub(r"\{\{-?[^}]*image_token[^}]*\}\}", "", text))
    rows = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    flags = ("--checkpoint", str(checkpoint), "--on-bad-row", "skip")
    assert data.run(rows, tmp_path / "out", *flags) == 2  # all rows with images would be skipped
    says = f"error: {template}: the chat template puts 0 placeholder(s) for "
    assert says in capsys.readouterr().err


def test_text_that_spells_a_special_token_is_found(data, tmp_path, capsys) -> None:
    rows = make_rows(list(data.grids), 3)
    rows[2]["conversations"][1]["value"] = "ends<|eot_id|> here"
    path = write_rows(tmp_path / "rows.json", rows)
    assert data.run(path, tmp_path / "out") == 2
    assert "sample 2: its text spells the special token '<|eot_id|>'" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    assert data.run(path, tmp_path / "out", "--on-control-token", "skip") == 0
    assert load_training_data(tmp_path / "out", data.processor.tokenizer)["id"] == ["r0", "r1"]


GOOD = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("text", "must be an object, got 'text'"),
        ({}, "exactly one of conversations and messages"),
        ({"conversations": []}, "conversations must be a list of turns, got a list []"),
        ({"id": [1], "conversations": GOOD}, "id must be text or an integer, got a list [1]"),
        ({"image": "a", "conversations": [5]}, "conversations[0]: must be an object with from and value"),
        ({"image": "a", "conversations": [{"from": "bot", "value": ""}]}, "conversations[0].from must be one of human"),
        ({"image": "a", "conversations": [{"from": "gpt", "value": 3}]}, "conversations[0].value must be text, got 3"),
        ({"image": "a", "conversations": GOOD[:1]}, "must have a turn of the assistant"),
        ({"conversations": GOOD}, "image has 0 image(s), but the turns have 1 <image>"),
        ({"image": ["a", "b"], "conversations": GOOD}, "image has 2 image(s), but the turns have 1"),
        ({"image": "a", "conversations": GOOD[1:]}, "image has 1 image(s), but the turns have 0"),
        ({"image": 4, "conversations": GOOD}, "image must be an image id or a list of them, got 4"),
        ({"image": "a", "images": ["a"], "conversations": GOOD}, "give image or images, not both"),
        ({"messages": [{"role": "assistant", "content": [{"type": "audio"}]}]}, "messages[0].content[0] must be a part"),
        ({"messages": [{"role": "assistant", "content": [{"type": "text", "text": "<image>"}]}]}, "must not spell <image>"),
    ],
)  # fmt: skip
def test_a_bad_row_is_one_line_with_file_row_field_rule_and_value(
    data, tmp_path, capsys, row, words
):
    rows = [*make_rows(list(data.grids), 2), row]
    assert data.run(write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"being-vl tokenize: error: {tmp_path / 'rows.jsonl'}: line 3")
    assert words in error


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(["id", "image", "images", "conversations", "messages", "from", "value",
                         "role", "content", "type", "text"]), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(row=json_values)
@settings(max_examples=300, deadline=None)
def test_any_json_value_is_a_conversation_or_a_value_error(row) -> None:
    try:
        parsed = parse_sample(row, where="row", number=0)
    except ValueError as error:
        assert str(error).startswith("row")
    else:
        images = sum(p["type"] == "image" for m in parsed.messages for p in m["content"])
        assert images == len(parsed.image_ids)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("rows.json", "{}", "must be a list of samples, got dict"),
        ("rows.json", "[", "not valid JSON"),
        ("rows.json", "[]", "has no sample"),
        ("rows.jsonl", '\n{"id": 1,\n', "line 2: not valid JSON"),
        ("rows.csv", "a", "must be a .json or .jsonl file"),
    ],
)
def test_bad_files(data, tmp_path, capsys, name, text, words) -> None:
    (tmp_path / name).write_text(text)
    assert data.run(tmp_path / name, tmp_path / "out") == 2
    assert words in capsys.readouterr().err


def test_codes_are_found_by_id_alone(data, tmp_path) -> None:
    index, shards = build_index([str(data.folder / "codes")], tmp_path / "index.npy")
    again = CodeIndex(shards.files, tmp_path / "index.npy")
    wanted = [*data.grids, "absent"]
    for one in (index, again):
        found = one.lookup(wanted)
        assert set(found) == set(data.grids)
        for name, grid in data.grids.items():
            np.testing.assert_array_equal(found[name], grid)
    assert index.lookup([]) == {}


def test_codes_of_two_images_of_one_id_or_of_another_codebook_are_refused(data, tmp_path, capsys):
    grid = next(iter(data.grids.values()))
    twice = tmp_path / "twice.parquet"
    write_shard(twice, ["a", "a"], [grid, (grid + 1) % 16], ShardInfo(codebook_size=16))
    with pytest.raises(ValueError, match="image ids must differ, got 'a' twice"):
        build_index([str(twice)], tmp_path / "index.npy")
    other = tmp_path / "other.parquet"
    write_shard(other, ["a"], [grid], ShardInfo(codebook_size=99))
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    assert data.run(path, tmp_path / "out", "--codes", str(other)) == 2
    assert "codebook_size must be 16, as in the checkpoint, got 99" in capsys.readouterr().err


def test_rows_with_images_without_codes_say_so(data, tmp_path, capsys) -> None:
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    arguments = ["tokenize", "--checkpoint", str(data.checkpoint), "--data", str(path)]
    assert being_vl_command([*arguments, "--output", str(tmp_path / "out")]) == 2
    assert "image 'a/0.png': no --codes given" in capsys.readouterr().err


# ---- dropout


def image_tokens(data: Data, made: dict) -> list[list[int]]:
    """The visual ids of each image of a sample."""
    tokenizer, layout = data.processor.tokenizer, data.processor.tokenizer.layout
    ids = np.array(made["input_ids"])
    begins, ends = (
        np.flatnonzero(ids == token) for token in (tokenizer.boi_token_id, tokenizer.eoi_token_id)
    )
    return [
        (ids[begin + 1 : end] - layout.first_code_id).tolist()
        for begin, end in zip(begins, ends, strict=True)
    ]


def test_dropout_gives_other_tokens_of_the_same_images(data, tmp_path) -> None:
    """Exact decoding; other tokens in each use of an image and with each seed; text and labels as without."""
    rows = make_rows(list(data.grids), 60)
    path = write_rows(tmp_path / "rows.json", rows)
    loaded = []
    for name, *flags in (
        ("plain",),
        ("zero", "--dropout", "0", "--seed", "5"),
        ("half", "--dropout", "0.5"),
        ("other", "--dropout", "0.5", "--seed", "1"),
    ):
        assert data.run(path, tmp_path / name, *flags) == 0
        loaded.append(load_tokenized(tmp_path / name, data.processor.tokenizer, verify=True))
    plain, zero, half, other = loaded
    assert plain.to_list() == zero.to_list()
    for a, b in zip(plain, half, strict=True):
        without = [
            np.array([i for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True) if m == 1])
            for row in (a, b)
        ]  # fmt: skip
        np.testing.assert_array_equal(*without)
    bpe = data.processor.tokenizer.image_bpe
    uses: dict[str, set] = {}
    for made, again in zip(half, other, strict=True):
        for one, two, name in zip(
            image_tokens(data, made), image_tokens(data, again), made["image_ids"], strict=True
        ):
            grid = data.grids[name]
            for ids in (one, two):
                np.testing.assert_array_equal(bpe.decode(ids, *grid.shape), grid)
                uses.setdefault(name, set()).add(tuple(ids))
    assert min(map(len, uses.values())) > 8
    assert sum(half["length"]) > sum(plain["length"])


def test_dropout_depends_on_samples_alone_and_is_part_of_the_folder(data, tmp_path, capsys) -> None:
    """Neither processes, shards nor the order of the samples decide; another dropout or seed is refused."""
    rows = make_rows(list(data.grids), 20)
    path, flags = write_rows(tmp_path / "rows.json", rows), ("--dropout", "0.3", "--seed", "7")
    assert data.run(path, tmp_path / "out", *flags) == 0
    for name, changes in (("processes", ("--workers", "2")), ("shards", ("--shard-size", "7"))):
        assert data.run(path, tmp_path / name, *flags, *changes) == 0
    (tmp_path / "reversed").mkdir()
    backwards = write_rows(tmp_path / "reversed" / "rows.json", rows[::-1])
    assert data.run(backwards, tmp_path / "backwards", *flags) == 0
    tokenizer = data.processor.tokenizer
    wanted = load_tokenized(tmp_path / "out", tokenizer).to_list()
    for name in ("processes", "shards", "backwards"):
        found = load_tokenized(tmp_path / name, tokenizer).to_list()
        assert (found[::-1] if name == "backwards" else found) == wanted
    said = json.loads((tmp_path / "out/tokenized.json").read_text())["settings"]
    assert said["dropout"] == 0.3 and said["seed"] == 7
    for changed in (["--dropout", "0.3"], ["--dropout", "0.2", "--seed", "7"], []):
        assert data.run(path, tmp_path / "out", *changed) == 2
        assert "tokenize.json: settings is" in capsys.readouterr().err


def test_without_dropout_a_folder_says_nothing_of_it(data, tmp_path) -> None:
    """So a folder begun before the option existed continues; its seed decides nothing."""
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    assert data.run(path, tmp_path / "out") == 0
    assert not {"dropout", "seed"} & json.loads((tmp_path / "out/tokenize.json").read_text())["settings"].keys()  # fmt: skip
    before = folder_bytes(tmp_path / "out")
    del before["tokenize.yaml"]
    assert data.run(path, tmp_path / "out", "--seed", "3") == 0
    assert before.items() <= folder_bytes(tmp_path / "out").items()


def test_dropout_that_is_no_probability(data, tmp_path, capsys) -> None:
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    with pytest.raises(SystemExit) as end:
        data.run(path, tmp_path / "out", "--dropout", "1.5")
    assert end.value.code == 2 and "--dropout" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"dropout must be a probability in \[0, 1\], got nan"):
        TokenizeSettings(source="x", dropout=float("nan"))


# ---- restarts


def test_killed_runs_end_with_the_same_bytes(data, tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", make_rows(list(data.grids), 60))
    output = tmp_path / "out"
    assert data.run(path, output) == 0
    wanted = folder_bytes(output)
    shutil.rmtree(output)
    for kill in range(4):
        child = forked(lambda: data.run(path, output))
        shards = 2 * (kill + 1)
        while len(list(output.glob("*.arrow"))) < shards:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert 8 <= len(list(output.glob("*.arrow")))
    assert data.run(path, output) == 0
    assert folder_bytes(output) == wanted


def test_a_finished_shard_is_not_made_again(data, tmp_path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", make_rows(list(data.grids), 12))
    assert data.run(path, tmp_path / "out") == 0
    shard = tmp_path / "out/data-00000-of-00003.arrow"
    before = shard.stat().st_mtime_ns
    (tmp_path / "out/data-00001-of-00003.arrow").unlink()
    assert data.run(path, tmp_path / "out") == 0
    assert shard.stat().st_mtime_ns == before
    assert len(load_training_data(tmp_path / "out", data.processor.tokenizer)) == 12


def test_a_folder_of_something_else_is_refused(data, tmp_path, capsys) -> None:
    rows = make_rows(list(data.grids))
    path, output = write_rows(tmp_path / "rows.json", rows), tmp_path / "out"
    assert data.run(path, output) == 0
    other = make_checkpoint(tmp_path / "other", "smollm")
    changes = {
        "settings": ["--max-length", "4096"],
        "parts": ["--checkpoint", str(other)],
        "selected_by": ["--label-field", "id", "--max-per-label", "1"],
    }
    for what, flags in changes.items():
        assert data.run(path, output, *flags) == 2
        assert f"tokenize.json: {what} is" in capsys.readouterr().err
    write_rows(path, rows[:-1])
    assert data.run(path, output) == 2
    assert "tokenize.json: data is" in capsys.readouterr().err
    write_rows(path, rows)
    grid = next(iter(data.grids.values()))
    quantizer = processor_identity(BeingVLProcessor.from_pretrained(data.checkpoint))["quantizer"]
    write_shard(tmp_path / "more.parquet", ["more"], [grid], ShardInfo(16, quantizer=quantizer))
    codes = ("--codes", str(data.folder / "codes"), str(tmp_path / "more.parquet"))
    assert data.run(path, output, *codes) == 2
    assert "tokenize.json: codes is" in capsys.readouterr().err
    assert data.run(path, output) == 0


def test_damaged_and_foreign_shards_are_refused(data, tmp_path, capsys) -> None:
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    assert data.run(path, tmp_path / "out") == 0
    (tmp_path / "out/data-00000-of-00003.arrow").write_bytes(b"not arrow")
    assert data.run(path, tmp_path / "out") == 2
    assert "not a shard of being-vl tokenize" in capsys.readouterr().err
    (tmp_path / "out/data-00000-of-00003.arrow").unlink()
    os.mkfifo(tmp_path / "out/data-00000-of-00003.arrow")  # its reader would wait for ever
    assert data.run(path, tmp_path / "out") == 2
    assert "data-00000-of-00003.arrow: not a regular file" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/data.arrow").touch()
    assert data.run(path, tmp_path / "foreign") == 2
    assert "holds shards but no tokenize.json" in capsys.readouterr().err


def test_a_second_process_in_the_folder_is_refused(data, tmp_path, capsys) -> None:
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out/.lock"):
        assert data.run(path, tmp_path / "out") == 2
    assert "another process is tokenizing into it" in capsys.readouterr().err


def test_the_saved_configuration_runs_the_command_again(data, tmp_path) -> None:
    path = write_rows(tmp_path / "rows.json", make_rows(list(data.grids)))
    assert data.run(path, tmp_path / "out") == 0
    config = tmp_path / "out/tokenize.yaml"
    assert being_vl_command(["tokenize", "--config", str(config)]) == 0
    with pytest.raises(SystemExit) as end:
        being_vl_command(["tokenize", "--config", str(config), "--unknown", "1"])
    assert end.value.code == 2
