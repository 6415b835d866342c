"""batches of answers → lines on disk, from which a stopped run continues.

Each process appends to a file of its own; a kill can damage only its last line.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import PartialState

from ..files import wait_for_everyone, write_atomic

_SETTINGS = "settings.json"


class Journal:
    """Answers of a run under way, a file for each process; a context manager that is open for writing.

    Answers in `folder` that were saved under other `settings` are discarded.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], state: PartialState):
        self._folder = folder
        text = json.dumps(settings, sort_keys=True)
        if state.is_main_process:
            path = folder / _SETTINGS
            if not path.is_file() or path.read_text("utf-8") != text:
                shutil.rmtree(folder, ignore_errors=True)
                write_atomic(path, text)
        wait_for_everyone(state)
        self.found: dict[str, str] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text("utf-8", errors="replace").splitlines():
                try:
                    answers = json.loads(line)
                except (ValueError, RecursionError):
                    continue  # its process was killed while it wrote this batch: it is answered again
                if isinstance(answers, dict):
                    self.found |= {k: text for k, text in answers.items() if isinstance(text, str)}
        wait_for_everyone(state)
        self._path = folder / f"{state.process_index:05d}.jsonl"

    def __enter__(self) -> Journal:
        self._file = open(self._path, "a", encoding="utf-8")
        self._file.write("\n")  # ends a line that a killed process left
        return self

    def add(self, answers: dict[str, str]) -> None:
        """Write a batch down."""
        self.found.update(answers)
        self._file.write(json.dumps(answers) + "\n")
        self._file.flush()

    def __exit__(self, *_: Any) -> None:
        self._file.close()

    def remove(self) -> None:
        """Delete the files of a finished run."""
        shutil.rmtree(self._folder)
