"""objects → repositories on the Hub: every part of a checkpoint pushes the whole of it.

Source: transformers' `PushToHubMixin`, whose signatures it keeps. It differs in that every part pushes the
checkpoint that it was loaded from, with itself as it is in memory, so that a repository is never half a
checkpoint; transformers uploads what one `save_pretrained` has just written, and misses subfolders that
were written before.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, snapshot_download

from .commit import (
    PATTERNS,
    VQ_FOLDER,
    WEIGHT_PATTERNS,
    Target,
    commit_files,
    folder_files,
    matches,
)

_OPTIONS = (
    "repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description",
)  # fmt: skip


class PushesCheckpoint:
    """`push_to_hub` and `save_pretrained(push_to_hub=True)` that carry the whole checkpoint.

    A mixin before transformers' own class. What the object does not hold itself comes from the checkpoint
    that it was loaded from, and only where the repository has nothing of that name. An object that came
    from nowhere pushes itself alone.
    """

    def _checkpoint_source(self) -> tuple[str, str | None] | None:
        """Folder or repository, and its commit, that the object was loaded from; None if it was built."""
        raise NotImplementedError

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Save as the class does; with `push_to_hub=True`, push the checkpoint as `push_to_hub` does."""
        options = hub_options(kwargs) if push_to_hub else {}
        saved = super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if push_to_hub and kwargs.get("is_main_process", True):
            self._push_saved(save_directory, options)
        return saved

    def _push_saved(self, save_directory: str | os.PathLike, options: dict[str, Any]) -> CommitInfo:
        """Push a folder that was just saved; `options` are those of `hub_options`."""
        folder = Path(save_directory)
        repo_id = options.pop("repo_id", None) or folder.resolve().name
        return self._push(folder, Target(repo_id, **options))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        tags: list[str] | None = None,
        **save_options: Any,
    ) -> CommitInfo:
        """Upload the checkpoint that this object belongs to, with the object as it is now, in one commit.

        Model, tokenizer with `image_bpe.json`, processor, `vq_model/`, card and results go together,
        whichever of them is pushed. The object's own files replace the repository's; the others come from
        the checkpoint that the object was loaded from, where the repository has none of that name. If the
        commit replaces weights, results of the old ones leave the repository with them.

        Args:
            repo_id: `name` or `namespace/name`; made if it does not exist.
            commit_message, commit_description, private, token, revision, create_pr, tags: as in
                transformers.
            save_options: of `save_pretrained`, such as `max_shard_size`.

        Raises:
            OSError: the Hub refuses or cannot be reached.
        """
        target = Target(
            repo_id,
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
            tags=tuple(tags or ()),
        )
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, **save_options)
            return self._push(Path(folder), target)

    def _push(self, folder: Path, target: Target) -> CommitInfo:
        own = self._own_files(folder)
        companions = source_files(self._checkpoint_source(), own, target)
        return commit_files(own, target, companions=companions)

    def _own_files(self, folder: Path) -> dict[str, Path]:
        """Path in the repository → file, of what `save_pretrained` wrote into a folder."""
        return folder_files(folder)


def hub_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Take the options of `push_to_hub` out of those of a `save_pretrained`."""
    return {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}


class PushesVQModel(PushesCheckpoint):
    """The same for a VQ model, which a checkpoint keeps in `vq_model/` and its own repository at the root."""

    def _checkpoint_source(self) -> tuple[str, str | None] | None:
        return model_source(self)

    def _own_files(self, folder: Path) -> dict[str, Path]:
        source = self._checkpoint_source()
        inside = source is not None and _has_file(*source, f"{VQ_FOLDER}/config.json")
        files = folder_files(folder)
        return {f"{VQ_FOLDER}/{path}": file for path, file in files.items()} if inside else files


def model_source(model: Any) -> tuple[str, str | None] | None:
    """Where a model was loaded from, as transformers remembers it."""
    name = model.name_or_path
    return (name, getattr(model.config, "_commit_hash", None)) if name else None


def commit_of(file: str | os.PathLike | None) -> str | None:
    """The commit in the path of a file of the Hub's cache; None for any other file."""
    match = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]", os.fspath(file or ""))
    return match[1] if match else None


def _has_file(name: str, revision: str | None, path: str) -> bool:
    if os.path.isdir(name):
        return os.path.exists(os.path.join(name, path))
    is_repository = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not os.path.exists(name)
    return bool(is_repository) and HfApi().file_exists(name, path, revision=revision)


def source_files(
    source: tuple[str, str | None] | None, own: Mapping[str, Path], target: Target
) -> dict[str, Path]:
    """The files of the checkpoint that an object came from; none if that is no checkpoint of ours."""
    if source is None or not _has_file(*source, "processor_config.json"):
        return {}
    name, revision = source
    if os.path.isdir(name):
        return folder_files(name) if _has_file(name, None, "image_bpe.json") else {}
    if name == target.repo_id or not _has_file(name, revision, "image_bpe.json"):
        return {}
    patterns = [pattern for pattern in PATTERNS if pattern not in own]
    if any(matches(path, WEIGHT_PATTERNS) for path in own):
        patterns = [pattern for pattern in patterns if pattern not in WEIGHT_PATTERNS]
    return folder_files(
        snapshot_download(name, revision=revision, allow_patterns=patterns, token=target.token)
    )
