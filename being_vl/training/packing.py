"""ids → rows: many questions about one image in one row, each as if it stood alone.

The image stands once, at the front; every question-answer pair sees the image and itself, not the other
pairs, and its positions go on from the end of the image. Losses and logits equal those of the separate
rows. Source: the block masks of sequence packing (Krell et al. 2021), with a shared prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

IGNORE_INDEX = -100
PAD_SEGMENT = -1
SHARED_SEGMENT = 0


def pack_shared_image(
    prefix_ids: Sequence[int], turns: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, Any]:
    """One row of an image and its questions.

    Args:
        prefix_ids: token ids that all turns share: bos, boi, the image, eoi.
        turns: for each question, the token ids after the prefix and their labels, of equal length;
            labels are token ids or -100, not shifted.

    Returns:
        `input_ids`, `labels`, `position_ids`, `segment_ids` (0 for the prefix, then 1, 2, … for the
        turns), each np.int32 (length,), and `length`.

    Raises:
        ValueError: the prefix is empty, or a turn's ids and labels differ in length.
    """
    if not len(prefix_ids):
        raise ValueError("prefix_ids must hold at least one token, got none")
    start = len(prefix_ids)
    ids, positions = [np.asarray(prefix_ids, np.int32)], [np.arange(start, dtype=np.int32)]
    labels, segments = [np.full(start, IGNORE_INDEX, np.int32)], [np.zeros(start, np.int32)]
    for number, (turn_ids, turn_labels) in enumerate(turns, start=1):
        if len(turn_ids) != len(turn_labels):
            raise ValueError(f"turn {number} has {len(turn_ids)} ids but {len(turn_labels)} labels")
        ids.append(np.asarray(turn_ids, np.int32))
        labels.append(np.asarray(turn_labels, np.int32))
        positions.append(np.arange(start, start + len(turn_ids), dtype=np.int32))
        segments.append(np.full(len(turn_ids), number, np.int32))
    row = {
        "input_ids": np.concatenate(ids),
        "labels": np.concatenate(labels),
        "position_ids": np.concatenate(positions),
        "segment_ids": np.concatenate(segments),
    }
    # A turn's first token would otherwise be predicted from the end of the turn before it.
    starts = np.flatnonzero(np.diff(row["segment_ids"]) > 0) + 1
    if np.any(row["labels"][starts] != IGNORE_INDEX):
        raise ValueError(
            "the first token of a turn cannot be a label: it has no turn of its own before it"
        )
    return {**row, "length": len(row["input_ids"])}


def block_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """(batch, length) segments → (batch, 1, length, length) bool, True where attention is allowed.

    A token sees what stands before it in the shared segment 0 and in its own segment. Padding (-1) sees
    padding, so that no row of the softmax is empty.
    """
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    allowed = (query == key) | ((key == SHARED_SEGMENT) & (query != PAD_SEGMENT))
    return allowed.tril().unsqueeze(1)


@dataclass
class SharedImageCollator:
    """Rows of `pack_shared_image` → a padded batch with its block mask.

    Args:
        pad_token_id: the id that fills a row on the right.

    Returns:
        `input_ids`, `labels`, `position_ids` long (batch, length) and `attention_mask` bool
        (batch, 1, length, length). The mask is understood by sdpa and eager attention.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        fill = {
            "input_ids": self.pad_token_id,
            "labels": IGNORE_INDEX,
            "position_ids": 0,
            "segment_ids": PAD_SEGMENT,
        }
        batch = {}
        for name, value in fill.items():
            padded = np.full((len(rows), length), value, np.int64)
            for i, row in enumerate(rows):
                padded[i, : len(row[name])] = row[name]
            batch[name] = torch.from_numpy(padded)
        batch["attention_mask"] = block_mask(batch.pop("segment_ids"))
        return batch
