"""Where a stopped training goes on.

`Trainer` writes a checkpoint's parts one after the other and its state last, so a checkpoint whose state
can be read is whole as far as a killed process is concerned.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from transformers.trainer import TRAINER_STATE_NAME


def last_whole_checkpoint(folder: str | os.PathLike) -> str | None:
    """The newest whole `checkpoint-N` in a `Trainer`'s output folder, or None."""
    folder = Path(folder)
    found = {}
    for path in folder.iterdir() if folder.is_dir() else []:
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        if match and _has_state(path):
            found[int(match.group(1))] = path
    return str(found[max(found)]) if found else None


def _has_state(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return False
    return True
