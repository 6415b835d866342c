"""files → named tensors: a checkpoint in any container, of which only what is asked for is read.

safetensors and torch files, sharded or not, in a folder or a repository on the Hub. Nothing is unpickled but
tensors.
"""

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.utils import cached_file

from ..files import read_weight_map

_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "vqgan.ckpt",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class _Ignored:
    """Stands in for what PyTorch Lightning leaves in its checkpoints beside the tensors."""


# taming's own files hold these classes as dictionary keys; they are never run.
_LIGHTNING_CLASSES: Any = [
    (_Ignored, f"pytorch_lightning.callbacks.{module}.{name}")
    for module, name in (
        ("model_checkpoint", "ModelCheckpoint"),
        ("lr_monitor", "LearningRateMonitor"),
        ("early_stopping", "EarlyStopping"),
    )
]

Reader = Callable[[Iterable[str]], dict[str, torch.Tensor]]


def open_weights(source: str) -> tuple[list[str], Reader]:
    """The keys of a checkpoint, and what reads some of its tensors."""
    if os.path.isfile(source):
        path = Path(source)
    else:
        found = next(filter(None, (fetch(source, file) for file in _WEIGHT_FILES)), None)
        if found is None:
            raise FileNotFoundError(
                f"{source}: no weights there, looked for {', '.join(_WEIGHT_FILES)}"
            )
        path = found
    if path.name.endswith(".index.json"):
        return _open_shards(source, path)
    if path.suffix == ".safetensors":
        with _opened(path) as file:
            return list(file.keys()), lambda keys: _read_safetensors(path, keys)
    tensors = _read_torch(path)
    return list(tensors), lambda keys: {key: tensors[key] for key in keys}


def fetch(source: str, file: str) -> Path | None:
    """A file of a folder or of a repository on the Hub, or None where there is none of that name."""
    if os.path.isdir(source):
        path = Path(source, file)
        return path if path.is_file() else None
    try:
        found = cached_file(source, file, _raise_exceptions_for_missing_entries=False)
    except OSError as error:
        raise FileNotFoundError(
            f"{source}: neither a file, nor a folder, nor a reachable repository on the Hub"
        ) from error
    return Path(found) if found else None


def _open_shards(source: str, index: Path) -> tuple[list[str], Reader]:
    shard_of = read_weight_map(index)

    def read(keys: Iterable[str]) -> dict[str, torch.Tensor]:
        tensors: dict[str, torch.Tensor] = {}
        wanted = set(keys)
        folder = str(index.parent) if os.path.isfile(source) else source
        for shard in sorted({shard_of[key] for key in wanted}):
            path = fetch(folder, shard)
            if path is None:
                raise ValueError(f"{index}: names {shard}, which is not beside it")
            here = [key for key in wanted if shard_of[key] == shard]
            if path.suffix == ".safetensors":
                tensors |= _read_safetensors(path, here)
                continue
            content = _read_torch(path)
            if lost := [key for key in here if key not in content]:
                raise ValueError(f"{path}: {lost[0]} is missing, which {index.name} says is there")
            tensors |= {key: content[key] for key in here}
        return tensors

    return list(shard_of), read


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error


def _read_safetensors(path: Path, keys: Iterable[str]) -> dict[str, torch.Tensor]:
    with _opened(path) as file:
        return {key: file.get_tensor(key) for key in keys}


def _read_torch(path: Path) -> dict[str, torch.Tensor]:
    try:
        with torch.serialization.safe_globals(_LIGHTNING_CLASSES):
            content = torch.load(
                path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # damaged files make the unpickler raise nearly any type
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it holds {foreign[1]}" if foreign else "it is damaged or of another format"
        raise ValueError(
            f"{path}: not a checkpoint of tensors alone, and only those are read: {reason}"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold a dictionary of tensors, got {type(content).__name__}")
    return dict(_flattened(content))


def _flattened(content: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors of nested dictionaries, by joined keys: {"model": {"a.b": …}} has a "model.a.b"."""
    for key, value in content.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _flattened(value, f"{prefix}{key}.")
