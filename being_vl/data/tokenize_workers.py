"""Chunks of samples → their shards, in this process, in several, or in actors of Ray, as they are finished.

Few chunks are under way at once, so that memory does not grow with the data. The processes are spawned, since threads
of torch and tokenizers do not survive a fork; each loads the processor once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from ..processing.processing_being_vl import BeingVLProcessor
from .codes import CodeIndex
from .quantizing.decoding import end_with_parent
from .ray_engine import ray_map
from .tokenize_chunk import Chunk, ChunkTokenizer
from .tokenize_settings import TokenizeSettings


def shards_of(
    chunks: Iterator[tuple[int, Chunk]],
    processor: BeingVLProcessor,
    checkpoint: str,
    index: CodeIndex | None,
    settings: TokenizeSettings,
    num_workers: int,
    num_chunks: int,
    by_ray: bool,
) -> Iterator[tuple[int, bytes]]:
    """The shard of each chunk, as they come; few are under way at once, for the sake of memory."""
    if by_ray and num_chunks:
        make = partial(_numbered_tokenizer, processor, index, settings)
        yield from ray_map(make, chunks, workers=min(max(1, num_workers), num_chunks))
        return
    if num_workers < 2 or num_chunks < 2:
        tokenizer = ChunkTokenizer(processor, index, settings)
        for i, chunk in chunks:
            yield i, tokenizer(chunk)
        return
    saved = None if index is None else (index.files, index.path)
    context = multiprocessing.get_context("spawn")
    arguments = (checkpoint, saved, settings)
    workers = min(num_workers, num_chunks)
    with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
        waiting: dict[Future, int] = {}
        try:
            for i, chunk in chunks:
                with _started_without_sigint():
                    waiting[pool.submit(_work, chunk)] = i
                if len(waiting) > 2 * workers:
                    yield from _finished(waiting)
            while waiting:
                yield from _finished(waiting)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _numbered_tokenizer(
    processor: BeingVLProcessor, index: CodeIndex | None, settings: TokenizeSettings
) -> Callable[[tuple[int, Chunk]], tuple[int, bytes]]:
    tokenizer = ChunkTokenizer(processor, index, settings)
    return lambda task: (task[0], tokenizer(task[1]))


def _finished(waiting: dict[Future, int]) -> Iterator[tuple[int, bytes]]:
    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
    for future in done:
        yield waiting.pop(future), future.result()


@contextmanager
def _started_without_sigint() -> Iterator[None]:
    """Processes that start here leave Ctrl-C, which a terminal sends to all of them, to the parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: ChunkTokenizer


def _start_worker(
    checkpoint: str, saved: tuple[list[Path], Path] | None, settings: TokenizeSettings
) -> None:
    global _worker
    end_with_parent()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # there is a process for each core already
    processor = BeingVLProcessor.from_pretrained(checkpoint, vq=False)
    index = None if saved is None else CodeIndex(*saved)
    _worker = ChunkTokenizer(processor, index, settings)


def _work(chunk: Chunk) -> bytes:
    return _worker(chunk)
