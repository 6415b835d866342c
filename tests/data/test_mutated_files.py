"""Whatever a file of samples, a manifest, a mixture or a record of a run holds: a result or one error, never a
traceback of another kind."""

from __future__ import annotations

import copy
import json
import random

import pytest
import yaml
from checkpoint_fixtures import tiny_checkpoint
from data_fixtures import make_codes, make_rows, write_rows

from being_vl.data import (
    TokenizeSettings,
    iter_samples,
    load_tokenized,
    load_training_data,
    open_samples,
    select_samples,
    tokenize_samples,
)
from being_vl.data.codes import build_index
from being_vl.data.conversations import parse_sample
from being_vl.data.tokenize_chunk import ChunkTokenizer
from being_vl.training.run import _finished_metrics

ATOMS = [
    None, True, False, 0, -1, 1.5, float("nan"), 10**30, 2**63, "", "x", "<image>", "<|eot_id|>", "\ud83d",
    "\0", [], {}, [[]], [None], {"a": 1}, {"path": "p"}, {"bytes": "b"}, "data:image/png;base64,xx", "assistant",
    "<video>", "../x",
]  # fmt: skip
FIELDS = [
    "image",
    "images",
    "messages",
    "video",
    "weight",
    "role",
    "from",
    "value",
    "tool_calls",
    "query",
    "history",
]
pytestmark = pytest.mark.filterwarnings("ignore")


def mutated(value, rng: random.Random):
    """The value with one to three places changed, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        places = []

        def walk(part, places=places):
            for key in list(part) if isinstance(part, dict) else range(len(part)):
                places.append((part, key))
                if isinstance(part[key], (dict, list)):
                    walk(part[key])

        if not isinstance(value, (dict, list)) or not value:
            return value
        walk(value)
        holder, key = rng.choice(places)
        atom, way = copy.deepcopy(rng.choice(ATOMS)), rng.random()
        if way < 0.6:
            holder[key] = atom
        elif isinstance(holder, list):
            holder.insert(key, atom)
        elif way < 0.8:
            holder.pop(key)
        else:
            holder[rng.choice(FIELDS)] = atom
    return value


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("mutated")
    processor = tiny_checkpoint()[1]
    grids = make_codes(root / "codes")
    rows = make_rows(list(grids), 6)
    parts = [{"type": "image", "image": next(iter(grids))}, {"type": "text", "text": "q"}]
    answer = {"role": "assistant", "content": "x", "weight": 1}
    rows.append({"messages": [{"role": "user", "content": parts}, answer]})
    rows.append(
        {
            "query": "<image>q",
            "response": "r",
            "history": [["a", "b"]],
            "images": [next(iter(grids))],
        }
    )
    source = open_samples(str(write_rows(root / "rows.json", rows[:6])))
    tokenize_samples(
        source, processor, root / "out", TokenizeSettings(source="x"), checkpoint="",
        codes=[str(root / "codes")],
    )  # fmt: skip
    return root, processor, rows


def refuse_or_return(step) -> bool:
    try:
        step()
    except (ValueError, OSError):
        return False
    return True


def test_rows(world):
    root, processor, rows = world
    rng = random.Random(0)
    index, _ = build_index([str(root / "codes")], root / "index.npy")
    settings = TokenizeSettings(source="x", on_bad_row="fix", on_missing="text")
    chunks = ChunkTokenizer(processor, index, settings)
    kept = 0
    for _ in range(10):
        part = [mutated(rng.choice(rows), rng) for _ in range(20)]
        chunks([(i, raw, f"row {i}") for i, raw in enumerate(part)])
        assert chunks.report.counts["samples"] + chunks.report.counts["skipped_samples"] == 20
        kept += chunks.report.counts["samples"]
    assert 10 < kept < 190
    for _ in range(500):
        row = mutated(rng.choice(rows), rng)
        refuse_or_return(lambda row=row: parse_sample(row, where="row", number=0, fix=True))


def test_files_of_rows(world, tmp_path):
    rng = random.Random(1)
    path = tmp_path / "rows.json"
    for number in range(100):
        content = mutated({"data": world[2]} if number % 2 else world[2], rng)
        path.write_text(json.dumps(content))

        def read():
            source = open_samples(str(path))
            rows = [row for _, _, row in iter_samples(source)]
            select_samples(lambda: iter(rows), label_field="id", max_per_label=2)

        refuse_or_return(read)


def test_manifests_mixtures_and_records_of_runs(world, tmp_path):
    root, processor, _ = world
    rng = random.Random(2)
    path = root / "out" / "tokenized.json"
    manifest = path.read_text()
    for _ in range(150):
        path.write_text(json.dumps(mutated(json.loads(manifest), rng)))
        refuse_or_return(lambda: load_tokenized(root / "out", processor.tokenizer))
    path.write_text(manifest)
    shares = {"shares": {"a": 1.0}, "samples": 3}
    spec = {
        "sources": {"a": str(root / "out")},
        "stages": {"s": shares, "t": {"weights": {"a": 2}}},
    }
    for number in range(150):
        (tmp_path / "mix.yaml").write_text(yaml.safe_dump(mutated(spec, rng)), errors="replace")
        refuse_or_return(
            lambda number=number: load_training_data(
                tmp_path / "mix.yaml", processor.tokenizer, stage="st"[number % 2]
            )
        )
    identity = {"model": {"a": "b"}, "data": {"samples": 3}}
    record = {"version": 1, "run": identity, "metrics": {}, "files": {"x": {"size": 1, "crc32": 2}}}
    (tmp_path / "x").write_text("x")
    for _ in range(150):
        (tmp_path / "finished.json").write_text(json.dumps(mutated(record, rng)))
        refuse_or_return(lambda: _finished_metrics(tmp_path, identity))
