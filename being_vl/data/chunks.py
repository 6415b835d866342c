"""a chunk of conversations → the bytes of its shard, the same in every process."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ..processing.processing_being_vl import BeingVLProcessor
from .codes import CodeIndex
from .control_tokens import ControlTokens
from .conversations import Conversation, parse_row
from .files import shard_bytes
from .sources import decode_row

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
class ChunkRows:
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

    def __call__(self, rows: ChunkRows) -> bytes:
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

    def _conversations(self, rows: ChunkRows, report: _Report) -> list[tuple[Conversation, str]]:
        kept = []
        for number, raw, where in zip(rows.numbers, rows.raw, rows.where, strict=True):
            conversation = parse_row(decode_row(raw, where), where=where, number=number)
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
