"""Forms of data that people have, and what a bad row does."""

from __future__ import annotations

import bz2
import gzip
import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
from data_fixtures import make_checkpoint, make_codes
from PIL import Image

from being_vl.cli import main as being_vl_command
from being_vl.data import iter_samples, load_tokenized, open_samples
from being_vl.data.conversations import parse_sample
from being_vl.data.quantizing import DatasetSource
from being_vl.data.sources import DatasetSamples

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "red"}]
WANTED = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
]


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.png", "conversations": TURNS},
        {"image": ["a.png"], "conversations": TURNS},
        {"image": {"bytes": None, "path": "a.png"}, "conversations": TURNS},
        {"images": [{"path": "a.png"}], "conversations": TURNS},
        {"image": "a.png", "conversations": [{"from": "Human", "value": "<image>\nWhat?"}, {"from": "chatgpt", "value": "red"}]},
        {"image": "a.png", "conversations": [{"role": "USER", "value": "<image>\nWhat?"}, {"from": "bing", "content": "red"}]},
        {"image": "a.png", "query": "<image>What?", "response": "red"},
        {"images": ["a.png"], "query": "<image>What?", "response": "red", "history": [], "system": None},
        *(
            {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]},
                          {"role": "assistant", "content": "red"}]}
            for part in (
                {"type": "image", "url": "a.png"},
                {"type": "image", "path": "a.png"},
                {"type": "image", "image": "a.png"},
                {"type": "image", "image": {"path": "a.png", "bytes": None}},
                {"type": "image_url", "image_url": {"url": "a.png"}},
                {"type": "image_url", "image_url": "a.png"},
            )
        ),
    ],
)  # fmt: skip
def test_forms_that_say_the_same_are_the_same(row):
    parsed = parse_sample(row, where="row", number=0)
    assert parsed.image_ids == ("a.png",) and parsed.messages == WANTED


def test_the_history_of_ms_swift_is_turns():
    row = {"system": "s", "history": [["q", "a"]], "query": "r", "response": "b"}
    parsed = parse_sample(row, where="row", number=0)
    said = [(m["role"], m["content"][0]["text"]) for m in parsed.messages]
    assert said == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
        ("assistant", "b"),
    ]


def test_roles_of_tools_are_kept():
    turns = [
        {"from": "human", "value": "q"},
        {"from": "tool", "value": "{}"},
        {"from": "gpt", "value": "a"},
    ]
    parsed = parse_sample({"conversations": turns}, where="row", number=0)
    assert [m["role"] for m in parsed.messages] == ["user", "tool", "assistant"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": "AAAA"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "image", "image": {"bytes": "AAAA", "path": None}},
    ],
)
def test_a_picture_in_the_row_is_refused_without_its_payload(part):
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]}
    with pytest.raises(
        ValueError, match=r"content\[0\]: the image itself stands in the sample"
    ) as error:
        parse_sample(row, where="row", number=0)
    assert "AAAA" not in str(error.value)


def test_a_lone_surrogate_is_named():
    row = json.loads('{"conversations": [{"from": "gpt", "value": "\\ud83d"}]}')
    with pytest.raises(
        ValueError, match=r"conversations\[0\].value must be Unicode text, got the lone surrogate"
    ):
        parse_sample(row, where="row", number=0)


# ---- files

