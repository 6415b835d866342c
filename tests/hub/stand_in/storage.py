"""What the stand-in Hub keeps: repositories with commits and branches, in memory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Any

_LFS_SUFFIXES = {".safetensors", ".parquet", ".npy", ".bin", ".png"}
_LFS_SIZE = 1 << 20


class Repository:
    """Commits of one repository, each a snapshot path → content; branches and tags name commits."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.messages: dict[str, str] = {}
        self.refs: dict[str, str] = {}
        self.add({}, "main", "initial commit")

    @property
    def head(self) -> str:
        """The commit of main."""
        return self.refs["main"]

    def add(self, files: dict[str, bytes], branch: str = "main", message: str = "") -> str:
        """One more commit; the branch moves when all of it is stored."""
        listing = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        parent = self.refs.get(branch, "")
        oid = hashlib.sha1(json.dumps([parent, len(self.commits), listing]).encode()).hexdigest()
        self.commits[oid] = files
        self.messages[oid] = message
        self.refs[branch] = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit id names."""
        return self.refs.get(revision, revision if revision in self.commits else None)


def read_folder(folder: str | Path) -> dict[str, bytes]:
    """Path in the repository → content, of all files below a folder."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def is_lfs(path: str, size: int) -> bool:
    """Whether the Hub would keep a file in LFS."""
    return PurePosixPath(path).suffix in _LFS_SUFFIXES or size > _LFS_SIZE


def file_entry(path: str, content: bytes) -> dict[str, Any]:
    """A file as the Hub lists it in a tree."""
    size = len(content)
    oid = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
    if is_lfs(path, size):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": size, "pointerSize": 134}
    return entry


def tree_entries(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """What lies in a folder ("" for the root), folders first; empty if there is no such folder."""
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    inside = {path: content for path, content in files.items() if path.startswith(prefix)}
    entries, folders = [], set()
    for path, content in sorted(inside.items()):
        parts = path[len(prefix) :].split("/")
        folders.update(prefix + "/".join(parts[:depth]) for depth in range(1, len(parts)))
        if recursive or len(parts) == 1:
            entries.append(file_entry(path, content))
    shown = sorted(path for path in folders if recursive or "/" not in path[len(prefix) :])
    return [*({"type": "directory", "path": path, "oid": "0" * 40} for path in shown), *entries]
