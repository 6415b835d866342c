"""a part of a checkpoint → repository: with its code, and with the rest of the checkpoint.

What `being_vl.hub.part` reaches up for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from .commit import PATTERNS, WEIGHT_PATTERNS, Target, commit_files, folder_files, matches
from .part import Origin
from .remote_code import has_code, save_code


class PartOnHub:
    """A part of a checkpoint (a `PushesCheckpoint`) that has just been saved into a folder."""

    def __init__(self, part: Any):
        self._part = part

    def save_code(self, folder: str | os.PathLike) -> None:
        """Save its code, if the class is registered for that or the checkpoint that it is of carried code."""
        if type(self._part)._carries_code or has_code(self._part, folder):
            save_code(self._part, folder)

    def push(
        self,
        folder: str | os.PathLike,
        repo_id: str | None = None,
        *,
        tags: list[str] | None = None,
        **options: Any,
    ) -> CommitInfo:
        """Push what was saved, and the files of the part's checkpoint that the repository lacks."""
        folder = Path(folder)
        target = Target(repo_id or folder.resolve().name, tags=tuple(tags or ()), **options)
        source = self._part._checkpoint_source()
        own = folder_files(folder)
        inside = self._part._folder
        if inside and source and _has_file(source, f"{inside}/config.json", target.token):
            own = {f"{inside}/{path}": file for path, file in own.items()}
        return commit_files(own, target, companions=source_files(source, own, target))


def _has_file(source: Origin, path: str, token: str | bool | None) -> bool:
    name, revision, subfolder = source
    if os.path.isdir(name):
        return os.path.exists(os.path.join(name, path))
    is_repository = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not os.path.exists(name)
    path = f"{subfolder}/{path}" if subfolder else path
    return bool(is_repository) and HfApi(token=token).file_exists(name, path, revision=revision)


def source_files(source: Origin | None, own: Mapping[str, Path], target: Target) -> dict[str, Path]:
    """The files of the checkpoint that an object came from; none if that is no Being-VL checkpoint."""
    wanted = ("processor_config.json", "image_bpe.json")
    if source is None or not all(_has_file(source, path, target.token) for path in wanted):
        return {}
    name, revision, subfolder = source
    if os.path.isdir(name):
        return folder_files(name)
    if name == target.repo_id and not subfolder:
        return {}
    patterns = [pattern for pattern in PATTERNS if pattern not in own]
    if any(matches(path, WEIGHT_PATTERNS) for path in own):
        patterns = [pattern for pattern in patterns if pattern not in WEIGHT_PATTERNS]
    if subfolder:
        patterns = [f"{subfolder}/{pattern}" for pattern in patterns]
    snapshot = snapshot_download(
        name, revision=revision, allow_patterns=patterns, token=target.token
    )
    return folder_files(Path(snapshot, subfolder))