ROWS = [{"id": str(i), "conversations": [{"from": "gpt", "value": f"a {i}"}]} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.json", json.dumps(ROWS).encode()),
        ("rows.json", LINES),
        ("rows.json", json.dumps({"version": 1, "data": ROWS}).encode()),
        ("rows.jsonl", LINES),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS, indent=1).encode())),
        ("rows.jsonl.gz", gzip.compress(LINES)),
        ("rows.jsonl.zst", zstd(LINES)),
        ("rows.jsonl.bz2", bz2.compress(LINES)),
    ],
    # the bytes of a gzip file hold the time, and are no name of a test
    ids=["json", "lines", "wrapped", "jsonl", "json.gz", "jsonl.gz", "jsonl.zst", "jsonl.bz2"],
)
def test_files_by_their_content(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    source = open_samples(str(tmp_path / name))
    assert source.name == "rows"
    assert [row for _, _, row in iter_samples(source)] == ROWS
    assert list(source.read([2]))  # from any place


def test_bombs_and_damage_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("being_vl.data.sources._UNPACKED_BYTES", 10**6)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\n" * 10**7))
    with pytest.raises(ValueError, match=r"bomb.jsonl.gz: unpacks to more than \d+ bytes"):
        open_samples(str(bomb))
    for name, data in (
        ("a.jsonl.gz", b"not gzip"),
        ("b.json", b"[" * 100_000),
        ("c.json", b"\xff\xfe"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=name):
            open_samples(str(tmp_path / name))


# ---- data sets


def test_null_pictures_lists_of_pictures_and_names_of_columns():
    picture = Image.new("RGB", (2, 2))
    turns = [{"from": "gpt", "value": "a"}]
    kind = [{"from": datasets.Value("string"), "value": datasets.Value("string")}]
    one = datasets.Dataset.from_list(
        [{"picture": picture, "conversations": turns}, {"picture": None, "conversations": turns}],
        features=datasets.Features({"picture": datasets.Image(), "conversations": kind}),
    )
    source = DatasetSamples(one, "one")
    assert [row["images"] for row in source.read([0, 1])] == [["0"], []]
    many = datasets.Dataset.from_list(
        [{"images": [picture, picture], "key": "k", "conversations": turns},
         {"images": [], "key": "l", "conversations": turns}],
        features=datasets.Features({"images": datasets.List(datasets.Image()), "key": datasets.Value("string"),
                                    "conversations": kind}),
    )  # fmt: skip
    assert [row["images"] for row in DatasetSamples(many, "many").read([0, 1])] == [
        ["0/0", "0/1"],
        [],
    ]
    named = DatasetSamples(many, "many", image_column="images", id_column="key")
    assert [row["images"] for row in named.read([0])] == [["k/0", "k/1"]]
    with pytest.raises(ValueError, match="--image-column: no column 'pic'"):
        DatasetSamples(many, "many", image_column="pic")


def test_a_row_that_arrow_cannot_read_is_named(tmp_path):
    """Offsets that run backwards: SystemError of pyarrow, and only when the row is asked for."""
    offsets = np.array([0, 1, 5, 2], np.int32)
    names = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(offsets), pa.py_buffer(b"abcde")]
    )
    damaged = datasets.Dataset(pa.table({"query": ["a", "b", "c"], "response": names}))
    source = DatasetSamples(damaged, "damaged")
    assert next(source.read([0, 1]))["response"] == "a"
    with pytest.raises(ValueError, match="damaged: sample 2: cannot be read: "):
        list(source.read([0, 1, 2]))
    pictures = datasets.Dataset(pa.table({"image": [str(tmp_path)] * 3, "id": names}))
    pictures = pictures.cast_column("image", datasets.Image())
    source = DatasetSource(pictures, shard_size=4, id_column="id")
    with pytest.raises(ValueError, match="row 2: cannot be read: "):
        list(source.records(0))


def test_a_saved_data_set_with_damaged_offsets_is_named(tmp_path):
    """Offsets that lead out of the file: pyarrow would read memory that is not there, and the process ends."""
    datasets.Dataset.from_dict({"query": ["a" * 40, "b"], "response": ["c", "d"]}).save_to_disk(
        tmp_path / "saved"
    )
    (path,) = (tmp_path / "saved").glob("*.arrow")
    content = path.read_bytes()
    offsets = np.array([0, 40, 41], np.int32).tobytes()
    assert content.count(offsets) == 1
    path.write_bytes(content.replace(offsets, np.array([0, 2**31 - 2, 41], np.int32).tobytes()))
    with pytest.raises(ValueError, match=rf"{path}: not a readable Arrow file: "):
        open_samples(str(tmp_path / "saved"))


def test_a_folder_of_pictures_holds_no_conversations(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="holds images alone, and no conversations about them"):
        open_samples(str(tmp_path))


