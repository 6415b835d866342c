"""samples or sequences → batches: padding, and the masks that keep a sequence's samples apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from .packing import PAD_SEGMENT, SHARED_SEGMENT
from .samples import IGNORE_INDEX


@dataclass
class PaddingCollator:
    """Samples, or sequences of `packing.pack_samples` → a batch padded on the right.

    Returns:
        `input_ids` and `labels` long (batch, length), and `position_ids` where the samples have them; those of
        the padding begin anew, so that it is a sample of its own.
    """

    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": padded(samples, "input_ids", self.pad_token_id),
            "labels": padded(samples, "labels", IGNORE_INDEX),
        }
        if "position_ids" in samples[0]:
            batch["position_ids"] = padded(samples, "position_ids", 0)
            length = batch["input_ids"].shape[1]
            for row, sample in zip(batch["position_ids"], samples, strict=True):
                used = len(sample["position_ids"])
                row[used:] = torch.arange(length - used)
        return batch


def padded(samples: Sequence[dict[str, Any]], name: str, value: int) -> torch.Tensor:
    """A column of samples as long (batch, length of the longest), filled with `value` on the right."""
    padded = np.full((len(samples), max(len(sample[name]) for sample in samples)), value, np.int64)
    for i, sample in enumerate(samples):
        padded[i, : len(sample[name])] = sample[name]
    return torch.from_numpy(padded)


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
    """Sequences of `packing.pack_shared_image` → a padded batch with its block mask.

    Args:
        attention: `"dense"` for sdpa and eager attention: the mask is bool (batch, 1, length, length).
            `"flex"` for FlexAttention: the batch holds `segment_ids`, long (batch, length), from which
            [`BeingVLTrainer`] makes a block-sparse mask where the model is.

    Returns:
        `input_ids`, `labels`, `position_ids` long (batch, length), and `attention_mask` or `segment_ids`.
    """

    pad_token_id: int
    attention: Literal["dense", "flex"] = "dense"

    def __call__(self, sequences: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        fills = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "position_ids": 0}
        batch = {name: padded(sequences, name, fill) for name, fill in fills.items()}
        segments = padded(sequences, "segment_ids", PAD_SEGMENT)
        if self.attention == "flex":
            batch["segment_ids"] = segments
        else:
            batch["attention_mask"] = block_mask(segments)
        return batch


@dataclass
class FlatCollator:
    """Sequences of `packing.pack_samples` → one sequence without padding, for FlashAttention's kernels.

    FlashAttention keeps the samples of a batch apart only when it is given their borders, and transformers
    passes these on for a batch of one row.

    Returns:
        `input_ids`, `labels`, `position_ids` long (1, total length), the borders `cu_seq_lens_q` and
        `cu_seq_lens_k` int32 (samples + 1,), and the longest sample `max_length_q` and `max_length_k`.
    """

    def __call__(self, sequences: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in ("input_ids", "labels", "position_ids"):
            joined = np.concatenate([sequence[name] for sequence in sequences]).astype(np.int64)
            batch[name] = torch.from_numpy(joined)[None]
        starts = np.flatnonzero(batch["position_ids"][0].numpy() == 0)
        borders = np.append(starts, batch["position_ids"].shape[1]).astype(np.int32)
        longest = int(np.diff(borders).max())
        for side in ("q", "k"):
            batch[f"cu_seq_lens_{side}"] = torch.from_numpy(borders)
            batch[f"max_length_{side}"] = longest
        return batch
