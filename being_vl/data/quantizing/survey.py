"""a source → what it holds, in words, before anything is quantized."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
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
    left_out = list(source.left_out)
    parts = f" in {source.num_parts:,} parts" if source.num_images is None else ""
    if isinstance(source, FolderSource):
        formats = Counter(PurePosixPath(name).suffix.lower() for name, _, _ in source.files)
        looked_at = ""
    else:
        records = list(_looked_at(source))
        formats = Counter(_format(record) for record in records if not record.left_out)
        left_out += [(record.image_id, record.left_out) for record in records if record.left_out]
        looked_at = f"of {formats.total():,} looked at: "
    shown = ", ".join(f"{number:,} × {name}" for name, number in formats.most_common(12))
    return f"{count}{parts} ({looked_at}{shown}){reasons_of(left_out)}"


def _looked_at(source: Source) -> Iterator[Record]:
    step = max(1, source.num_parts // _PARTS)
    for part in list(range(0, source.num_parts, step))[:_PARTS]:
        yield from islice(source.records(part), _IMAGES)


def _format(record: Record) -> str:
    if record.content is None:
        return "without an image"
    try:
        with PIL.Image.open(io.BytesIO(record.read())) as image:
            return image.format or "unknown"
    except Exception:  # damaged files make Pillow raise nearly any type
        return "unreadable"
