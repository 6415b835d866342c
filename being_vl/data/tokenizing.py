"""conversations and codes → shards of ids.

A chunk of samples is the unit of work: any process makes the same bytes of it, the main process alone
writes them, and a chunk whose shard is there is not made again. So whatever stops a run, another run
continues it and ends with the same bytes.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..files import locked, write_atomic
from ..processing.processing_being_vl import BeingVLProcessor
from .codes import CodeIndex, build_index, codes_identity
from .conversations import ControlTokens, Conversation, parse_sample
from .identity import compare, processor_identity
from .quantizing.decoding import end_with_parent
from .sources import SampleSource, decode_sample
from .tokenized import claim, finish, read_report, shard_bytes, shard_path

_BATCH = 64  # rows through the processor at once


@dataclass(frozen=True)
class TokenizeSettings:
    """What decides the rows, besides data, codes and tokenizer.

    Args:
        source: what the column `source` says.
        on_missing: an image without codes: `"raise"`, `"skip"` the row, or leave the image out (`"text"`).
        max_length: most tokens of a row; None for no limit.
        on_too_long: a longer row: `"raise"` or `"skip"`. No row is ever cut.
        on_control_token: text that spells a special token of the tokenizer: `"raise"` or `"skip"` the row.
        shard_size: rows in a shard.

    Raises:
        ValueError: a number is not positive.
    """

    source: str
    on_missing: Literal["raise", "skip", "text"] = "raise"
    max_length: int | None = None
    on_too_long: Literal["raise", "skip"] = "raise"
    on_control_token: Literal["raise", "skip"] = "raise"
    shard_size: int = 2048

    def __post_init__(self) -> None:
        for name in ("max_length", "shard_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


@dataclass
class Chunk:
    """A chunk of rows, and their names in errors."""

    numbers: list[int]
    raw: list[Any]
    where: list[str]


@dataclass
class _Report:
    skipped: list[dict[str, Any]] = field(default_factory=list)
    skipped_rows: int = 0


class ChunkTokenizer:
    """Makes the shard of a chunk of rows; the same bytes in every process."""

    def __init__(
        self, processor: BeingVLProcessor, index: CodeIndex | None, settings: TokenizeSettings
    ):
        self._processor = processor
        self._index = index
        self._settings = settings
        self._control = ControlTokens(processor.tokenizer)

    def __call__(self, rows: Chunk) -> bytes:
        report = _Report()
        kept = self._conversations(rows, report)
        grids = (
            {}
            if self._index is None
            else self._index.lookup(i for c, _ in kept for i in c.image_ids)
        )
        kept = self._with_codes(kept, grids, report)
        columns: dict[str, list[Any]] = defaultdict(list)
        counts = dict.fromkeys(("tokens", "assistant_tokens", "images", "image_tokens", "cells"), 0)
        for start in range(0, len(kept), _BATCH):
            batch = kept[start : start + _BATCH]
            encoded = self._encode([c for c, _ in batch], grids)
            for (conversation, where), ids, mask in zip(batch, *encoded, strict=True):
                if self._too_long(len(ids), conversation, where, report):
                    continue
                columns["id"].append(conversation.id)
                columns["source"].append(self._settings.source)
                columns["image_ids"].append(conversation.image_ids)
                columns["input_ids"].append(ids)
                columns["assistant_masks"].append(mask)
                columns["length"].append(len(ids))
                counts["tokens"] += len(ids)
                counts["assistant_tokens"] += int(mask.sum())
                counts["images"] += len(conversation.image_ids)
                counts["image_tokens"] += self._image_tokens(ids)
                counts["cells"] += sum(grids[i].size for i in conversation.image_ids)
        return shard_bytes(
            columns,
            {
                "rows": len(columns["id"]),
                "skipped_rows": report.skipped_rows,
                **counts,
                "skipped": report.skipped,
            },
        )

    def _conversations(self, rows: Chunk, report: _Report) -> list[tuple[Conversation, str]]:
        kept = []
        for number, raw, where in zip(rows.numbers, rows.raw, rows.where, strict=True):
            conversation = parse_sample(decode_sample(raw, where), where=where, number=number)
            token = self._control.find(conversation)
            if token is None:
                kept.append((conversation, where))
                continue
            reason = f"its text spells the special token {token!r}"
            if self._settings.on_control_token == "raise":
                raise ValueError(f"{where}: {reason}; --on-control-token skip leaves such rows out")
            _skip(report, conversation, where, reason)
        return kept

    def _with_codes(
        self,
        kept: list[tuple[Conversation, str]],
        grids: dict[str, np.ndarray],
        report: _Report,
    ) -> list[tuple[Conversation, str]]:
        """The rows whose images are there, after what the settings do with the others."""
        done = []
        why = "no --codes given" if self._index is None else "no codes for this image"
        for conversation, where in kept:
            missing = [i for i in dict.fromkeys(conversation.image_ids) if i not in grids]
            if not missing:
                done.append((conversation, where))
                continue
            if self._settings.on_missing == "raise":
                raise ValueError(
                    f"{where}: image {missing[0]!r}: {why}; --on-missing skip leaves such rows out, "
                    "--on-missing text keeps them without the image"
                )
            if self._settings.on_missing == "text":
                for image_id in missing:
                    report.skipped.append(
                        {"row": where, "id": conversation.id, "image_id": image_id, "reason": why}
                    )
                done.append((conversation.without_images(missing), where))
            else:
                _skip(report, conversation, where, why, missing[0])
        return done

    def _encode(
        self, batch: list[Conversation], grids: dict[str, np.ndarray]
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids int32 and assistant masks int8 of each row."""
        images = [[grids[i] for i in conversation.image_ids] for conversation in batch]
        encoded = self._processor.apply_chat_template(
            [conversation.messages for conversation in batch],
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            processor_kwargs={"image_codes": images} if any(images) else {},
        )
        return (
            [np.asarray(ids, np.int32) for ids in encoded["input_ids"]],
            [np.asarray(mask, np.int8) for mask in encoded["assistant_masks"]],
        )

    def _too_long(
        self, length: int, conversation: Conversation, where: str, report: _Report
    ) -> bool:
        limit = self._settings.max_length
        if limit is None or length <= limit:
            return False
        reason = f"{length} tokens, but max_length is {limit}"
        if self._settings.on_too_long == "raise":
            raise ValueError(f"{where}: {reason}; --on-too-long skip leaves such rows out")
        _skip(report, conversation, where, reason)
        return True

    def _image_tokens(self, ids: np.ndarray) -> int:
        layout = self._processor.tokenizer.layout
        return int(((ids >= layout.first_code_id) & (ids < layout.size)).sum())


