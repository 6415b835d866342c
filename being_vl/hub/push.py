"""folder → repository: a checkpoint, a VQ model, a vocabulary or code shards, in one commit.

Source: huggingface_hub's `create_commit`. It differs from its `upload_folder` in that the folder is checked
first, and that what goes is what the kind of folder is made of: checkpoints of a trainer, its optimizer
states and settings with paths of this machine stay at home.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..files import RESULTS_FOLDER
from .card import write_card
from .commit import CARD, PATTERNS, folder_files
from .folder import check_whole, folder_kind
from .results import ENTRIES_FOLDER

CODES_PATTERNS = (
    "codes-*.parquet",
    "manifest.json",
    "skipped.jsonl",
    CARD,
    "card.yaml",
    "LICENSE*",
)


@dataclass(frozen=True)
class Plan:
    """What a push would do.

    Args:
        files: path in the repository → file.
        left_out: paths below the folder that stay.
        repo_type: "model" or "dataset".
        outdated_card: results newer than the card that goes with them.
    """

    files: dict[str, Path]
    left_out: list[str]
    repo_type: str
    outdated_card: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


@contextmanager
def planned(folder: Path, include: Sequence[str] = ()) -> Iterator[Plan]:
    """Check a folder, and list what of it goes; a card that is missing is made, outside of the folder."""
    kind = folder_kind(folder)
    check_whole(folder)
    patterns = CODES_PATTERNS if kind == "codes" else PATTERNS
    files = folder_files(folder, (*patterns, *include))
    for pattern in include:
        if not folder_files(folder, [pattern]):
            raise ValueError(f"--include {pattern}: no such file in {folder}")
    everything = (path for path in folder.rglob("*") if path.is_file())
    left_out = sorted({path.relative_to(folder).as_posix() for path in everything} - files.keys())
    with tempfile.TemporaryDirectory() as made:
        outdated = []
        if CARD in files:
            written = files[CARD].stat().st_mtime
            results = (name for name in files if name.startswith(f"{RESULTS_FOLDER}/"))
            outdated = [name for name in results if files[name].stat().st_mtime > written]
        else:
            files |= _made_card(folder, Path(made))
        repo_type = "dataset" if kind == "codes" else "model"
        yield Plan(dict(sorted(files.items())), left_out, repo_type, outdated)


def _made_card(folder: Path, made: Path) -> dict[str, Path]:
    """The files of a card, written beside links to the folder's own."""
    view = made / folder.resolve().name
    view.mkdir()
    for path in folder.iterdir():
        if path.name != ENTRIES_FOLDER:
            (view / path.name).symlink_to(path.resolve())
    return {name: view / name for name in write_card(view)}
