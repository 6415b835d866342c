"""objects and folders → repositories on the Hub: a whole checkpoint in one commit.

Source: transformers' `PushToHubMixin`, whose signatures it keeps. It differs in that every part pushes the
checkpoint that it was loaded from, with itself as it is in memory, so that a repository is never half a
checkpoint; transformers uploads what one `save_pretrained` has just written, and misses subfolders that
were written before.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import logging

logger = logging.get_logger(__name__)

CARD = "README.md"
VQ_FOLDER = "vq_model"
CARD_MARK = "<!-- written by being-vl card -->"
WEIGHT_PATTERNS = ("*.safetensors", "model.safetensors.index.json")
RESULT_PATTERNS = ("evaluation/*.json", ".eval_results/*.yaml")
# What is said of weights, and false as soon as they are others.
MEASURED_PATTERNS = (*RESULT_PATTERNS, "README.md", "card.yaml", "training.json")
PATTERNS = (
    *WEIGHT_PATTERNS,
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "image_bpe.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
    "processor_config.json", "preprocessor_config.json",
    f"{VQ_FOLDER}/config.json", f"{VQ_FOLDER}/preprocessor_config.json",
    f"{VQ_FOLDER}/*.safetensors", f"{VQ_FOLDER}/*.safetensors.index.json", f"{VQ_FOLDER}/*.py",
    "*.py", "example.png", "tokens.png",
    *MEASURED_PATTERNS,
    "LICENSE*", "NOTICE*", ".gitattributes",
)  # fmt: skip
# Of a whole commit, beside what huggingface_hub tries again by itself: it does not send a commit twice, but
# here a second one that finds everything in place changes nothing.
_TRIES = 3
_WAIT = 2.0  # seconds, growing with each try
_OPTIONS = (
    "repo_id", "private", "token", "revision", "create_pr", "commit_message", "commit_description",
)  # fmt: skip
_CHECKPOINT_LINE = re.compile(r'^checkpoint = ".*"$', re.MULTILINE)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a repository fits one of the patterns; `*` does not cross a `/`."""
    parts = path.split("/")
    for pattern in patterns:
        wanted = pattern.split("/")
        if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted)):
            return True
    return False


def folder_files(folder: str | os.PathLike, patterns: Iterable[str] = PATTERNS) -> dict[str, Path]:
    """Path in the repository → file, of what a folder has of a checkpoint; the rest stays at home."""
    root = Path(folder)
    inside = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}
    return {name: inside[name] for name in sorted(inside) if matches(name, patterns)}


@dataclass(frozen=True)
class Target:
    """Where a commit goes; the names and meanings are those of `push_to_hub`."""

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    token: bool | str | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None


def commit_files(
    own: Mapping[str, Path],
    target: Target,
    *,
    companions: Mapping[str, Path] | None = None,
) -> CommitInfo:
    """Upload files in one commit: others see all of it or nothing. What the Hub has is not sent again.

    Where the commit replaces weights, the results of the old ones, and a card that `being-vl card` wrote
    for them, leave the repository with them.

    Args:
        own: path in the repository → file; these replace what is there.
        target: the repository, which is made where it is missing.
        companions: files that are added where the repository has none of that name; results and a card
            among them only where the repository's weights are those that they tell of.

    Raises:
        OSError: the Hub refuses or cannot be reached (`HfHubHTTPError` among them).
    """
    remaining = 1 if target.create_pr else _TRIES  # again would open a second pull request
    while True:
        remaining -= 1
        try:
            return _commit(own, target, companions or {})
        except HTTPError as error:
            status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
            if remaining and (status is None or status >= 500):
                logger.warning("%s; trying again", error)
                time.sleep(_WAIT * (_TRIES - remaining))
            elif status is None:
                raise ConnectionError(f"{HfApi().endpoint} cannot be reached: {error}") from error
            else:
                raise


