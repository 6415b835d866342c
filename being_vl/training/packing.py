"""samples → sequences: several samples in one sequence, each as if it stood alone.

Sequence packing without contamination (Krell et al. 2021), of two kinds: samples that share nothing, whose
positions begin anew; and samples that share an image, which stands once, at the front: every
question-answer pair sees the image and itself, and its positions go on from the end of the image. Losses
and logits equal those of the separate samples. Bins are filled best-fit-decreasing, as TRL packs (Ding et
al. 2024, "Fewer Truncations Improve Language Modeling"); a sample is never cut, and a plan of sample
numbers is kept instead of a second copy of the tokens.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from .samples import IGNORE_INDEX, TokenizedSamples

PAD_SEGMENT = -1
SHARED_SEGMENT = 0
_READ_AT_ONCE = 1000


class _Sequences(Dataset):
    """Sequences of several samples each: `_bins` says which, `_sequence` makes one of what was read."""

    samples: TokenizedSamples
    lengths: np.ndarray
    _bins: list[np.ndarray]

    def _sequence(self, members: np.ndarray, samples: list[dict[str, Any]]) -> dict[str, Any]:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self._bins)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Several sequences in one read; `DataLoader` calls it."""
        bins = [self._bins[index] for index in indices]
        read = iter(self.samples.__getitems__(np.concatenate(bins).tolist()))
        return [self._sequence(bin_, [next(read) for _ in bin_]) for bin_ in bins]


class PackedSamples(_Sequences):
    """Several samples a sequence of at most `max_length` tokens, each as if it stood alone; see `pack_samples`."""

    def __init__(self, samples: TokenizedSamples, max_length: int):
        self.samples = samples
        self._bins = best_fit(samples.lengths, max_length)
        self.lengths = np.array([samples.lengths[bin_].sum() for bin_ in self._bins], np.int32)

    def _sequence(self, members: np.ndarray, samples: list[dict[str, Any]]) -> dict[str, Any]:
        return pack_samples(samples)


class SharedImageSamples(_Sequences):
    """Samples about the same image in one sequence, the image once; see `packing.pack_shared_image`.

    Samples share a sequence when they agree on every token up to the end of their first image. Samples without
    an image share their first token.

    Args:
        samples: with labels on what the assistant says.
        max_length: the most tokens of a sequence. What does not fit begins another sequence with the image again.
    """

    def __init__(self, samples: TokenizedSamples, *, eoi_token_id: int, max_length: int):
        if samples.labels != "assistant":
            raise ValueError(
                f"packing=shared_image needs labels=assistant, got {samples.labels!r}: a label before the end of "
                "the image would count once for all questions"
            )
        self.samples = samples
        groups: dict[bytes, list[int]] = {}
        self._prefixes = prefixes = np.empty(len(samples), np.int32)
        starts = range(0, len(samples), _READ_AT_ONCE)
        for start in tqdm(starts, desc="finding shared images", unit="k samples", leave=False):
            indices = range(start, min(start + _READ_AT_ONCE, len(samples)))
            for index, ids in zip(indices, samples.ids_of(indices), strict=True):
                prefixes[index] = shared_prefix(ids, eoi_token_id)
                key = blake2b(ids[: prefixes[index]].tobytes(), digest_size=16).digest()
                groups.setdefault(key, []).append(index)
        self._bins: list[np.ndarray] = []
        lengths = []
        for group in groups.values():
            members, prefix = np.array(group), int(prefixes[group[0]])
            turns = samples.lengths[members] - prefix
            for bin_ in best_fit(turns, max_length - prefix):
                self._bins.append(members[np.sort(bin_)])
                lengths.append(prefix + turns[bin_].sum())
        self.lengths = np.array(lengths, np.int32)

    def _sequence(self, members: np.ndarray, samples: list[dict[str, Any]]) -> dict[str, Any]:
        start = int(self._prefixes[members[0]])
        if any((sample["labels"][:start] != IGNORE_INDEX).any() for sample in samples):
            raise ValueError(
                "packing=shared_image needs labels after the first image alone, but the assistant speaks before "
                f"its end in one of the samples {members.tolist()}; take packing=samples"
            )
        turns = [(sample["input_ids"][start:], sample["labels"][start:]) for sample in samples]
        return pack_shared_image(samples[0]["input_ids"][:start], turns)


def shared_prefix(input_ids: np.ndarray, eoi_token_id: int) -> int:
    """Tokens up to the end of the first image; 1 where there is none."""
    ends = np.flatnonzero(input_ids == eoi_token_id)
    return int(ends[0]) + 1 if len(ends) else 1


def best_fit(lengths: Sequence[int] | np.ndarray, capacity: int) -> list[np.ndarray]:
    """Put items into bins: the longest first, each into the fullest bin that still has room.

    Returns:
        int64 arrays of item numbers, one a bin. They depend on the lengths and their order alone.
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


def pack_samples(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One sequence of samples that do not see each other.

    transformers keeps them apart by their positions, on sdpa, eager and flash attention, when there is no
    attention mask and no cache.

    Args:
        samples: each with `input_ids` and `labels`, int (length,); the first label of each is -100.

    Returns:
        `input_ids`, `labels` and `position_ids`, int32 (total length,), and `length`.
    """
    if not samples:
        raise ValueError("a sequence needs at least one sample, got none")
    for number, sample in enumerate(samples):
        if sample["labels"][0] != IGNORE_INDEX:
            raise ValueError(
                f"sample {number}: its first token cannot be a label, nothing stands before it"
            )
    sequence = {
        name: np.concatenate([sample[name] for sample in samples]).astype(np.int32)
        for name in ("input_ids", "labels")
    }
    positions = [np.arange(len(sample["input_ids"]), dtype=np.int32) for sample in samples]
    sequence["position_ids"] = np.concatenate(positions)
    return {**sequence, "length": len(sequence["input_ids"])}


def pack_shared_image(
    prefix_ids: Sequence[int], turns: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> dict[str, Any]:
    """One sequence of an image and its questions.

    Returns:
        `input_ids`, `labels`, `position_ids`, `segment_ids` (0 for the prefix, then 1, 2, … for the
        turns), each np.int32 (length,), and `length`.
    """
    start = len(prefix_ids)
    if not start:
        raise ValueError("prefix_ids must hold at least one token, got none")
    for number, (turn_ids, turn_labels) in enumerate(turns, start=1):
        if len(turn_ids) != len(turn_labels):
            raise ValueError(f"turn {number} has {len(turn_ids)} ids but {len(turn_labels)} labels")
    lengths = [len(turn_ids) for turn_ids, _ in turns]
    columns: dict[str, Any] = {
        "input_ids": [prefix_ids, *(turn_ids for turn_ids, _ in turns)],
        "labels": [np.full(start, IGNORE_INDEX), *(turn_labels for _, turn_labels in turns)],
        "position_ids": [np.arange(start), *(np.arange(start, start + n) for n in lengths)],
        "segment_ids": [np.repeat(np.arange(len(lengths) + 1), [start, *lengths])],
    }
    sequence = {name: np.concatenate(column).astype(np.int32) for name, column in columns.items()}
    # A turn's first token would otherwise be predicted from the end of the turn before it.
    starts = np.flatnonzero(np.diff(sequence["segment_ids"]) > 0) + 1
    if np.any(sequence["labels"][starts] != IGNORE_INDEX):
        raise ValueError(
            "the first token of a turn cannot be a label: it has no turn of its own before it"
        )
    return {**sequence, "length": len(sequence["input_ids"])}
