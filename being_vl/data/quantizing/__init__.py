"""images → shards of codes, at scale: where images come from, and how they become files."""

from ...quantizers.identity import quantizer_identity
from .dataset_sources import DatasetSource, StreamSource, load_dataset_source
from .engine import EncodeSettings, Summary, quantize_source, quantize_with_ray
from .manifest import MissingShardError, write_manifest
from .sources import FolderSource, Record, Sampling, Source, TarSource, reasons_of
from .survey import survey

__all__ = [
    "DatasetSource",
    "EncodeSettings",
    "FolderSource",
    "MissingShardError",
    "Record",
    "Sampling",
    "Source",
    "StreamSource",
    "Summary",
    "TarSource",
    "load_dataset_source",
    "quantize_source",
    "quantize_with_ray",
    "quantizer_identity",
    "reasons_of",
    "survey",
    "write_manifest",
]
