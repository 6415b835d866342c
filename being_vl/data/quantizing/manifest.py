"""The files beside the shards: what a folder is made from (`encode.json`), what is in it (`manifest.json`).

`encode.json` is written first and guards against mixing; `manifest.json` and `skipped.jsonl` are written
last, from the metadata of the shards, and say that the folder is whole.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from ...codes import tars
from ...codes.shard_files import count_rows
from ...codes.shards import (
    MANIFEST,
    RUN_FILE,
    VERSION,
    CodeShards,
    ShardInfo,
    read_columns,
    read_info,
)
from ...files import claim as claim_folder
from ...files import file_entry, write_atomic
from ..codes import distinct_keys
from .sources import LEFT_OUT, Source

Format = Literal["parquet", "webdataset"]
_SUFFIXES = {"parquet": ".parquet", "webdataset": tars.SUFFIX}


class MissingShardError(ValueError):
    """A shard that is still to be made."""


def shard_path(output: Path, part: int, chunk: int, format: Format) -> Path:
    """Where the `chunk`-th shard of a part of the source lies."""
    return output / f"codes-{part:05d}-{chunk:05d}{_SUFFIXES[format]}"


def read_our_info(path: Path) -> ShardInfo:
    """The metadata of a shard of ours."""
    info = read_info(path)
    if info is None:
        raise ValueError(f"{path}: not a shard that being-vl encode wrote")
    return info


def claim(
    output: Path,
    source: Source,
    *,
    quantizer: str,
    codebook_size: int,
    shard_size: int,
    format: Format,
) -> None:
    """Write down what this folder is made from; refuse a folder that was made from something else.

    Raises:
        ValueError: the folder holds, or is to hold, shards of another source, quantizer, format or shard size.
    """
    sizes = {"quantizer": quantizer, "codebook_size": codebook_size, "shard_size": shard_size}
    wanted = {"version": VERSION, **sizes, "format": format, "source": source.identity()}
    rule = "shards of both must not be mixed; choose another output folder"
    claim_folder(output / RUN_FILE, wanted, rule, made=f"codes-*{_SUFFIXES[format]}")


def write_manifest(output: Path, source: Source, format: Format = "parquet") -> dict[str, Any]:
    """Check that every shard is there, and write `manifest.json` and `skipped.jsonl`.

    Returns:
        The manifest: totals, how many files were left out for which reason, and for each shard its file,
        bytes, sha256, images and skipped images; of videos, how many there are, and their frames as images.

    Raises:
        MissingShardError: a shard is missing.
        ValueError: a shard is not ours, or two images of one id have other codes.
    """
    shards: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    has_frames = source.sampling is not None
    found = _all_shards(output, source, format)
    codes = CodeShards([path for path, _ in found]) if found else None
    if codes is not None and not has_frames:  # who reads the shards finds images by their ids
        distinct_keys(codes, str(output))
    for path, info in found:
        counts = {"images": count_rows(path), "skipped": len(info.skipped)}
        if has_frames:
            frames = read_columns(path, ["frame"])["frame"].to_numpy()
            counts["videos"] = int((frames == 0).sum())
        shards.append(file_entry(path) | counts)
        skipped += [
            {"image_id": image_id, "reason": reason, "shard": path.name}
            for _, image_id, reason in info.skipped
        ]
    skipped += [
        {"image_id": name, "reason": f"{LEFT_OUT}{reason}", "shard": None}
        for name, reason in source.left_out
    ]
    left_out = [line["reason"].removeprefix(LEFT_OUT) for line in skipped if line["reason"].startswith(LEFT_OUT)]  # fmt: skip
    manifest = {
        "version": VERSION,
        "images": sum(shard["images"] for shard in shards),
        "skipped": len(skipped) - len(left_out),
        **({} if source.sampling is None else {"videos": sum(s["videos"] for s in shards)}),
        "left_out": dict(Counter(left_out)),
        "cells": 0 if codes is None else codes.num_cells,
        "shards": shards,
    }
    lines = "".join(json.dumps(line) + "\n" for line in skipped)
    write_atomic(output / "skipped.jsonl", lines.encode())
    write_atomic(output / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _all_shards(output: Path, source: Source, format: Format) -> list[tuple[Path, ShardInfo]]:
    found = []
    for part in range(source.num_parts):
        chunk = 0
        while True:
            path = shard_path(output, part, chunk, format)
            if not path.exists():
                if chunk == 0 and next(source.records(part), None) is None:
                    break  # an empty part has no shard
                raise MissingShardError(
                    f"{path}: this shard is missing; run the command again to make it"
                )
            info = read_our_info(path)
            found.append((path, info))
            if info.last:
                break
            chunk += 1
    return found
