"""storage → encoded image files: folders and WebDataset shards (`dataset_sources.py` has `datasets`).

Source: the conventions of `datasets` and WebDataset (a sample is the run of members of one base name).
Every source is a list of parts, so that ranks can share them out, and hands out undecoded bytes or paths,
so that decoding can happen in worker processes.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import fsspec

from ...files import is_remote, no_member, place, read_bytes, tar_members
from ...quantizers.image_loading import plugin_of

# What Pillow reads; HEIC and JPEG XL need a plugin. Programs and videos (EPS, WMF, FLI) are no images here.
IMAGE_EXTENSIONS = frozenset(
    ".apng .avif .avifs .blp .bmp .bw .cur .dcx .dds .dib .ftc .ftu .gif .heic .heif .hif .icb .icns .ico .im .j2c .j2k "
    ".jfif .jp2 .jpc .jpe .jpeg .jpf .jpg .jpx .jxl .mpo .msp .pbm .pcx .pfm .pgm .png .pnm .ppm .psd .pxr .qoi .ras "
    ".rgb .rgba .sgi .tga .tif .tiff .vda .vst .webp .xbm .xpm".split()
)
VIDEO_EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .m4v .mkv .mov .mp4 .mpeg .mpg .ogv .ts .webm .webp .wmv".split()
)
LEFT_OUT = "left out: "  # how reasons in skipped.jsonl begin for what is no image
# Bytes: an image of the most pixels that are read takes 201 MB in the plainest format.
_MAX_FILE, _MAX_VIDEO_FILE = 1 << 28, 1 << 31


@dataclass(frozen=True)
class Sampling:
    """Which frames of a video are kept; all by default. See `quantizers.video_loading.sample_indices`."""

    fps: float | None = None
    num_frames: int | None = None


@dataclass(frozen=True)
class Record:
    """One image or video, not yet decoded.

    Attributes:
        image_id: its name in the source.
        content: the encoded file, the path or the URL of one; None if the sample has no image.
        max_bytes: of the file.
        left_out: why a member of an archive is no image, for the summary; "" for an image.
    """

    image_id: str
    content: bytes | str | Path | None
    max_bytes: int = _MAX_FILE
    left_out: str = ""

    def read(self) -> bytes:
        """The encoded file.

        Raises:
            ValueError: the sample has no image, or the file is none, or too large.
            OSError: the file cannot be read.
        """
        if self.content is None:
            raise ValueError("the sample has no image")
        if isinstance(self.content, bytes):
            return self.content
        url = isinstance(self.content, str) and not os.path.exists(self.content)
        if not url or "://" not in str(self.content):
            return read_bytes(self.content, self.max_bytes)
        # Not fsspec.open, which takes "a::b" for a chain of places.
        protocol = str(self.content).partition("://")[0]
        with fsspec.filesystem(protocol).open(self.content, "rb") as file:
            data = file.read(self.max_bytes + 1)
        if len(data) > self.max_bytes:
            raise ValueError(f"{self.content}: larger than {self.max_bytes} bytes")
        return data


class Source(Protocol):
    """A list of parts; a part is a fixed sequence of records.

    Attributes:
        num_parts: ranks share out the parts: rank r takes r, r + world, …
        num_images: how many there are, where that is known without reading them all.
        left_out: name and reason of each file that is no record.
        sampling: where the records are videos, which frames of them are wanted; None where they are images.
    """

    num_parts: int
    num_images: int | None
    left_out: list[tuple[str, str]]
    sampling: Sampling | None = None

    def identity(self) -> dict[str, Any]:
        """What must not change between a run and its continuation, as JSON values."""
        ...

    def records(self, part: int) -> Iterator[Record]:
        """The images of a part, in an order that never changes."""
        ...

    def modified(self, part: int) -> float:
        """When the part last changed (seconds since the epoch), 0 where the source cannot say."""
        return 0.0


class IndexedSource(Source, Protocol):
    """A source whose images have numbers, 0 … num_images − 1; a part is `shard_size` of them."""

    num_images: int
    shard_size: int

    def record(self, index: int) -> Record:
        """One image by its number."""
        ...

    def records(self, part: int) -> Iterator[Record]:
        first = part * self.shard_size
        return map(self.record, range(first, min(first + self.shard_size, self.num_images)))


class FolderSource(IndexedSource):
    """All image files, or video files, under a folder, sorted by relative path, which is their id.

    Files that are hidden (also those that macOS leaves, `._*` and `__MACOSX`) or have no extension of an image,
    and links to folders, are no records: `left_out` names them with the reason.

    Args:
        folder: searched recursively; links to folders are not followed.
        shard_size: images, or videos, in a part.
        sampling: the files are videos, and these frames of them are wanted.

    Raises:
        ValueError: not a folder, no image file in it, or a name that is not UTF-8.
    """

    def __init__(
        self, folder: str | os.PathLike, *, shard_size: int, sampling: Sampling | None = None
    ):
        self.folder = place(folder)
        if not self.folder.is_dir():
            raise ValueError(f"{folder}: not a folder")
        self.files: list[tuple[str, int, float]] = []  # id, bytes, time of last change
        self.sampling = sampling
        self.left_out = []
        for image_id, size, modified, is_link in _listing(self.folder):
            reason = "a link to a folder" if is_link else self._unfit(image_id)
            if reason is not None:
                self.left_out.append((image_id, reason))
            else:
                self.files.append((image_id, size, modified))
        if not self.files:
            kind = "image" if sampling is None else "video"
            raise ValueError(f"{folder}: no {kind} file{reasons_of(self.left_out)}")
        self.files.sort()
        self.left_out.sort()
        self.shard_size = shard_size
        self.num_images = len(self.files)
        self.num_parts = -(-len(self.files) // shard_size)

    def identity(self) -> dict[str, Any]:
        listing = ((name, size) for name, size, _ in self.files)
        found = {"images": len(self.files), "listing": _digest(listing)}
        if self.sampling is None:
            return {"kind": "folder", **found}
        return {"kind": "videos", **found, "sampling": asdict(self.sampling)}

    def _unfit(self, name: str) -> str | None:
        """Why a file is left out by its name; None for an image, or a video where those are wanted."""
        if self.sampling is None:
            return _no_image(name)
        extension = os.path.splitext(name)[1].lower()
        return _hidden(name) or (
            None if extension in VIDEO_EXTENSIONS else f"no video: {extension}"
        )

    def record(self, index: int) -> Record:
        name = self.files[index][0]
        limit = _MAX_FILE if self.sampling is None else _MAX_VIDEO_FILE
        if is_remote(self.folder):
            return Record(name, f"{str(self.folder).rstrip('/')}/{name}", limit)
        return Record(name, self.folder.absolute() / name, limit)

    def modified(self, part: int) -> float:
        files = self.files[part * self.shard_size : (part + 1) * self.shard_size]
        return max(time for _, _, time in files)


def _listing(folder: Any) -> Iterator[tuple[str, int, float, bool]]:
    """Relative path, bytes and time of last change of all files below a folder; and links to folders."""
    if is_remote(folder):
        for path, info in folder.fs.find(folder.path, detail=True).items():
            changed = info.get("LastModified") or info.get("mtime") or info.get("updated")
            if isinstance(changed, str):
                changed = datetime.fromisoformat(changed)
            seconds = changed.timestamp() if isinstance(changed, datetime) else changed or 0.0
            name = path.removeprefix(folder.path.rstrip("/")).lstrip("/")
            yield name, info.get("size") or 0, seconds, False
        return
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*names, *links):
            path = Path(root, name)
            stat = path.lstat() if not path.exists() else path.stat()
            relative = _utf8(path.relative_to(folder).as_posix())
            yield relative, stat.st_size, stat.st_mtime, name in links


class TarSource(Source):
    """WebDataset shards, here or in a store; an id is the archive's base name, a slash, the sample's key.

    As WebDataset has it, a key ends at the first dot of a name, and the rest is the extension: the members `a.left.png`
    and `a.right.png` are two images of the sample `a`. Where a sample has several, an id ends in the extension.
    Hidden members, those without an extension, links and devices are records that say why they are left out: `left_out`
    is empty, since archives are read by whoever encodes them, and only once.

    Args:
        pattern: a path or a URL of tar files, plain or compressed, with braces (`{0000..0999}`, `{train,val}`) and
            `*`; a part is one file.
        image_key: the extension of the images that are wanted, such as `left.png`; by default all images are.

    Raises:
        ValueError: no file matches.
    """

    def __init__(self, pattern: str, *, image_key: str | None = None):
        found = [path for name in _without_braces(pattern) for path in _matches(name)]
        self.paths = sorted(dict.fromkeys(found), key=str)
        if not self.paths:
            raise ValueError(f"{pattern}: no tar file matches")
        self.image_key = image_key
        self.num_parts = len(self.paths)
        self.num_images = None
        self.left_out = []

    def identity(self) -> dict[str, Any]:
        listing = ((path.name, path.stat().st_size) for path in self.paths)
        own = {} if self.image_key is None else {"image_key": self.image_key}
        return {
            "kind": "webdataset",
            "files": len(self.paths),
            "listing": _digest(listing),
            **own,
        }

    def records(self, part: int) -> Iterator[Record]:
        """One record an image; a sample without an image is a record whose content is None.

        Raises:
            ValueError: the archive is damaged.
        """
        path = self.paths[part]
        stem = path.name.split(".", 1)[0]
        key: str | None = None
        images: list[tuple[str, bytes]] = []

        def sample() -> Iterator[Record]:
            name = f"{stem}/{_utf8(str(key))}"
            if len(images) < 2:
                yield Record(name, images[0][1] if images else None)
                return
            yield from (Record(f"{name}.{_utf8(kind)}", data) for kind, data in images)

        for member, read in tar_members(path, others=True):
            folder, _, name = member.rpartition("/")
            base, dot, extension = name.partition(".")
            reason = "a link or a device" if read is no_member else _hidden(member)
            if reason is None and not (base and dot):
                reason = "no extension"
            if reason is not None:
                yield Record(f"{stem}/{_utf8(member)}", None, left_out=reason)
                continue
            found = f"{folder}/{base}" if folder else base
            if key is not None and found != key:
                yield from sample()
                images = []
            key = found
            if self._is_wanted(extension):
                images.append((extension, read()))
        if key is not None:
            yield from sample()

    def _is_wanted(self, extension: str) -> bool:
        if self.image_key is not None:
            return extension.lower() == self.image_key.lower().lstrip(".")
        return f".{extension.rpartition('.')[2].lower()}" in IMAGE_EXTENSIONS

    def modified(self, part: int) -> float:
        path = self.paths[part]
        return 0.0 if is_remote(path) else path.stat().st_mtime


_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


def _without_braces(pattern: str) -> list[str]:
    """A pattern without its braces, as a shell expands them: `{08..10}` is 08, 09, 10."""
    found = None if os.path.exists(pattern) else _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last, words = found.groups()
    if words is not None:
        middles = words.split(",")
    else:
        if int(last) - int(first) > 10_000_000:
            raise ValueError(f"{pattern}: stands for more than 10,000,000 files")
        middles = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    rests = _without_braces(pattern[found.end() :])
    return [f"{pattern[: found.start()]}{middle}{rest}" for middle in middles for rest in rests]


def _matches(pattern: str) -> list[Any]:
    """The files that a pattern of `*` stands for; a name without one must be there."""
    path = place(pattern)
    if not is_remote(path):
        return [Path(found) for found in sorted(glob.glob(pattern, recursive=True))]
    if not glob.has_magic(path.path):
        return [path]
    protocol = pattern.partition("://")[0]
    return [place(f"{protocol}://{found}") for found in sorted(path.fs.glob(path.path))]


def _hidden(name: str) -> str | None:
    parts = name.split("/")
    if "__MACOSX" in parts or parts[-1].startswith("._"):
        return "made by macOS beside a file"
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        return "hidden"
    return None


def _no_image(image_id: str) -> str | None:
    """Why a file is left out by its name; None for an image."""
    if (reason := _hidden(image_id)) is not None:
        return reason
    extension = os.path.splitext(image_id)[1].lower()
    if extension not in IMAGE_EXTENSIONS:
        return f"no image: {extension}" if extension else "no image: no extension"
    plugin = plugin_of(extension)
    return f"{extension} needs pip install {plugin}" if plugin is not None else None


def reasons_of(left_out: list[tuple[str, str]]) -> str:
    """What was left out, in words: how many for which reason; "" for nothing."""
    if not left_out:
        return ""
    counts = Counter(reason for _, reason in left_out).most_common()
    shown = ", ".join(f"{count:,} × {reason}" for reason, count in counts[:8])
    more = sum(count for _, count in counts[8:])
    return f"; left out {len(left_out):,}: {shown}" + (f", {more:,} others" if more else "")


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{os.fsencode(name)!r}: the file name is not {sys.getfilesystemencoding()}; rename it, or set "
            "PYTHONUTF8=1 if the name is UTF-8"
        ) from None
    return name


def _digest(items: Any) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(repr(item).encode())
    return digest.hexdigest()