def _skip(
    report: _Report,
    conversation: Conversation,
    where: str,
    reason: str,
    image_id: str | None = None,
) -> None:
    report.skipped_rows += 1
    report.skipped.append(
        {"row": where, "id": conversation.id, "image_id": image_id, "reason": reason}
    )


_INDEX_FILE = ".code-index.npy"


def tokenize_samples(
    source: SampleSource,
    processor: BeingVLProcessor,
    output: Path,
    settings: TokenizeSettings,
    *,
    checkpoint: str,
    codes: Sequence[str] = (),
    selection: np.ndarray | None = None,
    selected_by: dict[str, Any] | None = None,
    num_workers: int = 0,
    accept_mismatch: Collection[str] = (),
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
        accept_mismatch: differences between the parts that are a warning, see `identity.ACCEPTABLE`.
        progress: called with the number of rows just finished or found done.

    Raises:
        ValueError: a bad row; a row that `settings` refuses; an output folder made from something else.
        OSError: another process works in the folder, or a file cannot be written.
    """
    numbers = np.arange(source.num_samples) if selection is None else selection
    with locked(output, "another process is tokenizing into it"):
        index, described = _open_codes(codes, processor, output)
        parts = processor_identity(processor)
        if described is not None:
            rule = "encode the images with this checkpoint's quantizer"
            compare(
                ", ".join(codes),
                described,
                {"quantizer": parts["quantizer"]},
                rule=rule,
                accept=accept_mismatch,
            )
            parts["quantizer"] = described["quantizer"]
        run = {
            "parts": parts,
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


def _read(source: SampleSource, numbers: list[int]) -> Chunk:
    return Chunk(numbers, list(source.read(numbers)), [source.where(n) for n in numbers])


# ---- processes


def _map(
    tasks: Iterator[tuple[int, Chunk]],
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


def _work(rows: Chunk) -> bytes:
    return _worker(rows)
