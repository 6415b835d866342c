"""rows → batches.

Source: transformers' collators. They differ in that none makes a two-dimensional attention mask: rows are
padded on the right, where a causal model's labelled positions cannot look, and packed rows are kept apart by
their positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..vocabulary import VocabularyLayout
from .packing import IGNORE_INDEX, padded

COUNTS = "counts"


@dataclass
class PaddingCollator:
    """Rows of one sample, or of `packing.pack_samples` → a batch padded on the right.

    Args:
        pad_token_id: the id that fills a row on the right.

    Returns:
        `input_ids` and `labels` long (batch, length), and `position_ids` where the rows have them; those of
        the padding begin anew, so that it is a sample of its own.
    """

    pad_token_id: int

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {
            "input_ids": padded(rows, "input_ids", self.pad_token_id),
            "labels": padded(rows, "labels", IGNORE_INDEX),
        }
        if "position_ids" in rows[0]:
            length = batch["input_ids"].shape[1]
            positions = np.zeros((len(rows), length), np.int64)
            for i, row in enumerate(rows):
                used = len(row["position_ids"])
                positions[i, :used] = row["position_ids"]
                positions[i, used:] = np.arange(length - used)
            batch["position_ids"] = torch.from_numpy(positions)
        return batch


@dataclass
class FlatCollator:
    """Rows of `packing.pack_samples` → one row without padding, for FlashAttention's kernels.

    FlashAttention keeps the samples of a batch apart only when it is given their borders, and transformers
    passes these on for a batch of one row.

    Returns:
        `input_ids`, `labels`, `position_ids` long (1, total length), the borders `cu_seq_lens_q` and
        `cu_seq_lens_k` int32 (samples + 1,), and the longest sample `max_length_q` and `max_length_k`.
    """

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in ("input_ids", "labels", "position_ids"):
            joined = np.concatenate([row[name] for row in rows]).astype(np.int64)
            batch[name] = torch.from_numpy(joined)[None]
        starts = np.flatnonzero(batch["position_ids"][0].numpy() == 0)
        borders = np.append(starts, batch["position_ids"].shape[1]).astype(np.int32)
        longest = int(np.diff(borders).max())
        for side in ("q", "k"):
            batch[f"cu_seq_lens_{side}"] = torch.from_numpy(borders)
            batch[f"max_length_{side}"] = longest
        return batch


@dataclass(frozen=True)
class BatchCounts:
    """What is in a batch, counted on the CPU, where it costs no synchronisation with a GPU.

    It is no tuple: `Trainer` and accelerate would take one apart.

    Args:
        tokens: without padding.
        images: image beginnings; an image that several questions share counts once.
        codes, merges: image tokens by kind.
        text_labels, code_labels, merge_labels: predicted tokens by kind.
    """

    tokens: int
    images: int
    codes: int
    merges: int
    text_labels: int
    code_labels: int
    merge_labels: int

    @property
    def labels(self) -> tuple[int, int, int]:
        """Predicted tokens in the order of `labels.KINDS`."""
        return self.text_labels, self.code_labels, self.merge_labels


@dataclass
class CountingCollator:
    """A collator whose batches also hold their `BatchCounts`, under the key `counts`.

    Args:
        collate: the collator.
        layout: the model's vocabulary.
        boi_token_id: the beginning of an image; None counts no images.
    """

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    layout: VocabularyLayout
    boi_token_id: int | None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(rows)
        ids = np.concatenate([row["input_ids"] for row in rows])
        labels = batch["labels"][:, 1:].numpy()
        code, merge = self.layout.first_code_id, self.layout.first_merge_id
        merges, image_tokens = int((ids >= merge).sum()), int((ids >= code).sum())
        predicted = int((labels != IGNORE_INDEX).sum())
        image_labels, merge_labels = int((labels >= code).sum()), int((labels >= merge).sum())
        batch[COUNTS] = BatchCounts(
            tokens=len(ids),
            images=0 if self.boi_token_id is None else int((ids == self.boi_token_id).sum()),
            codes=image_tokens - merges,
            merges=merges,
            text_labels=predicted - image_labels,
            code_labels=image_labels - merge_labels,
            merge_labels=merge_labels,
        )
        return batch
