"""tokenized samples → batches: labels, padding, order.

LLaVA trains on what the assistant says, Chameleon and the released Being-VL code on every token. Samples of a
batch are padded on the right, where a causal model's labelled positions cannot look, so no attention mask
is made. `packing` puts several samples into one sequence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from ..vocabulary import VocabularyLayout

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

IGNORE_INDEX = -100
Labels = Literal["assistant", "text", "all"]


_COLUMNS = ("input_ids", "assistant_masks", "length")


class TokenizedSamples(Dataset):
    """The samples of a tokenized data set with their labels.

    Args:
        dataset: has the columns `id`, `input_ids`, `assistant_masks` and `length` of `being-vl tokenize`.
        labels: which tokens are predicted, see `make_labels`.
        max_length: the most tokens of a sample.
        drop_long: leave longer samples out.
    """

    def __init__(
        self,
        dataset: datasets.Dataset,
        layout: VocabularyLayout,
        *,
        labels: Labels = "assistant",
        max_length: int | None = None,
        drop_long: bool = False,
    ):
        for name in _COLUMNS:
            if name not in dataset.column_names:
                raise ValueError(
                    f"the data set has no column {name!r}, but {dataset.column_names}: tokenize it first"
                )
        lengths, label_counts = _inspect(dataset, layout, labels)
        too_long = lengths > (np.inf if max_length is None else max_length)
        self.num_too_long = int(too_long.sum())  # samples that were left out
        if self.num_too_long:
            if not drop_long:
                first = int(np.argmax(too_long))
                name = dataset[first].get("id", first)
                raise ValueError(
                    f"sample {first} (id {name!r}) has {lengths[first]} tokens, but max_length is {max_length}; "
                    "drop_long leaves such samples out"
                )
            dropped = f"{self.num_too_long} of {len(lengths)} samples"
            message = f"drop_long leaves out {dropped}, which are longer than {max_length} tokens"
            warnings.warn(message, stacklevel=2)
            kept = np.flatnonzero(~too_long)
            dataset, lengths, label_counts = dataset.select(kept), lengths[kept], label_counts[kept]
        if not len(lengths):
            raise ValueError("the data set has no samples to train on")
        self.num_without_labels = int((label_counts == 0).sum())  # samples that teach nothing
        if self.num_without_labels == len(lengths):
            raise ValueError(
                f"no sample of {len(lengths)} has a label (labels={labels}): nothing would be learned"
            )
        if self.num_without_labels:
            silent = f"{self.num_without_labels} of {len(lengths)} samples"
            message = f"{silent} have no label (labels={labels}) and teach nothing"
            warnings.warn(message, stacklevel=2)
        self.lengths, self._layout, self.labels = lengths, layout, labels
        # As Arrow: datasets' numpy format copies row by row, which took 40 % of a small model's step.
        self._dataset = dataset.select_columns(list(_COLUMNS)).with_format("arrow")
        self._ids = dataset.select_columns(["input_ids"]).with_format("arrow")
        self.samples = self  # as packed samples have theirs

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def ids_of(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Token ids of several samples, int32 (length,) each."""
        return _lists(self._ids[[int(i) for i in indices]]["input_ids"])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several samples in one read; `DataLoader` calls it."""
        table = self._dataset[[int(i) for i in indices]]
        samples = []
        for ids, spoken in zip(*map(_lists, (table[n] for n in _COLUMNS[:2])), strict=True):
            labels = make_labels(ids, spoken, self._layout, self.labels)
            samples.append({"input_ids": ids, "labels": labels, "length": len(ids)})
        return samples


def _lists(column: pa.ChunkedArray) -> list[np.ndarray]:
    """A column of lists of integers → int32 arrays, one a sample."""
    lists = column.combine_chunks()
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int32, copy=False)
    ends = np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))
    return [values[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def _inspect(
    dataset: datasets.Dataset, layout: VocabularyLayout, labels: Labels
) -> tuple[np.ndarray, np.ndarray]:
    """Length of each sample, and how many of its tokens are predicted, int32 each.

    One pass over the columns before training, so that what is wrong with a sample is named then.
    """
    lengths, counts = [], []
    start = 0
    for table in dataset.select_columns(list(_COLUMNS)).with_format("arrow").iter(batch_size=1000):
        ids, masks = (table[name].combine_chunks() for name in ("input_ids", "assistant_masks"))
        sizes, spoken_sizes = (
            part.value_lengths().to_numpy(zero_copy_only=False) for part in (ids, masks)
        )
        for name, other in (
            ("assistant_masks", spoken_sizes),
            ("length", table["length"].to_numpy()),
        ):
            if wrong := np.flatnonzero(sizes != other)[:1].tolist():
                sample = start + wrong[0]
                raise ValueError(
                    f"sample {sample} (id {dataset[sample].get('id', sample)!r}): input_ids has {sizes[wrong[0]]} values, "
                    f"but {name} says {other[wrong[0]]}"
                )
        values = ids.flatten().to_numpy(zero_copy_only=False)
        spoken = masks.flatten().to_numpy(zero_copy_only=False)
        outside = np.flatnonzero((values < 0) | (values >= layout.size))
        ends = np.cumsum(sizes)
        if len(outside):
            sample = start + int(np.searchsorted(ends, outside[0], side="right"))
            raise ValueError(
                f"sample {sample} (id {dataset[sample].get('id', sample)!r}): input_ids must be in [0, {layout.size}), got "
                f"{values[outside[0]]}"
            )
        predicted = _predicted(values, spoken, layout, labels)
        predicted[(ends - sizes)[sizes > 0]] = False  # nothing stands before a sample's first token
        sums = np.concatenate([[0], np.cumsum(predicted)])
        lengths.append(sizes.astype(np.int32))
        counts.append((sums[ends] - sums[ends - sizes]).astype(np.int32))
        start += len(sizes)
    empty = np.empty(0, np.int32)
    return np.concatenate([empty, *lengths]), np.concatenate([empty, *counts])


def _predicted(
    input_ids: np.ndarray, assistant_masks: np.ndarray, layout: VocabularyLayout, labels: Labels
) -> np.ndarray:
    """Which tokens are predicted, bool; see `make_labels`."""
    if labels == "assistant":
        return np.asarray(assistant_masks) != 0
    if labels == "text":
        return np.asarray(input_ids) < layout.text_size
    if labels == "all":
        return np.ones(len(input_ids), bool)
    raise ValueError(f"labels must be one of {', '.join(get_args(Labels))}, got {labels!r}")


def make_labels(
    input_ids: np.ndarray, assistant_masks: np.ndarray, layout: VocabularyLayout, labels: Labels
) -> np.ndarray:
    """The labels of one sample, not shifted.

    Args:
        input_ids: int (length,), token ids.
        assistant_masks: int (length,), 1 where the assistant speaks.
        labels: `"assistant"`, `"text"` (ids below T: neither image tokens nor the special tokens around
            them) or `"all"`.

    Returns:
        int32 (length,): the ids, -100 where nothing is predicted. The first is always -100: nothing
        stands before it.
    """
    if len(input_ids) != len(assistant_masks):
        raise ValueError(
            f"input_ids and assistant_masks must have one length, got {len(input_ids)} and {len(assistant_masks)}"
        )
    predicted = _predicted(input_ids, assistant_masks, layout, labels)
    chosen = np.where(predicted, input_ids, IGNORE_INDEX).astype(np.int32)
    chosen[:1] = IGNORE_INDEX
    return chosen


class LengthGroupedSampler(Sampler[int]):
    """Indices of samples, such that each run of `batch_size` has samples of similar length.

    Args:
        batch_size: samples a step, gradient accumulation included.
        seed: with the epoch, decides the order.
        batches_per_chunk: samples are sorted by length within random chunks of so many batches.
    """

    def __init__(
        self,
        lengths: Sequence[int] | np.ndarray,
        batch_size: int,
        *,
        seed: int,
        batches_per_chunk: int = 50,
    ):
        sizes = {
            "the number of samples": len(lengths), "batch_size": batch_size,
            "batches_per_chunk": batches_per_chunk,
        }  # fmt: skip
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be positive, got {value}")
        self.lengths = torch.as_tensor(lengths)
        self.batch_size = batch_size
        self.chunk_size = batch_size * batches_per_chunk
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        batches: list[torch.Tensor] = []
        for chunk in order.split(self.chunk_size):
            by_length = chunk[self.lengths[chunk].argsort(descending=True, stable=True)]
            batches += by_length.split(self.batch_size)
        # A short batch stays last, or it would shift the borders of all that follow.
        short = [batches.pop()] if len(batches[-1]) < self.batch_size else []
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[i].tolist()
        for batch in short:
            yield from batch.tolist()
