"""merges ↔ image_bpe.json: the versioned file of a vocabulary, checked field by field.

Version 1. Differs from tokenizers' `tokenizer.json` in that every rule carries its offset; nothing is built from
a file before all of its fields are checked.

    {"format": "being_vl.bpe.image_bpe", "version": 1, "codebook_size": K, "merge_rule": "shape",
     "repeat_code": K - 1, "merges": [[first, second, row_offset, col_offset], …]}

`repeat_code` is there in vocabularies of marked video frames alone.
"""

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..files import place, read_json, shown, write_atomic
from .rules import MERGE_RULES, RULE_FIELDS

FILE_NAME = "image_bpe.json"
FORMAT = "being_vl.bpe.image_bpe"
VERSION = 1
# 131,072 rules of the longest spelling fit; bounds what parsing may allocate
MAX_FILE_BYTES = 1 << 22
_OPTIONAL = ("repeat_code",)
_FIELDS = ("format", "version", "codebook_size", "merge_rule", "merges")
_INT32_MAX = 2**31 - 1


def check_header(
    fields: Any,
    name: str,
    format_name: str,
    version: int,
    field_names: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> None:
    """Check that fields is an object of this format and version with these fields and no others, sizes integers."""
    if not isinstance(fields, dict):
        raise ValueError(f"{name}: must be an object, got {shown(fields)}")
    if fields.get("format") != format_name:
        raise ValueError(
            f"{name}: format is {shown(fields.get('format'))}, expected {format_name!r}"
        )
    got = fields.get("version")
    if type(got) is not int or got != version:
        raise ValueError(f"{name}: version is {shown(got)}, this library reads version {version}")
    for field in field_names:
        if field not in fields:
            raise ValueError(f"{name}: field {field!r} is missing")
    for field, value in fields.items():
        if field not in field_names + optional:
            raise ValueError(f"{name}: unknown field {shown(field)}")
        if field in ("codebook_size", "repeat_code") and type(value) is not int:
            raise ValueError(f"{name}: {field} must be an integer, got {shown(value)}")


def int_rows(rows: Any, columns: tuple[str, ...], field: str) -> np.ndarray:
    """A list of lists of plain integers within int32, as int64 (N, len(columns)).

    Raises:
        ValueError: naming the row and column; bool and float are not integers here.
    """
    if not isinstance(rows, list):
        raise ValueError(f"{field} must be a list, got {shown(rows)}")
    if all(type(row) is list and len(row) == len(columns) for row in rows):
        flat = list(itertools.chain.from_iterable(rows))
        if set(map(type, flat)) <= {int} and max(map(abs, flat), default=0) <= _INT32_MAX:
            return np.array(flat, dtype=np.int64).reshape(-1, len(columns))
    raise ValueError(_first_bad_value(rows, columns, field))


def _first_bad_value(rows: list[Any], columns: tuple[str, ...], field: str) -> str:
    for index, row in enumerate(rows):
        if type(row) is not list or len(row) != len(columns):
            got = f"{len(row)} values" if isinstance(row, list) else shown(row)
            return f"{field}[{index}] must be a list of {', '.join(columns)}; got {got}"
        for column, value in zip(columns, row, strict=True):
            if type(value) is not int:
                return f"{field}[{index}].{column} must be an integer, got {shown(value)}"
            if abs(value) > _INT32_MAX:
                return f"{field}[{index}].{column} is {shown(value)}, beyond 32 bits"
    raise AssertionError("no bad value in these rows")


def load_vocabulary(folder_or_file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read image_bpe.json; returns the keyword arguments of ImageBPE, types checked, rules not yet."""
    path = place(folder_or_file)
    if path.is_dir():
        path = path / FILE_NAME
    fields = read_json(path, MAX_FILE_BYTES)
    check_header(fields, str(path), FORMAT, VERSION, _FIELDS, _OPTIONAL)
    if fields["merge_rule"] not in MERGE_RULES:
        raise ValueError(
            f"{path}: merge_rule is {shown(fields['merge_rule'])}, expected one of {MERGE_RULES}"
        )
    try:
        merges = int_rows(fields["merges"], RULE_FIELDS, "merges")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    own = ("codebook_size", "merge_rule", "repeat_code")
    return {"merges": merges} | {name: fields[name] for name in own if name in fields}


def save_vocabulary(
    path: Path, merges: np.ndarray, codebook_size: int, merge_rule: str, repeat_code: int | None
) -> None:
    """Write image_bpe.json: one rule a line, the same bytes for the same vocabulary."""
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in merges.tolist())
    head: dict[str, Any] = {"format": FORMAT, "version": VERSION}
    head |= {"codebook_size": codebook_size, "merge_rule": merge_rule}
    if repeat_code is not None:
        head["repeat_code"] = repeat_code
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = f'"merges": [\n{rows}\n]' if rows else '"merges": []'
    write_atomic(path, "{\n" + "\n".join([*lines, body]) + "\n}\n")
