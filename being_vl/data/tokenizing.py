"""conversations and codes → shards of ids.

Source: our own. A chunk of rows is the unit of work: any process makes the same bytes of it, the main
process alone writes them, and a chunk whose shard is there is not made again, so that whatever stops the
run, another run continues it and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..files import locked, write_atomic
from ..processing.processing_being_vl import BeingVLProcessor
from .chunks import ChunkRows, ChunkTokenizer, TokenizeSettings
from .codes import CodeIndex, build_index, codes_identity
from .files import claim, finish, read_report, shard_path, tokenizer_identity
from .quantizing.decoding import end_with_parent
from .sources import RowSource

_INDEX_FILE = ".code-index.npy"


def tokenize_rows(
    source: RowSource,
    processor: BeingVLProcessor,
    output: Path,
    settings: TokenizeSettings,
    *,
    checkpoint: str,
    codes: Sequence[str] = (),
    selection: np.ndarray | None = None,
    selected_by: dict[str, Any] | None = None,
    num_workers: int = 0,
    progress: Callable[[int], Any] = lambda count: None,
) -> dict[str, Any]:
    """Tokenize a source into `output`, all of it or what is still missing; returns the manifest.

    Args:
        source: the rows.
        processor: of the checkpoint; no VQ model is needed.
        output: the folder; made if need be.
        settings: see there.
        checkpoint: where other processes load the processor from; only used with `num_workers`.
        codes: folders of code shards.
        selection: ascending row numbers to keep; all by default.
        selected_by: the filters that made the selection, for the manifest.
        num_workers: processes; 0 works in this one.
        progress: called with the number of rows just finished or found done.

    Raises:
        ValueError: a bad row; a row that `settings` refuses; an output folder made from something else.
        OSError: another process works in the folder, or a file cannot be written.
    """
    numbers = np.arange(source.num_rows) if selection is None else selection
    with locked(output, "another process is tokenizing into it"):
        index, described = _open_codes(codes, processor, output)
        run = {
            "tokenizer": tokenizer_identity(processor.tokenizer),
            "chat_template_sha256": hashlib.sha256(processor.chat_template.encode()).hexdigest(),
            "data": source.identity(),
            "codes": described,
            "settings": asdict(settings),
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
        tasks = ((i, _read(source, chunks[i])) for i in todo)
        for i, data in _map(tasks, processor, checkpoint, index, settings, num_workers, len(todo)):
            write_atomic(paths[i], data)
            progress(len(chunks[i]))
        (output / _INDEX_FILE).unlink(missing_ok=True)
        return finish(output, len(chunks), run)


def _open_codes(
    codes: Sequence[str], processor: BeingVLProcessor, output: Path
) -> tuple[CodeIndex | None, dict[str, Any] | None]:
    if not codes:
        return None, None
    index, shards = build_index(codes, output / _INDEX_FILE)
    expected = processor.tokenizer.image_bpe.codebook_size
    if shards.codebook_size != expected:
        raise ValueError(
            f"{', '.join(codes)}: codebook_size must be {expected}, as in the checkpoint, got "
            f"{shards.codebook_size}"
        )
    return index, codes_identity(shards)


def _read(source: RowSource, numbers: list[int]) -> ChunkRows:
    return ChunkRows(numbers, list(source.read(numbers)), [source.where(n) for n in numbers])


# ---- processes


def _map(
    tasks: Iterator[tuple[int, ChunkRows]],
    processor: BeingVLProcessor,
    checkpoint: str,
    index: CodeIndex | None,
    settings: TokenizeSettings,
    num_workers: int,
    num_tasks: int,
) -> Iterator[tuple[int, bytes]]:
    """The shard of each chunk, as they come; few are under way at once, for the sake of memory."""
    if num_workers < 2 or num_tasks < 2:
        tokenizer = ChunkTokenizer(processor, index, settings)
        for i, rows in tasks:
            yield i, tokenizer(rows)
        return
    files = index.files if index is not None else None
    keys = index.path if index is not None else None
    # Spawned, since threads of torch and tokenizers do not survive a fork.
    context = multiprocessing.get_context("spawn")
    arguments = (checkpoint, files, keys, settings)
    workers = min(num_workers, num_tasks)
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        waiting: dict[Future, int] = {}
        try:
            for i, rows in tasks:
                waiting[pool.submit(_work, rows)] = i
                if len(waiting) > 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _finished(waiting: dict[Future, int]) -> Iterator[tuple[int, bytes]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


_worker: ChunkTokenizer


def _start_worker(
    checkpoint: str, files: list[Path] | None, keys: Path | None, settings: TokenizeSettings
) -> None:
    global _worker
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    processor = BeingVLProcessor.from_pretrained(checkpoint, vq=False)
    index = None if files is None or keys is None else CodeIndex(files, keys)
    _worker = ChunkTokenizer(processor, index, settings)


def _work(rows: ChunkRows) -> bytes:
    return _worker(rows)