def test_a_data_set_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"c": "x"}\n')
    with pytest.raises(ValueError, match=str(tmp_path)):
        open_samples(str(tmp_path))


# ---- bad rows


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("bad")
    return make_checkpoint(root / "checkpoint"), make_codes(root / "codes"), root / "codes"


def run(world, tmp_path, rows, *flags):
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return being_vl_command(
        ["tokenize", "--checkpoint", str(world[0]), "--codes", str(world[2]), "--workers", "0",
         "--data", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out"), *flags]
    )  # fmt: skip


def bad_rows(grids):
    name = next(iter(grids))
    answer = {"from": "gpt", "value": "red"}
    return [
        {"id": "good", "image": name, "conversations": TURNS},
        {
            "id": "forgotten",
            "image": name,
            "conversations": [{"from": "human", "value": "What?"}, answer],
        },
        {"id": "none", "conversations": TURNS},
        {"id": "empty", "conversations": [{"from": "gpt", "value": ""}]},
        {"id": "unknown", "image": "gone.png", "conversations": TURNS},
        "no object",
    ]


def test_bad_rows_are_skipped_or_fixed_counted_and_named(world, tmp_path, capsys):
    rows = bad_rows(world[1])
    assert run(world, tmp_path, rows) == 2
    assert "--on-bad-row skip leaves such samples out" in capsys.readouterr().err
    assert (
        run(world, tmp_path, rows, "--on-bad-row", "skip", "--output", str(tmp_path / "skip")) == 0
    )
    skipped = [json.loads(line) for line in (tmp_path / "skip/skipped.jsonl").open()]
    assert [line["sample"].rpartition(" ")[2] for line in skipped] == ["2", "3", "4", "6", "5"]
    counts = json.loads((tmp_path / "skip/tokenized.json").read_text())["counts"]
    assert (counts["samples"], counts["skipped_samples"], counts["fixed_samples"]) == (1, 5, 0)
    assert run(world, tmp_path, rows, "--on-bad-row", "fix", "--output", str(tmp_path / "fix")) == 0
    counts = json.loads((tmp_path / "fix/tokenized.json").read_text())["counts"]
    assert (counts["samples"], counts["skipped_samples"], counts["fixed_samples"]) == (2, 4, 1)
    kept = [json.loads(line) for line in (tmp_path / "fix/skipped.jsonl").open()]
    assert [line["reason"] for line in kept if line["id"] == "forgotten"] == [
        "kept: 1 missing <image> put in front of the first question"
    ]
    from being_vl import BeingVLTokenizer

    loaded = load_tokenized(tmp_path / "fix", BeingVLTokenizer.from_pretrained(world[0]))
    assert loaded["input_ids"][0] == loaded["input_ids"][1]  # as if it had been there


@pytest.mark.parametrize("form", ["./{}", "{}", ".\\{}", "x/../{}"])
def test_spellings_of_a_path_are_one_name(world, tmp_path, form):
    names = list(world[1])[:2]
    rows = [{"image": form.format(name).replace("/", "\\") if "\\" in form else form.format(name),
             "conversations": TURNS} for name in names]  # fmt: skip
    assert run(world, tmp_path, rows) == 0


def test_a_root_is_taken_off_and_the_nearest_id_is_shown(world, tmp_path, capsys):
    name = next(iter(world[1]))
    rows = [{"image": f"coco/train2017/{name}", "conversations": TURNS}]
    assert run(world, tmp_path, rows) == 2
    assert f"the nearest known id is {name!r}" in capsys.readouterr().err
    rows = [{"image": name.replace(".png", ".jpg"), "conversations": TURNS}]
    assert run(world, tmp_path, rows, "--output", str(tmp_path / "b")) == 2
    assert f"the nearest known id is {name!r}" in capsys.readouterr().err
    rows = [{"image": f"./coco/train2017/{name}", "conversations": TURNS}]
    flags = ("--image-root", "coco/train2017/", "--output", str(tmp_path / "c"))
    assert run(world, tmp_path, rows, *flags) == 0
