"""ids → rows: several samples in one row, each as if it stood alone.

Source: sequence packing without contamination (Krell et al. 2021). Two kinds: samples that share nothing,
whose positions begin anew; and samples that share an image, which stands once, at the front: every
question-answer pair sees the image and itself, and its positions go on from the end of the image. Losses
and logits equal those of the separate rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

IGNORE_INDEX = -100
PAD_SEGMENT = -1
SHARED_SEGMENT = 0


def pack_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One row of samples that do not see each other.

    transformers keeps them apart by their positions, on sdpa, eager and flash attention, when there is no
    attention mask and no cache.

    Args:
        samples: each with `input_ids` and `labels`, int (length,); the first label of each is -100.

    Returns:
        `input_ids`, `labels` and `position_ids`, int32 (total length,), and `length`.

    Raises:
        ValueError: there are no samples, or the first token of one is a label.
    """
    if not samples:
        raise ValueError("a row needs at least one sample, got none")
    for number, sample in enumerate(samples):
        if sample["labels"][0] != IGNORE_INDEX:
            raise ValueError(
                f"sample {number}: its first token cannot be a label, nothing stands before it"
            )
    row = {
        name: np.concatenate([sample[name] for sample in samples]).astype(np.int32)
        for name in ("input_ids", "labels")
    }
    positions = [np.arange(len(sample["input_ids"]), dtype=np.int32) for sample in samples]
    row["position_ids"] = np.concatenate(positions)
    return {**row, "length": len(row["input_ids"])}


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


def flex_block_mask(segment_ids: torch.Tensor) -> BlockMask:
    """`block_mask` for FlexAttention, which skips the blocks that are all masked."""

    def allowed(batch: Any, head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        query_segment, key_segment = segment_ids[batch, query], segment_ids[batch, key]
        shared = (key_segment == SHARED_SEGMENT) & (query_segment != PAD_SEGMENT)
        return (query >= key) & ((query_segment == key_segment) | shared)

    batch, length = segment_ids.shape
    return create_block_mask(allowed, batch, None, length, length, device=segment_ids.device)


@dataclass
class SharedImageCollator:
    """Rows of `packing.pack_shared_image` → a padded batch with its block mask.

    Args:
        pad_token_id: the id that fills a row on the right.
        attention: `"dense"` for sdpa and eager attention: the mask is bool (batch, 1, length, length).
            `"flex"` for FlexAttention: the batch holds `segment_ids`, long (batch, length), from which
            [`BeingVLTrainer`] makes a block-sparse mask where the model is.

    Returns:
        `input_ids`, `labels`, `position_ids` long (batch, length), and `attention_mask` or `segment_ids`.
    """

    pad_token_id: int
    attention: Literal["dense", "flex"] = "dense"

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": padded(rows, "input_ids", self.pad_token_id),
            "labels": padded(rows, "labels", IGNORE_INDEX),
            "position_ids": padded(rows, "position_ids", 0),
        }
        segments = padded(rows, "segment_ids", PAD_SEGMENT)
        if self.attention == "flex":
            batch["segment_ids"] = segments
        else:
            batch["attention_mask"] = block_mask(segments)
        return batch


def padded(rows: Sequence[dict[str, Any]], name: str, value: int) -> torch.Tensor:
    """A column of rows as long (batch, length of the longest), filled with `value` on the right."""
    padded = np.full((len(rows), max(len(row[name]) for row in rows)), value, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row[name])] = row[name]
    return torch.from_numpy(padded)
