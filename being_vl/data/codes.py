"""image ids → grids of codes, from the shards of `being-vl encode`.

The index takes 16 bytes an image, memory-mapped and shared by all processes. A chunk of samples reads each
shard that it needs once.
"""

from __future__ import annotations

import difflib
import hashlib
import posixpath
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..codes.imported import holds_arrays, import_codes
from ..codes.shard_files import count_rows, read_schema
from ..codes.shards import RUN_FILE, CodeShards, Video, read_ids, read_info
from ..files import read_json

_KEY = np.dtype([("hash", np.uint64), ("place", np.int64)])


class CodeIndex:
    """Where each image's codes lie.

    Build one with [`build_index`]; another process opens the saved array with `CodeIndex(files, path)`.

    Args:
        files: shards, in the order that the places count in.
        path: .npy file of a structured array (images,), sorted by hash: hash of the image id, number of
            the image.
    """

    def __init__(self, files: Sequence[Path], path: Path):
        self.files = list(files)
        self.path = path
        keys = np.load(path, mmap_mode="r")
        self._hashes = keys["hash"]
        self._places = keys["place"]
        self._starts = np.cumsum([0, *map(count_rows, self.files)])

    def __len__(self) -> int:
        return len(self._hashes)

    def lookup(self, image_ids: Iterable[str]) -> dict[str, np.ndarray]:
        """Image id → codes (h, w), for those of the ids that are there."""
        wanted = sorted(set(image_ids))
        hashes = np.array([_hash(image_id) for image_id in wanted], np.uint64)
        at = np.searchsorted(self._hashes, hashes)
        near = np.minimum(at, max(len(self) - 1, 0))
        found = [i for i in range(len(wanted)) if len(self) and self._hashes[near[i]] == hashes[i]]
        places = {wanted[i]: int(self._places[near[i]]) for i in found}
        by_shard: dict[int, list[str]] = {}
        for image_id, place in places.items():
            shard = int(np.searchsorted(self._starts, place, side="right")) - 1
            by_shard.setdefault(shard, []).append(image_id)
        grids = {}
        for shard in sorted(by_shard):
            grid = CodeShards(self.files[shard], cached_shards=1)
            names = read_ids(self.files[shard])
            for image_id in by_shard[shard]:
                place = places[image_id] - int(self._starts[shard])
                if names[place] == image_id:  # else another id of the same hash
                    grids[image_id] = grid[place].copy()
        return grids

    @cached_property
    def _videos(self) -> tuple[CodeShards | None, dict[str, Video]]:
        """The shards of videos, and the videos by id; few beside images, so their rows are kept in memory."""
        files = [file for file in self.files if "video_id" in read_schema(file).names]
        if not files:
            return None, {}
        shards = CodeShards(files)
        return shards, {video.video_id: video for video in shards.videos()}

    def lookup_videos(self, video_ids: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Video id → codes (T, h, w) and times (T,), for those of the ids that are there."""
        shards, videos = self._videos
        found = {}
        for name in set(video_ids) & videos.keys():
            video = videos[name]
            found[name] = np.stack(shards[video.start : video.stop]), video.times  # type: ignore[index]
        return found

    def nearest(self, name: str) -> str | None:
        """The id that is most like one that is not there: of the same file name, else alike."""
        ids = [*self._videos[1], *CodeShards(self.files).image_ids()]
        stem = PurePosixPath(normal_id(name)).stem
        same = [known for known in ids if PurePosixPath(known).stem == stem]
        close = same or difflib.get_close_matches(name, ids[:20_000], n=1, cutoff=0.6)
        return close[0] if close else None


def build_index(
    folders: Sequence[str],
    path: Path,
    *,
    codebook_size: int | None = None,
    verify: bool = False,
) -> tuple[CodeIndex, CodeShards]:
    """Index the images of code shards; the keys are saved as `path` (.npy), for other processes to map.

    `folders` may also name files of arrays of K = `codebook_size`, which become shards beside `path`.
    `verify` is of [`CodeShards`].
    """
    sources: list[str | Path] = []
    for number, folder in enumerate(folders):
        if holds_arrays(folder) and codebook_size is not None:
            shard = path.with_name(f"{path.stem}-{number}.parquet")
            sources.append(import_codes(folder, shard, codebook_size=codebook_size))
        else:
            sources.append(folder)
    opened = [CodeShards(source, verify=verify) for source in sources]
    shards = CodeShards([file for one in opened for file in one.files])
    np.save(path, distinct_keys(shards, ", ".join(map(str, folders))))
    index = CodeIndex(shards.files, path)
    _ = index._videos  # says what is wrong with them
    return index, shards


def distinct_keys(shards: CodeShards, where: str) -> np.ndarray:
    """The keys of an index, sorted; an image that comes twice with the same codes has one.

    Raises:
        ValueError: two images of one id have other codes.
    """
    keys = np.empty(len(shards), _KEY)
    keys["place"] = np.arange(len(shards))
    start = 0
    for file in shards.files:
        names = read_ids(file)
        keys["hash"][start : start + len(names)] = [_hash(name) for name in names]
        start += len(names)
    keys.sort(order="hash", kind="stable")
    return keys[_distinct(keys, shards, where)]


def _distinct(keys: np.ndarray, shards: CodeShards, where: str) -> np.ndarray:
    """Which of the sorted keys to keep, bool: the first of each id; an image may come twice, with its codes."""
    keep = np.ones(len(keys), bool)
    twice = np.flatnonzero(keys["hash"][1:] == keys["hash"][:-1])
    names = shards.image_ids() if len(twice) else []
    for i in twice:
        first, second = int(keys["place"][i]), int(keys["place"][i + 1])
        if names[first] != names[second]:
            raise ValueError(
                f"the image ids {names[first]!r} and {names[second]!r} share a hash; rename one"
            )
        if not np.array_equal(shards[first], shards[second]):
            raise ValueError(
                f"{where}: image ids must differ, got {names[first]!r} twice, with other codes"
            )
        keep[i + 1] = False
    return keep


def positions_of(shards: CodeShards) -> dict[str, dict[str, Any]]:
    """Folder → what it was encoded from, for those whose images are named by their number."""
    found = {}
    for folder in sorted({file.parent for file in shards.files}):
        run = read_json(folder / RUN_FILE, optional=True)
        source = run.get("source") if isinstance(run, dict) else None
        if isinstance(source, dict) and source.get("kind") == "dataset":
            columns = source.get("columns")
            if isinstance(columns, list) and len(columns) == 2 and columns[1] is None:
                found[str(folder)] = source
    return found


def normal_id(image_id: str, root: str = "") -> str:
    """An image's name as `being-vl encode --images` writes it: forward slashes, no `./`, below `root`."""
    path = posixpath.normpath(image_id.replace("\\", "/"))
    root = posixpath.normpath(root.replace("\\", "/")) if root else ""
    return path[len(root) + 1 :] if root and path.startswith(f"{root}/") else path


def codes_identity(shards: CodeShards) -> dict[str, Any]:
    """What tells these codes from others: the quantizer, and a digest of the shards' sources."""
    digest = hashlib.sha256()
    for file in shards.files:
        info = read_info(file)
        source = info.source if info is not None else ""
        digest.update(repr((file.name, file.stat().st_size, source)).encode())
    return {
        "images": len(shards),
        "quantizer": shards.quantizer,
        "sha256": digest.hexdigest(),
    }


def _hash(image_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), "little")
