"""conversations and codes → a folder of shards of ids.

Chunks of samples go to `tokenize_workers`, which make the same bytes of one in any process (`tokenize_chunk`); the
main process alone writes them, and a chunk whose shard is there is not made again. So whatever stops a run, another
run continues it and ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from ..files import is_remote, locked, write_atomic
from ..processing.processing_being_vl import BeingVLProcessor
from .codes import CodeIndex, build_index, codes_identity, positions_of
from .identity import compare, processor_identity
from .sources import SampleSource
from .tokenize_chunk import Chunk
from .tokenize_settings import TokenizeSettings
from .tokenize_workers import shards_of
from .tokenized import check_finished, claim, finish, read_report, shard_path

_INDEX_FILE = ".code-index.npy"


def tokenize_samples(
    source: SampleSource,
    processor: BeingVLProcessor,
    output: Path,
    settings: TokenizeSettings,
    *,
    checkpoint: str,
    codes: Sequence[str] = (),
    verify_codes: bool = False,
    selection: np.ndarray | None = None,
    selected_by: dict[str, Any] | None = None,
    num_workers: int = 0,
    by_ray: bool = False,
    accept_mismatch: Collection[str] = (),
    progress: Callable[[int], Any] = lambda count: None,
) -> dict[str, Any]:
    """Tokenize a source into `output`, all of it or what is still missing; returns the manifest.

    Args:
        source: the samples.
        processor: of the checkpoint; no VQ model is needed.
        output: the folder, here or in a store (`files.place`); made if need be.
        settings: see there.
        checkpoint: where other processes load the processor from; only used with `num_workers`.
        codes: folders of code shards.
        verify_codes: compare the checksums of their shards first, which reads all of them.
        selection: ascending sample numbers to keep; all by default.
        selected_by: the filters that made the selection, for the manifest.
        num_workers: processes; 0 works in this one.
        by_ray: the processes are actors of Ray; `codes` must be visible to all nodes.
        accept_mismatch: differences between the parts that are a warning, see `identity.ACCEPTABLE`.
        progress: called with the number of samples just finished or found done.

    Raises:
        ValueError: a bad sample; a sample that `settings` refuses; an output folder made from something else.
        OSError: another process works in the folder, or a file cannot be written.
    """
    numbers = np.arange(source.num_samples) if selection is None else selection
    busy = "another process is tokenizing into it"
    with locked(output, busy), _folder_of_index(output) as aside:
        index, described = open_codes(
            codes,
            processor,
            aside / _INDEX_FILE,
            source=source,
            accept=accept_mismatch,
            verify=verify_codes,
        )
        parts = processor_identity(processor)
        if described is not None:
            parts["quantizer"] = described["quantizer"]
        run = {
            "parts": parts,
            "data": source.identity(),
            "codes": described,
            "settings": settings.identity(),
            "selected_by": selected_by or {},
        }
        claim(output, run)
        chunks = [
            numbers[i : i + settings.shard_size].tolist()
            for i in range(0, len(numbers), settings.shard_size)
        ]
        paths = [shard_path(output, i, len(chunks)) for i in range(len(chunks))]
        for path, chunk in zip(paths, chunks, strict=True):
            if path.exists():
                read_report(path)  # refuses what is not ours
                progress(len(chunk))
        todo = [i for i, path in enumerate(paths) if not path.exists()]
        finished = check_finished(output) and not todo

        def read(i: int) -> Chunk:
            raw = source.read(chunks[i])
            return [(n, r, source.where(n)) for n, r in zip(chunks[i], raw, strict=True)]

        shards = shards_of(
            ((i, read(i)) for i in todo),
            processor,
            checkpoint,
            index,
            settings,
            num_workers,
            len(todo),
            by_ray,
        )
        for i, data in shards:
            write_atomic(paths[i], data)
            progress(len(chunks[i]))
        (aside / _INDEX_FILE).unlink(missing_ok=True)
        manifest = finish(output, len(chunks), run)
    return {**manifest, "finished_before": finished}


@contextmanager
def _folder_of_index(output: Path) -> Iterator[Path]:
    """Where the index of the codes lies, which processes map: beside the shards, or for those of a store on a disk."""
    if not is_remote(output):
        yield output
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)


def open_codes(
    codes: Sequence[str],
    processor: BeingVLProcessor,
    index_path: Path,
    *,
    source: SampleSource | None = None,
    accept: Collection[str] = (),
    verify: bool = False,
) -> tuple[CodeIndex | None, dict[str, Any] | None]:
    """Index the codes at `index_path`, and say what they are; None of both without codes.

    Raises:
        ValueError: codes of another quantizer than the checkpoint's, or of another data set than the one that numbers
            the images of `source`.
    """
    if not codes:
        return None, None
    expected = processor.tokenizer.image_bpe.quantizer_codebook_size
    index, shards = build_index(codes, index_path, codebook_size=expected, verify=verify)
    if shards.codebook_size != expected:
        raise ValueError(
            f"{', '.join(codes)}: codebook_size must be {expected}, as in the checkpoint, got "
            f"{shards.codebook_size}"
        )
    own = None if source is None else source.positions()
    if own is not None:
        rule = "name the images by --id-column in both commands"
        for folder, encoded in positions_of(shards).items():
            found = {"positions": {name: encoded.get(name) for name in own}}
            compare(folder, found, {"positions": own}, rule=rule, accept=accept)
    described = codes_identity(shards)
    rule = "encode the images with this checkpoint's quantizer, preprocessing and --dtype"
    quantizer = {"quantizer": processor_identity(processor)["quantizer"]}
    compare(", ".join(codes), described, quantizer, rule=rule, accept=accept)
    return index, described
