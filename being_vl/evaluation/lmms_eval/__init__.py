"""lmms-eval ↔ this library: its entry point, and where our own tasks are.

Source: the plug-in interface of lmms-eval 0.7 (entry points of the group `lmms_eval.models`). Nothing here imports
lmms-eval before lmms-eval itself asks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

TASKS_FOLDER = Path(__file__).parent / "tasks"


def manifest() -> Any:
    """What lmms-eval's registry loads: `--model being_vl`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(
        model_id="being_vl", chat_class_path="being_vl.evaluation.lmms_eval.model.BeingVL"
    )
