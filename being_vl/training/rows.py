"""tokenized samples → rows: labels, and the packing of several samples into one row.

Source: map-style data sets over memory-mapped Arrow files; best-fit-decreasing bins, as TRL packs (Ding et
al. 2024, "Fewer Truncations Improve Language Modeling"). It differs in that a sample is never cut, and that
a plan of row numbers is kept instead of a second copy of the tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .labels import Labels, make_labels
from .packing import IGNORE_INDEX, pack_samples, pack_shared_image

if TYPE_CHECKING:
    import datasets

    from ..vocabulary import VocabularyLayout

_COLUMNS = ("input_ids", "assistant_masks", "length")
_READ_AT_ONCE = 1000


class TokenizedRows(Dataset):
    """The samples of a tokenized data set with their labels, one sample a row.

    Args:
        dataset: has the columns `id`, `input_ids`, `assistant_masks` and `length` of `being-vl tokenize`.
        layout: the model's vocabulary.
        labels: which tokens are predicted, see `labels.make_labels`.
        max_length: the most tokens of a sample.
        drop_long: leave longer samples out.

    Raises:
        ValueError: a column is missing, no sample is left, or one is longer than `max_length` (named).
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
        lengths = np.asarray(dataset.with_format("numpy")["length"][:], np.int32)
        if max_length is not None and (lengths > max_length).any():
            if not drop_long:
                first = int(np.argmax(lengths > max_length))
                name = dataset[first].get("id", first)
                raise ValueError(
                    f"row {first} (id {name!r}) has {lengths[first]} tokens, but max_length is {max_length}; "
                    "drop_long leaves such rows out"
                )
            kept = np.flatnonzero(lengths <= max_length)
            dataset, lengths = dataset.select(kept), lengths[kept]
        if not len(lengths):
            raise ValueError("the data set has no rows to train on")
        self.lengths = lengths
        self._layout = layout
        self.labels = labels
        columns = dataset.select_columns(list(_COLUMNS))
        self._dataset = columns.with_format("numpy", dtype=np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def ids_of(self, indices: Sequence[int]) -> list[np.ndarray]:
        """Token ids of several samples, int32 (length,) each."""
        return list(self._dataset.select_columns(["input_ids"])[list(indices)]["input_ids"])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several rows in one read; `DataLoader` calls it."""
        columns = self._dataset[[int(i) for i in indices]]
        return [
            {
                "input_ids": ids,
                "labels": make_labels(ids, spoken, self._layout, self.labels),
                "length": len(ids),
            }
            for ids, spoken in zip(columns["input_ids"], columns["assistant_masks"], strict=True)
        ]


class PackedSamples(Dataset):
    """Several samples a row, each as if it stood alone; see `packing.pack_samples`.

    Args:
        rows: the samples.
        max_length: the most tokens of a row.
    """

    def __init__(self, rows: TokenizedRows, max_length: int):
        self._rows = rows
        self._bins = best_fit(rows.lengths, max_length)
        self.lengths = np.array([rows.lengths[bin_].sum() for bin_ in self._bins], np.int32)

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return pack_samples(self._rows.__getitems__(self._bins[index]))


class SharedImageRows(Dataset):
    """Samples about the same image in one row, the image once; see `packing.pack_shared_image`.

    Samples share a row when they agree on every token up to the end of their first image. Samples without
    an image share their first token.

    Args:
        rows: the samples, with labels on what the assistant says.
        eoi_token_id: the end of an image.
        max_length: the most tokens of a row. What does not fit begins another row with the image again.

    Raises:
        ValueError: the labels are others. When a row is read: the assistant speaks before the first image
            ends.
    """

    def __init__(self, rows: TokenizedRows, *, eoi_token_id: int, max_length: int):
        if rows.labels != "assistant":
            raise ValueError(
                f"packing=shared_image needs labels=assistant, got {rows.labels!r}: a label before the end of "
                "the image would count once for all questions"
            )
        self._rows = rows
        groups: dict[bytes, list[int]] = {}
        prefixes = np.empty(len(rows), np.int32)
        for index, ids in enumerate(_all_ids(rows)):
            prefixes[index] = shared_prefix(ids, eoi_token_id)
            key = blake2b(ids[: prefixes[index]].tobytes(), digest_size=16).digest()
            groups.setdefault(key, []).append(index)
        self._prefixes = prefixes
        self._bins: list[np.ndarray] = []
        lengths = []
        for group in groups.values():
            members, prefix = np.array(group), int(prefixes[group[0]])
            turns = rows.lengths[members] - prefix
            for bin_ in best_fit(turns, max_length - prefix):
                self._bins.append(members[np.sort(bin_)])
                lengths.append(prefix + turns[bin_].sum())
        self.lengths = np.array(lengths, np.int32)

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        samples = self._rows.__getitems__(self._bins[index])
        start = int(self._prefixes[self._bins[index][0]])
        if any((sample["labels"][:start] != IGNORE_INDEX).any() for sample in samples):
            raise ValueError(
                "packing=shared_image needs labels after the first image alone, but the assistant speaks before "
                f"its end in one of the rows {self._bins[index].tolist()}; take packing=samples"
            )
        turns = [(sample["input_ids"][start:], sample["labels"][start:]) for sample in samples]
        return pack_shared_image(samples[0]["input_ids"][:start], turns)


def shared_prefix(input_ids: np.ndarray, eoi_token_id: int) -> int:
    """Tokens up to the end of the first image; 1 where there is none."""
    ends = np.flatnonzero(input_ids == eoi_token_id)
    return int(ends[0]) + 1 if len(ends) else 1


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Put items into bins: the longest first, each into the fullest bin that still has room.

    Args:
        lengths: of the items, int.
        capacity: of a bin.

    Returns:
        int64 arrays of item numbers, one a bin. They depend on the lengths and their order alone.

    Raises:
        ValueError: an item is longer than a bin.
    """
    lengths = np.asarray(lengths)
    if len(lengths) and lengths.max() > capacity:
        raise ValueError(
            f"item {int(lengths.argmax())} has length {int(lengths.max())}, but a bin holds {capacity}"
        )
    bins: list[list[int]] = []
    room: list[int] = []  # the distinct free spaces, ascending
    with_room: dict[int, list[int]] = {}  # free space → bins that have it
    for item in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[item])
        place = bisect.bisect_left(room, length)
        if place < len(room):
            left = room[place]
            number = with_room[left].pop()
            if not with_room[left]:
                del with_room[left], room[place]
        else:
            left, number = capacity, len(bins)
            bins.append([])
        bins[number].append(item)
        left -= length
        if left not in with_room:
            bisect.insort(room, left)
            with_room[left] = []
        with_room[left].append(number)
    return [np.array(bin_, np.int64) for bin_ in bins]


def _all_ids(rows: TokenizedRows) -> Iterable[np.ndarray]:
    starts = range(0, len(rows), _READ_AT_ONCE)
    for start in tqdm(starts, desc="finding shared images", unit="k rows", leave=False):
        indices = range(start, min(start + _READ_AT_ONCE, len(rows)))
        yield from rows.ids_of(indices)
