"""files → one commit of a repository on the Hub, in which weights and what is said of them stay together.

Source: huggingface_hub's `create_commit`. It differs in that results and a card leave a repository with the
weights that they are of, and in that a failed commit is tried again.
"""

from __future__ import annotations

import importlib
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import logging, validate_repo_id
from huggingface_hub.utils.sha import sha_fileobj

from .part import VQ_FOLDER, variant_of, weight_names

logger = logging.get_logger(__name__)

CARD = "README.md"
CARD_MARK = "<!-- written by being-vl card -->"
_TENSOR_PATTERNS = ("*.safetensors",)
WEIGHT_PATTERNS = (*_TENSOR_PATTERNS, "model.safetensors.index*.json")  # variants have theirs
RESULT_PATTERNS = ("evaluation/*.json", ".eval_results/*.yaml")
# What is said of weights, and false as soon as they are others.
MEASURED_PATTERNS = (*RESULT_PATTERNS, "README.md", "card.yaml", "training.json")
_REPLACED_TOGETHER = (*MEASURED_PATTERNS, *WEIGHT_PATTERNS)
PATTERNS = (
    *WEIGHT_PATTERNS,
    "config.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "image_bpe.json", "chat_template.jinja", "additional_chat_templates/*.jinja",
    "processor_config.json", "preprocessor_config.json",
    f"{VQ_FOLDER}/config.json", f"{VQ_FOLDER}/preprocessor_config.json",
    f"{VQ_FOLDER}/*.safetensors", f"{VQ_FOLDER}/*.safetensors.index*.json", f"{VQ_FOLDER}/*.py",
    "*.py", "example.png", "tokens.png",
    *MEASURED_PATTERNS,
    "LICENSE*", "NOTICE*", ".gitattributes",
)  # fmt: skip
# Of a whole commit, beside what huggingface_hub tries again by itself: it does not send a commit twice, but
# here a second one that finds everything in place changes nothing.
_TRIES = 3
_WAIT = 2.0  # seconds, growing with each try
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
    """Path in the repository → file, of the files of a checkpoint in a folder; nothing else is uploaded."""
    root = Path(folder)
    home = root.resolve()
    # A snapshot in the Hub's cache is a folder of links to the blobs beside it.
    snapshot = next((path for path in home.parents if path.name == "snapshots"), None)
    homes = (home,) if snapshot is None else (home, snapshot.parent / "blobs")
    files = {path for pattern in patterns for path in root.glob(pattern) if path.is_file()}
    for path in files:
        if not any(path.resolve().is_relative_to(place) for place in homes):
            raise ValueError(
                f"{path} is a link to {path.resolve()}, outside of the folder: put the file itself there"
            )
    found = {path.relative_to(root).as_posix(): path for path in sorted(files)}
    return {name: path for name, path in found.items() if not _is_stale(name, found)}


def _is_stale(name: str, files: Collection[str]) -> bool:
    """Whether a save with more files left this one: transformers loads the single file of its variant."""
    folder, _, file = name.rpartition("/")
    single, index = weight_names(variant_of(file))
    is_shard = re.fullmatch(r"model.*-\d{5}-of-\d{5}\.safetensors", file) is not None
    return (is_shard or file == index) and f"{folder}/{single}".lstrip("/") in files


@dataclass(frozen=True)
class Target:
    """Where a commit goes; the names and meanings are those of `push_to_hub`.

    Raises:
        ValueError: the Hub takes no repository of that name.
    """

    repo_id: str
    repo_type: str = "model"
    private: bool | None = None
    token: bool | str | None = None
    revision: str | None = None
    create_pr: bool = False
    commit_message: str | None = None
    commit_description: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        validate_repo_id(self.repo_id)


def commit_files(
    own: Mapping[str, Path], target: Target, *, companions: Mapping[str, Path] | None = None
) -> CommitInfo:
    """Upload files in one commit: others see all of it or nothing. What the Hub has is not sent again.

    Where the commit replaces weights, the results of the old ones, and a card that `being-vl card` wrote
    for them, leave the repository with them.

    Args:
        own: path in the repository → file; these replace what is there.
        companions: files that are added where the repository has none of that name; results and a card
            among them only where the repository's weights are those that they tell of.
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
    kind = target.repo_type
    revision = target.revision
    repo_id = api.create_repo(
        target.repo_id, private=target.private, repo_type=kind, exist_ok=True
    ).repo_id
    if revision is not None and not revision.startswith("refs/"):
        api.create_branch(repo_id, branch=revision, repo_type=kind, exist_ok=True)
    tree = list(api.list_repo_tree(repo_id, recursive=True, revision=revision, repo_type=kind))
    there = {entry.path for entry in tree}
    stored = {
        entry.path: entry.lfs.sha256
        for entry in tree
        if isinstance(entry, RepoFile) and entry.lfs and matches(entry.path, _TENSOR_PATTERNS)
    }
    weights = _hashes(own) if stored or companions else {}  # large files take a while
    outdated = {path for path in replaced(weights, stored, there) if path not in own}
    if CARD in outdated and CARD_MARK not in _card_there(api, repo_id, target):
        outdated.remove(CARD)
    companions = {
        path: file
        for path, file in _fitting(companions, weights or stored).items()
        if path not in own and path not in there - outdated
    }
    files = {**companions, **own}
    additions = {path: CommitOperationAdd(path, file) for path, file in files.items()}
    text = None
    if CARD in files:
        text = files[CARD].read_text("utf-8")
    elif kind == "model" and CARD not in there - outdated:
        text = _fresh_card(files)
    if text is None and target.tags and CARD in there:
        text = _card_there(api, repo_id, target)
    if text is not None:
        text = _with_tags(_naming_repository(text, repo_id), target.tags)
        additions[CARD] = CommitOperationAdd(CARD, text.encode())
    operations: list[CommitOperationAdd | CommitOperationDelete] = [*additions.values()]
    operations += [CommitOperationDelete(path) for path in sorted(outdated - additions.keys())]
    return api.create_commit(
        repo_id,
        operations,
        commit_message=target.commit_message or "Upload with being_vl",
        commit_description=target.commit_description,
        repo_type=kind,
        revision=revision,
        create_pr=target.create_pr,
    )


def _hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """Path → sha256, of the weights among files."""
    found = {}
    for path, file in files.items():
        if matches(path, _TENSOR_PATTERNS):
            with open(file, "rb") as opened:
                found[path] = sha_fileobj(opened).hex()
    return found


def replaced(weights: Mapping[str, str], stored: Mapping[str, str], there: set[str]) -> set[str]:
    """What of a repository is of weights that others take the place of; variants stand side by side.

    `weights` and `stored` are path → sha256, of those that come and of those that are there.
    """
    variants = {variant_of(path) for path in weights}
    before = {path: content for path, content in stored.items() if variant_of(path) in variants}
    if not before or before == weights:
        return set()
    gone = {p for p in there if matches(p, WEIGHT_PATTERNS) and variant_of(p) in variants}
    # Results and card tell of the weights that load by default.
    if min(map(variant_of, stored)) in variants:
        gone |= {path for path in there if matches(path, MEASURED_PATTERNS)}
    return gone


def _fitting(companions: Mapping[str, Path], weights: Mapping[str, str]) -> dict[str, Path]:
    """The companions; without weights and what is said of them where the repository has or gets others.

    `weights` are path → sha256 of those that the repository will have but for the companions'.
    """
    names = {path for path in companions if matches(path, _TENSOR_PATTERNS)}
    if not weights or (names == set(weights) and _hashes(companions) == dict(weights)):
        return dict(companions)
    return {p: file for p, file in companions.items() if not matches(p, _REPLACED_TOGETHER)}


def _card_there(api: HfApi, repo_id: str, target: Target) -> str:
    card = api.hf_hub_download(repo_id, CARD, repo_type=target.repo_type, revision=target.revision)
    return Path(card).read_text("utf-8")


def _with_tags(card: str, tags: tuple[str, ...]) -> str:
    """The card with more tags in its metadata."""
    parsed = ModelCard(card)
    present = parsed.data.get("tags") or []
    if set(tags) <= set(present):
        return card
    parsed.data["tags"] = list(dict.fromkeys([*present, *tags]))
    return str(parsed)


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
