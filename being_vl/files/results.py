"""What an evaluation measured: the record that `being-vl eval` writes and model cards read.

One JSON file for each task, `evaluation/TASK.json` below a checkpoint or an output folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .atomic import write_atomic
from .errors import shown
from .parsing import read_json, record

RESULT_VERSION = 1
RESULTS_FOLDER = "evaluation"
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_MEANS = {"codes_per_image", "tokens_per_image"}


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Args:
        task: name of the task, and of the file.
        dataset: `name`, Hub `id` (or None), `split`, and perhaps `digest`, of the questions.
        metrics: name → number; percentages are 0 to 100.
        num_examples: questions or images.
        decoding: options of `generate`; empty where nothing is generated.
        harness: `name` ("being_vl" or "lmms-eval") and `version`.
        seconds: wall clock.
        hardware: in words.
        images: `codes_per_image` and `tokens_per_image`, means over the images.
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
        """Write `evaluation/TASK.json` below a folder; its path is returned.

        Raises:
            ValueError: as of `result_path`.
        """
        path = result_path(folder, self.task, self.dataset, self.harness["name"])
        text = json.dumps({"version": RESULT_VERSION, **asdict(self)}, indent=2, ensure_ascii=False)
        write_atomic(path, text + "\n")
        return path


def result_path(
    folder: str | os.PathLike, task: str, dataset: Mapping[str, str | None], harness: str
) -> Path:
    """`evaluation/TASK.json` below a folder, for a result of this data by this harness.

    Raises:
        ValueError: the task's name is not fit for a file's, or the file holds what another harness or other
            data gave under the same name.
    """
    if not _TASK.fullmatch(task):
        raise ValueError(
            "task must begin with a letter or digit, and hold letters, digits, '.', '_' and '-' alone, "
            f"since it names a file, got {shown(task)}"
        )
    path = Path(folder) / RESULTS_FOLDER / f"{task}.json"
    if path.exists():
        found = _load_result(path)
        theirs = {**found.dataset, "harness": found.harness["name"]}
        ours = {**dataset, "harness": harness}
        for name in ("name", "id", "split", "digest", "harness"):
            if theirs.get(name) != ours.get(name) and (name != "digest" or name in theirs):
                raise ValueError(
                    f"{path}: holds a result with {name} {theirs.get(name)}, but this one's is "
                    f"{ours.get(name)}: choose another output folder"
                )
    return path


def load_results(folder: str | os.PathLike) -> list[Result]:
    """The results below a folder, by name of task.

    Raises:
        ValueError: a file is not JSON, of another version, or a field of it is missing, unknown or of
            another type; file, field and value are named.
    """
    return [_load_result(path) for path in sorted((Path(folder) / RESULTS_FOLDER).glob("*.json"))]


def _load_result(path: Path) -> Result:
    content = read_json(path)
    if not isinstance(content, dict) or content.get("version") != RESULT_VERSION:
        raise ValueError(
            f"{path}: must be a result of version {RESULT_VERSION}, a mapping with version: {RESULT_VERSION}, got "
            f"{str(content)[:80]!r}"
        )
    del content["version"]
    if content.get("images") is None:
        content["images"] = {}
    try:
        result = record(Result, content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if result.task != path.stem:
        raise ValueError(
            f"{path}: task must be {path.stem}, as the file's name says, got {shown(result.task)}"
        )
    for part, names in (("dataset", {"name"}), ("harness", {"name", "version"})):
        for name in sorted(names):
            if not isinstance(content[part].get(name), str):
                raise ValueError(
                    f"{path}: {part}.{name} must be str, got {shown(content[part].get(name))}"
                )
    if result.images and result.images.keys() != _MEANS:
        raise ValueError(
            f"{path}: images must have {' and '.join(sorted(_MEANS))}, got {', '.join(result.images)}"
        )
    return result
