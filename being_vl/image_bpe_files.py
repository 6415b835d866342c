"""merges ↔ image_bpe.json: the versioned file of a vocabulary, read with suspicion.

Source: the project's own format, version 1. Differs from tokenizers' `tokenizer.json` in that every
rule carries its offset, and that the file is checked field by field before anything is built from it.

    {"format": "being_vl.image_bpe", "version": 1, "codebook_size": K, "merge_rule": "shape",
     "merges": [[first, second, row_offset, col_offset], …]}
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

FILE_NAME = "image_bpe.json"
FORMAT = "being_vl.image_bpe"
VERSION = 1
MAX_FILE_BYTES = (
    1 << 22
)  # 131,072 rules of the longest spelling fit; bounds what parsing may allocate
MERGE_RULES = ("shape", "pair")
_FIELDS = ("format", "version", "codebook_size", "merge_rule", "merges")
_COLUMNS = ("first", "second", "row_offset", "col_offset")
_INT32_MAX = 2**31 - 1


def read_json(path: Path, max_bytes: int = MAX_FILE_BYTES) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, no NaN, bounded size and depth.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise ValueError(f"{path.name}: larger than {max_bytes} bytes")
    try:
        return json.loads(
            raw.decode("utf-8"), object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise ValueError(f"{path.name}: nested too deeply") from None
    except (
        ValueError
    ) as error:  # also UnicodeDecodeError, JSONDecodeError, integers of thousands of digits
        raise ValueError(f"{path.name}: not valid JSON: {error}") from None


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"field {shown(twice)} appears twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def shown(value: Any) -> str:
    """A value for an error message, never long."""
    text = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def check_header(
    fields: Any, name: str, format_name: str, version: int, field_names: tuple[str, ...]
) -> None:
    """Check that fields is an object of this format and version with exactly these fields."""
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
    for field in fields:
        if field not in field_names:
            raise ValueError(f"{name}: unknown field {shown(field)}")


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
    path = Path(folder_or_file)
    if path.is_dir():
        path = path / FILE_NAME
    fields = read_json(path)
    check_header(fields, path.name, FORMAT, VERSION, _FIELDS)
    if type(fields["codebook_size"]) is not int:
        raise ValueError(
            f"{path.name}: codebook_size must be an integer, got {shown(fields['codebook_size'])}"
        )
    if fields["merge_rule"] not in MERGE_RULES:
        raise ValueError(
            f"{path.name}: merge_rule is {shown(fields['merge_rule'])}, expected one of {MERGE_RULES}"
        )
    try:
        merges = int_rows(fields["merges"], _COLUMNS, "merges")
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None
    return {
        "merges": merges,
        "codebook_size": fields["codebook_size"],
        "merge_rule": fields["merge_rule"],
    }


def save_vocabulary(path: Path, merges: np.ndarray, codebook_size: int, merge_rule: str) -> None:
    """Write image_bpe.json: one rule a line, the same bytes for the same vocabulary."""
    rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in merges.tolist())
    head = {
        "format": FORMAT,
        "version": VERSION,
        "codebook_size": codebook_size,
        "merge_rule": merge_rule,
    }
    lines = [f"{json.dumps(key)}: {json.dumps(value)}," for key, value in head.items()]
    body = f'"merges": [\n{rows}\n]' if rows else '"merges": []'
    write_atomically(path, "{\n" + "\n".join([*lines, body]) + "\n}\n")


def write_atomically(path: Path, text: str) -> None:
    """Write to a temporary name in the same folder, then replace: readers see all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        with open(temporary, "x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
