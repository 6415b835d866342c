"""JSON and YAML that somebody else may have written → plain values.

Sizes, depth and numbers of values are bounded before anything is built, keys appear once, numbers are finite and text
is Unicode. `record` and `is_of` then compare what was read with the types that are expected.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from .errors import shown
from .places import MAX_TEXT_BYTES, place, read_bytes

MAX_JSON_BYTES = 1 << 26  # tokenizer.json of 300,000 ids fits
MAX_JSON_VALUES = 1 << 20  # bounds what parsing may allocate, to some 150 MB
_MAX_YAML_DEPTH = 64
_MAX_YAML_VALUES = 100_000
_MAX_YAML_DIGITS = 1000  # Python shows no integer of thousands
_HUGE = re.compile(rb"[0-9]{200}|[0-9][eE]\+?[0-9]{3}")  # whatever may be beyond floats
# an escape of half a character, or of a half of a pair
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_T = TypeVar("_T")


def read_json(
    path: str | os.PathLike,
    max_bytes: int = MAX_JSON_BYTES,
    *,
    max_values: int = MAX_JSON_VALUES,
    optional: bool = False,
) -> Any:
    """Strict JSON: UTF-8, no duplicate keys, only finite numbers, bounded size, depth and number of values.

    Args:
        path: the file.
        max_bytes, max_values: a larger file, and one that may hold more values, is refused before it is
            parsed.
        optional: return None where there is no file.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    if optional and not place(path).exists():
        return None
    return parse_json(read_bytes(place(path), max_bytes), str(path), max_values)


def parse_json(raw: bytes, name: str, max_values: int = MAX_JSON_VALUES) -> Any:
    """JSON as `read_json` reads it.

    Raises:
        ValueError: naming what `name` names, and what is wrong.
    """
    # A bound of the number of values: each has a mark before or after it. 64 MB of "[]," would take 1.5 GB.
    if sum(map(raw.count, (b",", b":", b"[", b"{"))) > max_values:
        raise ValueError(f"{name}: more than {max_values} values")
    try:
        value = load_json(
            raw.decode("utf-8"),
            object_pairs_hook=_distinct_keys,
            parse_constant=_refuse_constant,
            parse_float=_finite if _HUGE.search(raw) else None,
        )
        if _SURROGATE.search(raw):  # text with half a pair can be written into no file
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise ValueError(f"{name}: nested too deeply") from None
    except ValueError as error:  # of Unicode, of JSON, integers of thousands of digits
        raise ValueError(f"{name}: not valid JSON: {error}") from None
    return value


def load_json(text: str | bytes, **options: Any) -> Any:
    """`json.loads` without collections of garbage, which a million new lists would set off again and again.

    With torch and transformers in memory, each walks over a million objects; a file of 3 MB took seconds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return json.loads(text, **options)
    finally:
        if was_enabled:
            gc.enable()


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {shown(twice)} appears twice")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{shown(text)} is too large for a number")
    return number


def read_yaml(path: str | os.PathLike, *, optional: bool = False) -> Any:
    """YAML of plain values: bounded size, depth and number of values, those of aliases counted each time.

    Args:
        path: the file.
        optional: return None where there is no file.

    Raises:
        ValueError: naming the file and what is wrong.
        OSError: the file cannot be read.
    """
    import yaml

    path = Path(path)
    if optional and not path.exists():
        return None
    raw = read_bytes(path, MAX_TEXT_BYTES)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        text = raw.decode("utf-8")
        if _SURROGATE.search(raw):
            raise ValueError("text with half of a surrogate pair")
        _check_yaml_size(yaml.parse(text, loader))
        check_yaml(yaml.compose(text, loader))
        return yaml.load(text, loader)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML: {error}") from None


def _check_yaml_size(events: Iterable[Any]) -> None:
    """Count values before any is built: a few lines of aliases of aliases stand for billions."""
    sizes: dict[str, int] = {}  # of what an anchor names
    open_anchors: list[str | None] = []
    starts: list[int] = []
    count = 0
    for event in events:
        kind = type(event).__name__
        if kind == "AliasEvent":
            if event.anchor not in sizes:
                raise ValueError(f"alias {shown(event.anchor)} of something that is not there yet")
            count += sizes[event.anchor]
        elif kind == "ScalarEvent":
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        elif kind in ("MappingStartEvent", "SequenceStartEvent"):
            open_anchors.append(event.anchor)
            starts.append(count)
            count += 1
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, start = open_anchors.pop(), starts.pop()
            if anchor is not None:
                sizes[anchor] = count - start
        if len(starts) > _MAX_YAML_DEPTH or count > _MAX_YAML_VALUES:
            raise ValueError(
                f"more than {_MAX_YAML_DEPTH} levels or {_MAX_YAML_VALUES} values, those of aliases counted"
            )


def check_yaml(root: Any) -> None:
    """Raises ValueError for a key that stands twice in a mapping, of which yaml keeps the last, or a huge integer.

    Args:
        root: the node that `yaml.compose` returns; None for an empty file.
    """
    waiting, known = [root], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in known:
            continue
        if isinstance(node.value, str):
            if node.tag == "tag:yaml.org,2002:int" and len(node.value) > _MAX_YAML_DIGITS:
                raise ValueError(f"an integer of {len(node.value)} characters, {shown(node.value)}")
            continue
        known.add(id(node))
        if node.id == "sequence":
            waiting += node.value
            continue
        seen = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and (key.tag, key.value) in seen:
                line = key.start_mark.line + 1
                raise ValueError(f"line {line}: the key {shown(key.value)} stands there twice")
            seen.add((key.tag, str(key.value)))
        waiting += [part for pair in node.value for part in pair]


def record(kind: type[_T], content: Any) -> _T:
    """A dataclass of numbers, texts, and dictionaries and lists of them, from JSON.

    Raises:
        ValueError: a field is missing, unknown, or of another type than the class says.
    """
    hints = get_type_hints(kind)
    if not isinstance(content, dict) or content.keys() != hints.keys():
        raise ValueError(f"must have the fields {', '.join(hints)}, got {shown(content)}")
    for name, hint in hints.items():
        _check_type(name, content[name], hint)
    return kind(**content)


def _check_type(name: str, value: Any, hint: Any) -> None:
    if is_of(value, hint):
        return
    if get_origin(hint) is dict and isinstance(value, dict):
        for key, one in value.items():
            _check_type(f"{name}.{key}", one, get_args(hint)[1])
    raise ValueError(
        f"{name} must be {hint if get_origin(hint) else hint.__name__}, got {shown(value)}"
    )


def is_of(value: Any, hint: Any) -> bool:
    """Whether a value of JSON or YAML is of a type; integers are floats, booleans are no numbers."""
    if hint is Any:
        return True
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if kind is UnionType:
        return any(is_of(value, part) for part in inner)
    if kind is tuple:  # a list of JSON: of one type, or of as many values as the tuple has
        if not isinstance(value, list) or (inner[-1] is not ... and len(value) != len(inner)):
            return False
        hints = [inner[0]] * len(value) if inner[-1] is ... else inner
        return all(map(is_of, value, hints))
    if kind is float:
        kind = (int, float)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        return False
    if hint is float and abs(value) > sys.float_info.max:  # an integer that no float holds
        return False
    if isinstance(value, dict) and not all(isinstance(name, str) for name in value):
        return False
    parts = (value.values() if isinstance(value, dict) else value) if inner else ()
    return all(is_of(part, inner[-1]) for part in parts)