def _commit(own: Mapping[str, Path], target: Target, companions: Mapping[str, Path]) -> CommitInfo:
    api = HfApi(token=target.token)
    kind = {"repo_type": target.repo_type}
    repo_id = api.create_repo(target.repo_id, private=target.private, exist_ok=True, **kind).repo_id
    if target.revision is not None and not target.revision.startswith("refs/"):
        api.create_branch(repo_id, branch=target.revision, exist_ok=True, **kind)
    tree = list(api.list_repo_tree(repo_id, recursive=True, revision=target.revision, **kind))
    there = {entry.path for entry in tree}
    stored = {
        entry.path: entry.lfs.sha256
        for entry in tree
        if getattr(entry, "lfs", None) and matches(entry.path, WEIGHT_PATTERNS)
    }
    outdated = _outdated(own, stored, there)
    if CARD in outdated and not _card_is_ours(api, repo_id, target):
        outdated.remove(CARD)
    companions = {
        path: file
        for path, file in _fitting(own, companions, stored).items()
        if path not in own and path not in there - outdated
    }
    files = {**companions, **own}
    if target.repo_type == "model" and CARD not in files and CARD not in there - outdated:
        text = _fresh_card(files)
    else:
        text = files[CARD].read_text("utf-8") if CARD in files else None
    additions = {path: CommitOperationAdd(path, file) for path, file in files.items()}
    if text is not None:
        text = _naming_repository(text, repo_id)
        additions[CARD] = CommitOperationAdd(CARD, text.encode())
    deletions = [CommitOperationDelete(path) for path in sorted(outdated - additions.keys())]
    return api.create_commit(
        repo_id,
        [*additions.values(), *deletions],
        commit_message=target.commit_message or "Upload with being_vl",
        commit_description=target.commit_description,
        revision=target.revision,
        create_pr=target.create_pr,
        **kind,
    )


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Path → sha256, of the weights among files."""
    found = {}
    for path, file in files.items():
        if matches(path, ("*.safetensors",)):
            with open(file, "rb") as opened:
                digest = hashlib.sha256()
                while chunk := opened.read(1 << 20):
                    digest.update(chunk)
            found[path] = digest.hexdigest()
    return found


def _outdated(own: Mapping[str, Path], stored: Mapping[str, str], there: set[str]) -> set[str]:
    """What the repository has of weights that `own` replaces, and what was said of them."""
    weights = _hashes(own)
    if not weights or not stored or weights == stored:
        return set()
    patterns = (*MEASURED_PATTERNS, *WEIGHT_PATTERNS)
    return {path for path in there if matches(path, patterns) and path not in own}


def _fitting(
    own: Mapping[str, Path], companions: Mapping[str, Path], stored: Mapping[str, str]
) -> dict[str, Path]:
    """The companions, without weights and what is said of them where other weights take their place."""
    weights = _hashes(own) or dict(stored)
    if not weights or weights == _hashes(companions):
        return dict(companions)
    patterns = (*MEASURED_PATTERNS, *WEIGHT_PATTERNS)
    return {path: file for path, file in companions.items() if not matches(path, patterns)}


def _card_is_ours(api: HfApi, repo_id: str, target: Target) -> bool:
    card = api.hf_hub_download(repo_id, CARD, repo_type=target.repo_type, revision=target.revision)
    return CARD_MARK in Path(card).read_text("utf-8")


def _fresh_card(files: Mapping[str, Path]) -> str | None:
    """A card of what the files say; None where only the checkpoint's own code is installed."""
    # By name, not by a relative import: transformers would copy it into every checkpoint.
    try:
        cards = importlib.import_module("being_vl.hub.card")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("being_vl"):
            raise
        return None
    with _as_folder(files) as folder:
        return cards.card_text(folder)


@contextmanager
def _as_folder(files: Mapping[str, Path]) -> Iterator[Path]:
    """Files from several places as one folder of links."""
    with tempfile.TemporaryDirectory() as folder:
        for path, file in files.items():
            link = Path(folder, path)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(Path(file).resolve())
        yield Path(folder)


def _naming_repository(card: str, repo_id: str) -> str:
    """The card, whose snippet loads the repository instead of the folder that it was written for."""
    return _CHECKPOINT_LINE.sub(f'checkpoint = "{repo_id}"', card) if CARD_MARK in card else card


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
        options = {name: kwargs.pop(name) for name in _OPTIONS if push_to_hub and name in kwargs}
        saved = super().save_pretrained(save_directory, *args, **kwargs)
        if push_to_hub and kwargs.get("is_main_process", True):
            repo_id = options.pop("repo_id", None) or Path(save_directory).resolve().name
            self._push(Path(save_directory), Target(repo_id, **options))
        return saved

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
        **save_options: Any,
    ) -> CommitInfo:
        """Upload the checkpoint that this object belongs to, with the object as it is now, in one commit.

        Model, tokenizer with `image_bpe.json`, processor, `vq_model/`, card and results go together,
        whichever of them is pushed. The object's own files replace the repository's; the others come from
        the checkpoint that the object was loaded from, where the repository has none of that name. If the
        commit replaces weights, results of the old ones leave the repository with them.

        Args:
            repo_id: `name` or `namespace/name`; made if it does not exist.
            commit_message, commit_description, private, token, revision, create_pr: as in transformers.
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
    return not os.path.exists(name) and HfApi().file_exists(name, path, revision=revision)


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
