"""tokenized samples ↔ a folder: shards of ids, and the files beside them.

    data-00000-of-00012.arrow …   the shards, Arrow streams that `datasets` maps from disk
    tokenize.json                 what the folder is made from: guards against mixing
    tokenized.json                whose ids these are, what is in it, size and digest of each shard
    skipped.jsonl                 samples and images left out, with reasons

Each shard is written aside, fsynced and renamed by itself; `tokenized.json` comes last, so a folder that
has it is whole. Without this library: `datasets.load_dataset("arrow", data_files="FOLDER/*.arrow")`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Features, List, Value
from filelock import FileLock
from tqdm.auto import tqdm

from ..files import (
    check_entries,
    check_file,
    check_regular,
    file_entry,
    is_remote,
    new_file,
    parse_json,
    place,
    read_json,
    reading,
    shown,
    write_atomic,
)
from ..files import claim as claim_folder
from ..processing.processing_being_vl import BeingVLProcessor
from ..processing.tokenization_being_vl import BeingVLTokenizer
from .identity import compare, processor_identity, tokenizer_identity
from .mixtures import load_mixture
from .quantizing.dataset_sources import check_arrow

VERSION = 3
RUN_FILE = "tokenize.json"
MANIFEST = "tokenized.json"
SKIPPED = "skipped.jsonl"
FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "image_ids": List(Value("string")),
        "video_ids": List(Value("string")),
        "input_ids": List(Value("int32")),
        "assistant_masks": List(Value("int8")),
        "length": Value("int32"),
    }
)
COUNTS = (
    "samples",
    "skipped_samples",
    "fixed_samples",
    "tokens",
    "assistant_tokens",
    "images",
    "videos",
    "image_tokens",
    "cells",
)
_SHARD_KEY = b"being_vl.tokenized"


def load_tokenized(
    folder: str | os.PathLike,
    checkpoint: BeingVLTokenizer | BeingVLProcessor,
    *,
    accept_mismatch: Collection[str] = (),
    verify: bool = False,
) -> datasets.Dataset:
    """Open a folder of `being-vl tokenize`, memory-mapped.

    Args:
        folder: see there; of a URL (`s3://…`), the shards are copied into the cache of `datasets`.
        checkpoint: the tokenizer of the model to train, whose ids the folder must hold; or its processor,
            whose chat template and quantizer must then be those of the folder, too.
        accept_mismatch: `"chat_template"`, `"quantizer"`: differences that are a warning.
        verify: compare the digest of every shard, which reads all of them.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the folder is not finished or damaged, its ids are another tokenizer's, or it has no
            sample.
    """
    return _open(place(folder), identity_of(checkpoint), accept_mismatch, verify)[0]


def load_training_data(
    spec: str | os.PathLike | Mapping[str, Any],
    checkpoint: BeingVLTokenizer | BeingVLProcessor,
    *,
    stage: str | None = None,
    seed: int = 0,
    accept_mismatch: Collection[str] = (),
    verify: bool = False,
) -> datasets.Dataset:
    """The samples to train on: a tokenized folder, or a mixture of several.

    Args:
        spec: a folder of `being-vl tokenize`, a YAML file that describes a mixture, or what such a file
            says, as a mapping.
        checkpoint, accept_mismatch, verify: see [`load_tokenized`]; for every folder.
        stage: which of the mixture's stages; needed where it has several.
        seed: decides which samples of a source are taken, and the order of a mixture.

    Returns:
        a map-style data set with the columns `id`, `source`, `image_ids`, `video_ids`, `input_ids`, `assistant_masks`,
        `length`. A folder keeps its order; a mixture is shuffled. Equal arguments give equal samples.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder as in [`load_tokenized`]; a mixture with an unknown or missing field, a value
            out of range, or codes of two quantizers; the message names file, field, rule and value.
    """
    identity = identity_of(checkpoint)

    def open_folder(folder: Path) -> tuple[datasets.Dataset, str]:
        loaded, manifest = _open(folder, identity, accept_mismatch, verify)
        return loaded, manifest["parts"].get("quantizer") or ""

    if not isinstance(spec, Mapping) and Path(spec).suffix not in (".yaml", ".yml"):
        return open_folder(place(spec))[0]
    return load_mixture(spec, open_folder, stage=stage, seed=seed)


def identity_of(checkpoint: BeingVLTokenizer | BeingVLProcessor) -> dict[str, Any]:
    """What the ids of a folder must be of, for a tokenizer; and of a processor, the codes and the template, too."""
    if isinstance(checkpoint, BeingVLProcessor):
        return processor_identity(checkpoint)
    return {"tokenizer": tokenizer_identity(checkpoint)}


def _open(
    folder: Path, identity: dict[str, Any], accept: Collection[str], verify: bool
) -> tuple[datasets.Dataset, dict[str, Any]]:
    manifest = read_manifest(folder)
    rule = "tokenize the data with this checkpoint"
    compare(str(folder), manifest["parts"], identity, rule=rule, accept=accept)
    if is_remote(folder):
        folder = _fetched(folder, manifest)
    loaded = datasets.concatenate_datasets(
        [_open_shard(folder, shard, verify) for shard in manifest["shards"]]
    )
    if not len(loaded):
        raise ValueError(f"{folder}: has no sample")
    return loaded, manifest


def _open_shard(folder: Path, shard: Mapping[str, Any], verify: bool) -> datasets.Dataset:
    path = folder / shard["file"]
    check_file(path, shard, MANIFEST, verify=verify)
    check_arrow(path)
    with reading(path, "not a readable shard"):
        loaded = datasets.Dataset.from_file(str(path))
    if loaded.features != FEATURES:
        raise ValueError(f"{path}: columns must be {FEATURES}, got {loaded.features}")
    if len(loaded) != shard["samples"]:
        raise ValueError(
            f"{path}: has {len(loaded)} samples, but {MANIFEST} counts {shard['samples']}"
        )
    return loaded


def _fetched(folder: Any, manifest: dict[str, Any]) -> Path:
    """A copy on this machine of a folder in a store, below the cache of `datasets`; digests are compared on the way.

    One process of a machine fetches, the others wait for it. What has come whole is kept, and another copy is made
    where the manifest has changed.
    """
    said = json.dumps([str(folder), manifest], sort_keys=True).encode()
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "being_vl"
    copy = cache / hashlib.sha256(said).hexdigest()[:32]
    copy.mkdir(parents=True, exist_ok=True)
    with FileLock(copy / ".lock"):
        for shard in tqdm(manifest["shards"], desc=f"fetching {folder}", unit="shard", delay=3):
            path = copy / shard["file"]
            if path.exists():
                continue
            with new_file(path) as aside:
                source = folder / shard["file"]
                if not source.exists():
                    raise ValueError(f"{source}: is listed in {MANIFEST} but missing")
                source.fs.get_file(source.path, str(aside))
                try:
                    check_file(aside, shard, MANIFEST, verify=True)
                except ValueError as error:
                    raise ValueError(str(error).replace(str(aside), str(source))) from None
    return copy


def shard_path(folder: Path, number: int, num_shards: int) -> Path:
    """Where a shard lies."""
    return folder / f"data-{number:05d}-of-{num_shards:05d}.arrow"


def shard_bytes(columns: dict[str, Sequence[Any]], report: dict[str, Any]) -> bytes:
    """A shard as an Arrow stream; equal input gives equal bytes."""
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


def arrow_file(path: Any) -> Any:
    """A shard as pyarrow reads it: mapped, or of a store as a stream."""
    return path.open("rb") if is_remote(path) else pa.memory_map(str(path))


def read_report(path: Path) -> dict[str, Any]:
    """What a shard's metadata says of it."""
    check_regular(path)
    try:
        with arrow_file(path) as source:
            metadata = pa.ipc.open_stream(source).schema.metadata or {}
        report = parse_json(metadata[_SHARD_KEY], str(path))
        wrong = [name for name in COUNTS if type(report[name]) is not int]
        if wrong or not isinstance(report["skipped"], list):
            raise ValueError(f"{(wrong or ['skipped'])[0]} has another type")
        return report
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: not a shard of being-vl tokenize ({error}); remove it, or choose another folder"
        ) from None


