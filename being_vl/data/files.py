"""tokenized rows ↔ a folder that `datasets.load_from_disk` opens: its shards, and the files beside them.

Source: the layout of `datasets` (Arrow streams, `dataset_info.json`, `state.json`). It differs in that each
shard is written aside, fsynced and renamed by itself, that its metadata says what was left out of it, and
that `state.json` comes last: a folder that opens is whole.

    data-00000-of-00012.arrow …   the shards
    tokenize.json                 what the folder is made from: guards against mixing
    tokenized.json                whose ids these are, and what is in it
    skipped.jsonl                 rows and images left out, with reasons
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from datasets.config import DATASET_INFO_FILENAME, DATASET_STATE_JSON_FILENAME

from ..files import claim as claim_folder
from ..files import write_atomic
from ..processing.tokenization_being_vl import BeingVLTokenizer

VERSION = 1
RUN_FILE = "tokenize.json"
MANIFEST = "tokenized.json"
SKIPPED = "skipped.jsonl"
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "image_ids": List(Value("string")),
        "input_ids": List(Value("int32")),
        "assistant_masks": List(Value("int8")),
        "length": Value("int32"),
    }
)
COUNTS = ("rows", "skipped_rows", "tokens", "assistant_tokens", "images", "image_tokens", "cells")
_SHARD_KEY = b"being_vl.tokenized"


def tokenizer_identity(tokenizer: BeingVLTokenizer) -> dict[str, Any]:
    """What makes two tokenizers give the same ids: size, layout, and a digest of both vocabularies.

    Padding and truncation, which a tokenizer's file remembers from its last call, do not count.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend.update(padding=None, truncation=None)
    bpe, layout = tokenizer.image_bpe, tokenizer.layout
    digest = hashlib.sha256(json.dumps(backend, sort_keys=True).encode())
    digest.update(f"{bpe.codebook_size} {bpe.merge_rule}".encode())
    digest.update(np.ascontiguousarray(bpe.merges, dtype="<i4").tobytes())
    return {
        "size": len(tokenizer),
        "layout": {
            "text_size": layout.text_size,
            "num_special_tokens": layout.num_special_tokens,
            "codebook_size": layout.codebook_size,
            "num_merges": layout.num_merges,
        },
        "sha256": digest.hexdigest(),
    }


def shard_path(folder: Path, number: int, num_shards: int) -> Path:
    """Where a shard lies."""
    return folder / f"data-{number:05d}-of-{num_shards:05d}.arrow"


def shard_bytes(columns: dict[str, Sequence[Any]], report: dict[str, Any]) -> bytes:
    """A shard as an Arrow stream; equal input gives equal bytes.

    Args:
        columns: those of `FEATURES`; ids as a list of arrays.
        report: the counts of `COUNTS`, and under `skipped` what was left out.
    """
    schema = FEATURES.arrow_schema
    metadata = {**(schema.metadata or {}), _SHARD_KEY: json.dumps(report).encode()}
    arrays = []
    for field in schema:
        values = columns[field.name]
        if pa.types.is_list(field.type) and pa.types.is_integer(field.type.value_type):
            arrays.append(_list_array(values, field.type))
        else:
            arrays.append(pa.array(values, field.type))
    table = pa.table(arrays, schema=schema.with_metadata(metadata))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1000)
    return sink.getvalue().to_pybytes()


def read_report(path: Path) -> dict[str, Any]:
    """What a shard's metadata says of it.

    Raises:
        ValueError: the file is no shard of ours, or is damaged.
    """
    try:
        with pa.memory_map(str(path)) as source:
            metadata = pa.ipc.open_stream(source).schema.metadata or {}
        return json.loads(metadata[_SHARD_KEY])
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise ValueError(
            f"{path}: not a shard of being-vl tokenize ({error}); remove it, or choose another folder"
        ) from None


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write down what this folder is made from; refuse a folder that was made from something else.

    Raises:
        ValueError: the folder holds, or is to hold, rows of other data, settings or tokenizer.
    """
    claim_folder(
        folder / RUN_FILE,
        {"version": VERSION, **wanted},
        "rows of both must not be mixed; choose another output folder",
        made="*.arrow",
    )


def finish(folder: Path, num_shards: int, manifest: dict[str, Any]) -> dict[str, Any]:
    """Check that every shard is there, and write the files that say so; returns the manifest.

    Raises:
        ValueError: a shard is missing or not ours.
    """
    counts = dict.fromkeys(COUNTS, 0)
    skipped, files = [], []
    for number in range(num_shards):
        path = shard_path(folder, number, num_shards)
        if not path.exists():
            raise ValueError(f"{path}: this shard is missing; run the command again to make it")
        report = read_report(path)
        for name in COUNTS:
            counts[name] += report[name]
        skipped += report["skipped"]
        files.append(path.name)
    manifest = {"version": VERSION, **manifest, "counts": counts}
    fingerprint = hashlib.sha256((folder / RUN_FILE).read_bytes()).hexdigest()[:16]
    state = {
        "_data_files": [{"filename": name} for name in files],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped)
    write_atomic(folder / SKIPPED, lines.encode())
    write_atomic(folder / MANIFEST, _json(manifest))
    write_atomic(folder / DATASET_INFO_FILENAME, _json({"features": FEATURES.to_dict()}))
    write_atomic(folder / DATASET_STATE_JSON_FILENAME, _json(state))
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `tokenized.json` of a finished folder.

    Raises:
        FileNotFoundError: no such folder, or no tokenized data set in it.
        ValueError: the folder is not finished, or of another version.
    """
    if not (folder / RUN_FILE).exists() and not (folder / MANIFEST).exists():
        raise FileNotFoundError(f"{folder}: no tokenized data set ({MANIFEST} is missing)")
    if not (folder / MANIFEST).exists() or not (folder / DATASET_STATE_JSON_FILENAME).exists():
        raise ValueError(
            f"{folder}: being-vl tokenize has not finished here; run it again (it continues)"
        )
    manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"{folder / MANIFEST}: version must be {VERSION}, got {manifest.get('version')!r}"
        )
    return manifest


def _list_array(values: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    dtype = kind.value_type.to_pandas_dtype()
    flat = np.concatenate(values).astype(dtype) if len(values) else np.empty(0, dtype)
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()
