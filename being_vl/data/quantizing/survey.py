"""a source → what it holds, in words, before anything is quantized."""

from __future__ import annotations

import io
from collections import Counter
from itertools import islice
from pathlib import PurePosixPath

import PIL.Image

from .sources import FolderSource, Record, Source, reasons_of

_PARTS, _IMAGES = 16, 16  # looked at, where names do not tell the format


def survey(source: Source) -> str:
    """How many images (or videos) there are, of which formats, what is left out and why; in one line.

    A folder tells by its names. Of other sources, up to 256 images are looked at, in 16 parts.
    """
    things = "images" if source.sampling is None else "videos"
    count = f"{things}" if source.num_images is None else f"{source.num_images:,} {things}"
    parts = f" in {source.num_parts:,} parts" if source.num_images is None else ""
    if isinstance(source, FolderSource):
        formats = Counter(PurePosixPath(name).suffix.lower() for name, _, _ in source.files)
        looked_at = ""
    else:
        formats = Counter(_formats(source))
        looked_at = f"of {formats.total():,} looked at: "
    shown = ", ".join(f"{number:,} × {name}" for name, number in formats.most_common(12))
    return f"{count}{parts} ({looked_at}{shown}){reasons_of(source.left_out)}"


def _formats(source: Source) -> list[str]:
    step = max(1, source.num_parts // _PARTS)
    found = []
    for part in list(range(0, source.num_parts, step))[:_PARTS]:
        for record in islice(source.records(part), _IMAGES):
            found.append("without an image" if record.content is None else _format(record))
    return found


def _format(record: Record) -> str:
    try:
        with PIL.Image.open(io.BytesIO(record.read())) as image:
            return image.format or "unknown"
    except Exception:  # damaged files make Pillow raise nearly any type
        return "unreadable"
