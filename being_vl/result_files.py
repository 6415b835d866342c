"""measurement ↔ `evaluation/TASK.json` in a checkpoint's folder.

Source: our own, a versioned JSON that the model card and the tables read. What was measured, on what data,
with which decoding, harness and hardware; nothing that was not measured.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from .image_bpe_files import write_atomically

VERSION = 1
FOLDER = "evaluation"
_TYPES: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "dataset": (dict,),
    "metrics": (dict,),
    "num_examples": (int,),
    "decoding": (dict,),
    "harness": (dict,),
    "seconds": (int, float),
    "hardware": (str,),
}


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Args:
        task: name of the task, and of the file.
        dataset: `name`, Hub `id` (or None), `split`.
        metrics: name → number; percentages are 0 to 100.
        num_examples: questions or pictures.
        decoding: options of `generate`; empty where nothing is generated.
        harness: `name` ("being_vl" or "lmms-eval") and `version`.
        seconds: wall clock.
        hardware: in words.
        images: `codes_per_image` and `tokens_per_image`, means over the pictures.
    """

    task: str
    dataset: dict[str, str | None]
    metrics: dict[str, float]
    num_examples: int
    decoding: dict[str, Any]
    harness: dict[str, str]
    seconds: float
    hardware: str
    images: dict[str, float] = field(default_factory=dict)

    @property
    def data(self) -> str:
        """Data set and split in words."""
        split = self.dataset.get("split")
        return f"{self.dataset['name']}, {split}" if split else str(self.dataset["name"])

    @property
    def decoding_text(self) -> str:
        """The decoding settings in words; "–" where nothing was generated."""
        settings = dict(self.decoding)
        if not settings:
            return "–"
        words = ["sampled" if settings.pop("do_sample", False) else "greedy"]
        return ", ".join([*words, *(f"{name}={value}" for name, value in settings.items())])

    @property
    def harness_text(self) -> str:
        return f"{self.harness['name']} {self.harness['version']}"

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `evaluation/TASK.json` below a folder; its path is returned."""
        path = Path(folder) / FOLDER / f"{self.task}.json"
        text = json.dumps({"version": VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomically(path, text + "\n")
        return path


def load_results(folder: str | os.PathLike) -> list[Result]:
    """The results below a folder, by name of task.

    Raises:
        ValueError: a file is not JSON, of another version, or a field of it is missing, unknown or of
            another type; file, field and value are named.
    """
    return [_load(path) for path in sorted((Path(folder) / FOLDER).glob("*.json"))]


def _load(path: Path) -> Result:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise ValueError(
            f"{path}: must be a result of version {VERSION}, a mapping with version: {VERSION}, got "
            f"{str(content)[:80]!r}"
        )
    del content["version"]
    content["images"] = content.get("images") or {}
    if unknown := content.keys() - {entry.name for entry in fields(Result)}:
        raise ValueError(f"{path}: unknown field {min(unknown)!r}")
    for name, types in _TYPES.items():
        if name not in content:
            raise ValueError(f"{path}: {name} is missing")
        if not isinstance(content[name], types) or isinstance(content[name], bool):
            raise ValueError(f"{path}: {name} must be {types[-1].__name__}, got {content[name]!r}")
    for part, names in (("dataset", ("name",)), ("harness", ("name", "version"))):
        for name in names:
            if not isinstance(content[part].get(name), str):
                raise ValueError(
                    f"{path}: {part}.{name} must be str, got {content[part].get(name)!r}"
                )
    for part in ("metrics", "images"):
        for name, value in content[part].items():
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{path}: {part}.{name} must be a number, got {value!r}")
    return Result(**content)
