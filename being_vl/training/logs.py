"""batches → the figures of a log: loss by kind of token, share of merges, speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import TrainingArguments
from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from ..vocabulary import VocabularyLayout
from .samples import IGNORE_INDEX

# Kinds of labels, in the order of `kinds_of`. Special tokens, such as the end of an image, count as text.
KINDS = ("text", "code", "merge")
COUNTS = "counts"

_COUNTS = ("tokens", "images", "codes", "merges")
_NOT_ASKED = ("azure_ml", "flyte")  # transformers does not say whether these are installed


def check_report_to(arguments: TrainingArguments) -> None:
    """Fail before any data is read where a service of `report_to` is unknown or not installed."""
    installed = {*get_available_reporting_integrations(), *_NOT_ASKED}
    names = arguments.report_to or []  # a list since __post_init__
    for name in [names] if isinstance(names, str) else names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to must be none, all or of {known}, got {name!r}")
        if name not in installed:
            raise ValueError(f"report_to {name}: its package is not installed")


def kinds_of(token_ids: torch.Tensor, layout: VocabularyLayout) -> torch.Tensor:
    """Token ids of any shape → long of that shape: 0 text and special, 1 code, 2 merge (`KINDS`)."""
    return (token_ids >= layout.first_code_id).long() + (token_ids >= layout.first_merge_id)


@dataclass(frozen=True)
class BatchCounts:
    """What is in a batch, counted on the CPU, where it costs no synchronisation with a GPU.

    It is no tuple: `Trainer` and accelerate would take one apart.
    """

    tokens: int  # without padding
    images: int  # image beginnings; an image that several questions share counts once
    codes: int
    merges: int
    labels: tuple[int, int, int]  # predicted tokens by kind (`KINDS`)


@dataclass
class CountingCollator:
    """A collator whose batches also hold their `BatchCounts`, under the key `counts`."""

    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]]
    layout: VocabularyLayout
    boi_token_id: int | None  # None counts no images

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(samples)
        ids = np.concatenate([sample["input_ids"] for sample in samples])
        merges = int((ids >= self.layout.first_merge_id).sum())
        batch[COUNTS] = BatchCounts(
            tokens=len(ids),
            images=0 if self.boi_token_id is None else int((ids == self.boi_token_id).sum()),
            codes=int((ids >= self.layout.first_code_id).sum()) - merges,
            merges=merges,
            labels=count_labels(batch["labels"], self.layout),
        )
        return batch


def count_labels(labels: torch.Tensor, layout: VocabularyLayout) -> tuple[int, int, int]:
    """Labels of a batch, long (batch, length) and not shifted, by kind (`KINDS`)."""
    shifted = labels[:, 1:]
    predicted = int((shifted != IGNORE_INDEX).sum())
    image = int((shifted >= layout.first_code_id).sum())
    merges = int((shifted >= layout.first_merge_id).sum())
    return predicted - image, image - merges, merges


class TokenMeter:
    """Sums over batches since the last reading, over all processes when it is read.

    Counts come from the collator and are kept on the CPU; losses are summed where they are, so that nothing
    waits for a GPU between two readings.
    """

    def __init__(self, label_weights: Sequence[float]):
        self._label_weights = label_weights
        self._clear()

    def _clear(self) -> None:
        self._counts = torch.zeros(len(_COUNTS), dtype=torch.long)
        self._losses: torch.Tensor | None = None
        self._label_counts: torch.Tensor | None = None
        self._since: float | None = None
        self._paused = 0.0

    def start(self) -> None:
        """The clock runs from the first call after a reading."""
        if self._since is None:
            self._since = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave the time of the block out: saving, evaluating."""
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._since is not None:
                self._paused += time.perf_counter() - began

    def add_counts(self, counts: BatchCounts) -> None:
        self._counts += torch.tensor([getattr(counts, name) for name in _COUNTS])

    def add_losses(self, losses: torch.Tensor, kinds: torch.Tensor) -> None:
        """Losses of labels, float (num_labels,) without gradient, and their kinds, long (num_labels,)."""
        one_hot = torch.nn.functional.one_hot(kinds, len(KINDS)).to(losses.dtype)
        sums, counts = losses @ one_hot, one_hot.sum(dim=0)
        self._losses = sums if self._losses is None else self._losses + sums
        self._label_counts = counts if self._label_counts is None else self._label_counts + counts

    def read(self, accelerator: Accelerator) -> dict[str, float]:
        """The figures since the last reading; called by all processes together.

        Returns:
            `loss` (weighted mean in nats over the labels), `loss_text`, `loss_code`, `loss_merge` (mean over
            the labels of the kind; a kind without labels is left out), `merge_share` (merges among the
            image tokens), and, if the clock ran, `tokens_per_second` and `images_per_second`.
        """
        spent = 0.0 if self._since is None else time.perf_counter() - self._since - self._paused
        device = accelerator.device
        zeros = torch.zeros(len(KINDS), device=device)
        parts = [
            zeros if part is None else part.to(device, torch.float32)
            for part in (self._losses, self._label_counts, self._counts)
        ]
        sums = accelerator.reduce(torch.cat(parts), "sum").tolist()
        self._clear()
        losses, labels = sums[: len(KINDS)], sums[len(KINDS) : 2 * len(KINDS)]
        counts = dict(zip(_COUNTS, sums[2 * len(KINDS) :], strict=True))
        kinds = list(zip(KINDS, losses, labels, self._label_weights, strict=True))
        figures = {f"loss_{kind}": loss / number for kind, loss, number, _ in kinds if number}
        if weight_sum := sum(weight * number for _, _, number, weight in kinds):
            figures["loss"] = sum(weight * loss for _, loss, _, weight in kinds) / weight_sum
        if counts["codes"] + counts["merges"]:
            figures["merge_share"] = counts["merges"] / (counts["codes"] + counts["merges"])
        if spent > 0 and counts["tokens"]:
            figures["tokens_per_second"] = counts["tokens"] / spent
            figures["images_per_second"] = counts["images"] / spent
        return figures
