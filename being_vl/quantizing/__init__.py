"""images → shards of codes, at scale: where images come from, and how they become files."""

from .engine import Summary, quantize_source
from .sources import DatasetSource, FolderSource, Record, Source, StreamSource, TarSource

__all__ = [
    "DatasetSource",
    "FolderSource",
    "Record",
    "Source",
    "StreamSource",
    "Summary",
    "TarSource",
    "quantize_source",
]