def claim(folder: Path, wanted: dict[str, Any]) -> None:
    """Write down what this folder is made from; refuse a folder that was made from something else.

    Raises:
        ValueError: the folder holds, or is to hold, samples of other data, settings or tokenizer.
    """
    claim_folder(
        folder / RUN_FILE,
        {"version": VERSION, **wanted},
        "samples of both must not be mixed; choose another output folder",
        made="*.arrow",
    )


def finish(folder: Path, num_shards: int, manifest: dict[str, Any]) -> dict[str, Any]:
    """Check that every shard is there, and write the files that say so; returns the manifest."""
    counts = dict.fromkeys(COUNTS, 0)
    skipped, shards = [], []
    for number in range(num_shards):
        path = shard_path(folder, number, num_shards)
        if not path.exists():
            raise ValueError(f"{path}: this shard is missing; run the command again to make it")
        report = read_report(path)
        for name in COUNTS:
            counts[name] += report[name]
        skipped += report["skipped"]
        shards.append({**file_entry(path), "samples": report["samples"]})
    manifest = {"version": VERSION, **manifest, "counts": counts, "shards": shards}
    lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in skipped)
    write_atomic(folder / SKIPPED, lines)
    write_atomic(folder / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


def check_finished(folder: Path) -> bool:
    """Whether a folder was finished; its shards are checked, but one that is gone will be made again."""
    if not (folder / MANIFEST).exists():
        return False
    for shard in read_manifest(folder)["shards"]:
        if not (path := folder / shard["file"]).exists():
            continue
        if is_remote(folder):  # whose shards cannot be mapped
            check_file(path, shard, MANIFEST, verify=False)
        else:
            _open_shard(folder, shard, verify=False)
    return True


def read_manifest(folder: Path) -> dict[str, Any]:
    """The `tokenized.json` of a finished folder."""
    path = folder / MANIFEST
    if not path.exists():
        if (folder / RUN_FILE).exists():
            raise ValueError(
                f"{folder}: being-vl tokenize has not finished here; run it again (it continues)"
            )
        raise FileNotFoundError(f"{folder}: no tokenized data set ({MANIFEST} is missing)")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION:
        version = manifest.get("version") if isinstance(manifest, dict) else manifest
        raise ValueError(f"{path}: version must be {VERSION}, got {shown(version)}")
    for name in ("counts", "parts", "parts.tokenizer"):
        value: Any = manifest
        for key in name.split("."):
            value = value.get(key)
        if not isinstance(value, dict):
            raise ValueError(f"{path}: {name} must be a dict, got {shown(value)}")
    check_entries(path, manifest.get("shards"), samples=int)
    return manifest


def _list_array(values: Sequence[np.ndarray], kind: pa.DataType) -> pa.Array:
    dtype = kind.value_type.to_pandas_dtype()
    flat = np.concatenate(values).astype(dtype) if len(values) else np.empty(0, dtype)
    offsets = np.cumsum([0, *map(len, values)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat), type=kind)
