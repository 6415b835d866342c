"""images → codes, and conversations → ids, as plain callables: a batch of columns in, a batch of columns out.

For whoever has an engine already: `datasets.map(batched=True)`, `ray.data.map_batches`, the `collate_fn` of a
DataLoader, the body of a datatrove step. docs/cluster.md shows each. Both hold names and settings alone until
their first call, so they pickle small, and load a quantizer or a checkpoint once a process.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from ..codes.shard_files import code_type
from ..processing.processing_being_vl import BeingVLProcessor
from ..quantizers.image_loading import UnreadableImageError
from ..quantizers.quantizer import image_processor_for, load_quantizer
from ..quantizers.quantizing import quantize
from .codes import CodeIndex
from .tokenize_chunk import ChunkTokenizer
from .tokenize_settings import TokenizeSettings
from .tokenized import FEATURES
from .tokenizing import open_codes

Columns = Mapping[str, Any]


class _LoadedOnce:
    """Of a dataclass: what it has loaded does not travel with it, nor change the fingerprint of a `map`."""

    def __getstate__(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}  # type: ignore[arg-type]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


@dataclass(frozen=True)
class Quantize(_LoadedOnce):
    """A column of images → the columns `height`, `width` and `codes`, as in the shards of `being-vl encode`.

    Args:
        quantizer: folder or Hub id, or `package.module:name`.
        image_column: of images: PIL images, arrays, encoded files as bytes, paths, URLs, or rows of an Image column.
        device: where the quantizer runs; by default a GPU if there is one.
        batch_size: images that are encoded at once, at most.
        on_error: an image that cannot be read: `"raise"`, or `"skip"` its row.
    """

    quantizer: str
    image_column: str = "image"
    device: str | None = None
    batch_size: int = 16
    on_error: Literal["raise", "skip"] = "raise"

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """The same columns without the images, and with `height`, `width` (int32 cells) and `codes` (row-major).

        Raises:
            ValueError: no such column.
            UnreadableImageError: an image cannot be read; the message says which of the batch.
        """
        if self.image_column not in batch:
            raise ValueError(f"no column {self.image_column!r}; there are {sorted(batch)}")
        model, processor = self._parts
        kept, images = [], []
        for row, image in enumerate(batch[self.image_column]):
            try:
                if image is None:
                    raise UnreadableImageError("the row has no image")
                images.append(processor.fetch_images(image))
                kept.append(row)
            except (OSError, ValueError) as error:
                if self.on_error == "raise":
                    where = f"column {self.image_column!r}, row {row} of the batch"
                    raise UnreadableImageError(f"{where}: {error}") from error
        grids = quantize(images, model, processor, batch_size=self.batch_size) if images else []
        kind = code_type(model.config.num_embeddings).to_pandas_dtype()
        others = {name: column for name, column in batch.items() if name != self.image_column}
        return {
            **{name: [column[row] for row in kept] for name, column in others.items()},
            "height": np.array([grid.shape[0] for grid in grids], np.int32),
            "width": np.array([grid.shape[1] for grid in grids], np.int32),
            "codes": [grid.reshape(-1).astype(kind) for grid in grids],
        }

    @cached_property
    def _parts(self) -> tuple[Any, Any]:
        model = load_quantizer(self.quantizer)
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return model.to(device), image_processor_for(self.quantizer, model.config)


@dataclass(frozen=True)
class TokenizeConversations(_LoadedOnce):
    """Columns of conversations and codes → the columns that `being-vl tokenize` writes.

    A row is a sample of any form that `being-vl tokenize` reads, with a column `id`. Codes are looked up in
    `codes` by the names of the images; without it, a row brings those of its one image, as `Quantize` adds them.

    Args:
        checkpoint: folder or Hub id.
        codes: folders of `being-vl encode`; each process indexes them, 16 bytes an image.
        accept_mismatch: `"quantizer"`: the codes' may be another than the checkpoint's.
        settings: see there; samples that they leave out are missing from the answer.
    """

    checkpoint: str
    codes: Sequence[str] = ()
    accept_mismatch: Sequence[str] = ()
    settings: TokenizeSettings = field(default_factory=lambda: TokenizeSettings(source="columns"))

    def __call__(self, batch: Columns) -> dict[str, Any]:
        """A batch of `id`, `source`, `image_ids`, `video_ids`, `input_ids`, `assistant_masks`, `length`.

        Raises:
            ValueError: no column `id`, or a sample that the settings refuse.
        """
        if "id" not in batch:
            raise ValueError(f"samples need a column 'id'; there are {sorted(batch)}")
        names, length = list(batch), len(batch["id"])
        rows = [{name: _plain(batch[name][i]) for name in names} for i in range(length)]
        tokenize = ChunkTokenizer(self._processor, self._index, self.settings)
        if self._index is None and "codes" in names:
            tokenize = ChunkTokenizer(self._processor, _OwnCodes(rows), self.settings)
        chunk = [(number, row, f"row {row['id']!r}") for number, row in enumerate(rows)]
        table = pa.ipc.open_stream(tokenize(chunk)).read_all()
        return {name: table[name].to_pylist() for name in FEATURES}

    @cached_property
    def _processor(self) -> BeingVLProcessor:
        return BeingVLProcessor.from_pretrained(self.checkpoint)

    @cached_property
    def _index(self) -> CodeIndex | None:
        self.__dict__["_folder"] = folder = tempfile.TemporaryDirectory(prefix="being-vl-")
        path = Path(folder.name, "index.npy")
        accept = self.accept_mismatch
        return open_codes(list(self.codes), self._processor, path, accept=accept)[0]


class _OwnCodes(CodeIndex):
    """Codes that stand in the samples themselves, in place of an index; takes their columns away."""

    def __init__(self, rows: list[dict[str, Any]]):
        self._grids = {}
        for row in rows:
            height, width, codes = (row.pop(name) for name in ("height", "width", "codes"))
            if row.get("image") is None and row.get("images") is None:
                row["image"] = str(row.pop("image_id", row["id"]))
            names = row.get("image") or row.get("images")
            name = names[0] if isinstance(names, list) and len(names) == 1 else names
            if not isinstance(name, str):
                raise ValueError(f"row {row['id']!r}: codes are of one image, got {names!r}")
            self._grids[name] = np.asarray(codes).reshape(height, width)

    def lookup(self, names: Any) -> dict[str, np.ndarray]:
        return {name: self._grids[name] for name in names if name in self._grids}

    def lookup_videos(self, names: Any) -> dict[str, Any]:
        return {}

    def nearest(self, name: str) -> str | None:
        return None


def _plain(value: Any) -> Any:
    """A cell as Python has it: engines make numpy arrays of lists, and numpy scalars of numbers."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray) and value.dtype != object:
        return value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [_plain(entry) for entry in value]
    return value
