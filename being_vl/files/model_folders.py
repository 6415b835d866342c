"""Folders of models, before libraries that have no limits of their own read them.

`check_model_folder` looks at configurations, indices and the headers of weights, and names the file and field that
those libraries would fail at much later, or not at all.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from .errors import shown
from .parsing import MAX_JSON_BYTES, parse_json, read_json
from .places import check_regular


def read_weight_map(path: Path) -> dict[str, str]:
    """Name of a tensor → name of its file, from an index such as `model.safetensors.index.json`.

    Raises:
        ValueError: it is no such index, or a file in it would not lie beside it.
    """
    content = read_json(path)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{path}: weight_map must map names of tensors to files")
    for key, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{path}: weight_map[{key!r}] must be a file beside it, got {name!r}")
    return weight_map


# Configurations that libraries read without limits; each holds an object.
_CONFIGURATIONS = (
    "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "processor_config.json", "preprocessor_config.json", "chat_template.json",
)  # fmt: skip

# Fields of theirs that other libraries read without a look at the type.
_FIELD_TYPES: dict[str, tuple[type, ...]] = {
    "model_type": (str,),
    "model_max_length": (int, float),
    "output_attentions": (bool,),
    "output_hidden_states": (bool,),
}

_MAX_LAYERS = 10_000  # each is built before a weight is looked for
_MAX_HEADER_BYTES = 100_000_000  # of safetensors, as its own readers have it


def check_model_folder(folder: str | os.PathLike) -> None:
    """Look at a folder of a model before other libraries read it, which have no limits of their own.

    Configurations must be JSON objects within limits, weights as long as their header says, indices must name
    files that are there, and nothing may be a pipe or a device.

    Raises:
        ValueError, OSError: naming the file and what is wrong.
    """
    for path in sorted(Path(folder).iterdir()):
        if path.suffix not in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            continue
        check_regular(path)
        if path.name in _CONFIGURATIONS:
            _check_configuration(path)
        elif path.name.endswith(".safetensors.index.json"):
            if path.with_name(path.name.removesuffix(".index.json")).exists():
                continue  # an older save with more files left it, and nobody reads it
            for name in read_weight_map(path).values():
                if not (path.parent / name).is_file():
                    raise ValueError(f"{path.parent}: {name} is missing; {path.name} names it")
        elif path.match("model*.safetensors"):
            _check_weights(path)
        elif path.suffix != ".model" and path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"{path}: larger than {MAX_JSON_BYTES} bytes")


def _check_configuration(path: Path) -> None:
    """Raises ValueError for fields that are of another type than the libraries that read them take for granted."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold an object, got {shown(content)}")
    for name, kinds in _FIELD_TYPES.items():
        value = content.get(name)
        if value is not None and type(value) not in kinds:
            must = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{path}: {name} must be {must}, got {shown(value)}")
    layers = content.get("num_hidden_layers")
    if isinstance(layers, int) and layers > _MAX_LAYERS:
        raise ValueError(
            f"{path}: num_hidden_layers must be at most {_MAX_LAYERS}, got {shown(layers)}"
        )
    if path.name != "generation_config.json":
        return
    for name, value in content.items():  # generation would fail at its first step
        if name.endswith("_token_id") and value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(type(one) is int and one < 1 << 31 for one in ids):
                raise ValueError(
                    f"{path}: {name} must be an id or a list of ids, got {shown(value)}"
                )


def _check_weights(path: Path) -> None:
    """Raises ValueError if a file of safetensors is cut, or longer than its header says."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _MAX_HEADER_BYTES):
            raise ValueError(f"{path}: damaged or cut: {size} bytes, and a header of {length}")
        header = parse_json(file.read(length), f"{path}: its header", 1 << 22)
    ends = [0]
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name != "__metadata__":
            try:
                _, end = map(int, entry["data_offsets"])
                math.prod(map(int, entry["shape"]))
            except (KeyError, TypeError, ValueError):
                raise ValueError(f"{path}: its header: malformed entry {shown(name)}") from None
            ends.append(end)
    if not isinstance(header, dict) or 8 + length + max(ends) != size:
        raise ValueError(
            f"{path}: damaged or cut: {size} bytes, and its header tells of {8 + length + max(ends)}"
        )
