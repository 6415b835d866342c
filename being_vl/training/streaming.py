"""a stream of tokenized samples → sequences: `--streaming`, beside the mapped rows of `samples` and `packing`.

Each process reads shards of its own (`IterableDataset.shard`), in an order and through a buffer that `datasets`
shuffles by seed and epoch. Its `state_dict` forgets what lay in the buffer; so a run that goes on reads the epoch
again from its start, and makes no sequences of what has been trained on: the batches that follow are those of a run
that never stopped.

The epoch of a stream of single samples is as long as that of the process with the most of them; the others fill
theirs with stand-ins, a token without a label, so that each sample counts once. How many sequences `packing=samples`
makes of a stream is not known before its end: such a stream has no end, and needs `max_steps`.
"""

from __future__ import annotations

import hashlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import datasets
import numpy as np
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from ..data.streaming import TokenizedStream
from ..vocabulary import VocabularyLayout
from .packing import best_fit, pack_samples
from .samples import IGNORE_INDEX, Labels, make_labels

_WINDOW = 1000  # samples that are packed together


class StreamedSamples(IterableDataset):
    """Sequences of this process, epoch after epoch, without end.

    Args:
        stream: of `stream_tokenized`.
        layout: the model's vocabulary.
        labels: see `samples.make_labels`.
        max_length: the most tokens of a sequence.
        drop_long: leave longer samples out.
        packed: several samples a sequence, as `packing=samples`; else one.
        buffer_size: samples in the buffer that shuffles.
        seed: with the epoch, decides the order.
        rank, world: this process, and how many there are.

    Raises:
        ValueError: more processes than shards. From the iterator: a sample is too long; what `stream_tokenized` says.
    """

    def __init__(
        self,
        stream: TokenizedStream,
        layout: VocabularyLayout,
        *,
        labels: Labels,
        max_length: int,
        drop_long: bool,
        packed: bool,
        buffer_size: int,
        seed: int,
        rank: int,
        world: int,
    ):
        if len(stream.shards) < world:
            raise ValueError(
                f"streaming needs a shard for each process, got {len(stream.shards)} shards for {world} processes: "
                "tokenize with a smaller --shard-size, or leave streaming out"
            )
        self._stream, self._layout, self._labels = stream, layout, labels
        self._max_length, self._drop_long, self._packed = max_length, drop_long, packed
        self._buffer_size, self._seed = buffer_size, seed
        self._rank, self._world = rank, world
        rows = stream.rows.shard(world, rank, contiguous=False)
        self._rows = rows.shuffle(seed=seed, buffer_size=buffer_size)
        self._epoch, self._passed = 0, 0
        self._is_warned = False

    def identity(self) -> dict[str, Any]:
        """What decides the order of the samples, as JSON."""
        digests = "".join(shard["sha256"] for shard in self._stream.shards)
        return {
            "samples": self._stream.samples_of(0, 1),
            "digest": hashlib.sha256(digests.encode()).hexdigest(),
            "buffer_size": self._buffer_size,
            "datasets": datasets.__version__,  # whose shuffling it is
        }

    def start(self, epoch: int, passed: int) -> None:
        """Let the next iteration begin with an epoch, whose first `passed` sequences nobody will look at."""
        self._epoch, self._passed = epoch, passed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        passed, self._passed = self._passed, 0
        for number, members in enumerate(self._sequences()):
            yield self._made(members if number >= passed else [])

    def _sequences(self) -> Iterator[list[dict[str, Any]]]:
        """Rows of each sequence; none of a stand-in."""
        for epoch in itertools.count(self._epoch):
            yield from self._epoch_of(epoch)

    def _epoch_of(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        self._rows.set_epoch(epoch)
        rows = self._short_rows(self._rows)
        if not self._packed:
            yield from ([row] for row in rows)
            return
        rng = np.random.default_rng([self._seed, epoch, self._rank])
        while window := list(itertools.islice(rows, _WINDOW)):
            bins = best_fit([len(row["input_ids"]) for row in window], self._max_length)
            for number in rng.permutation(len(bins)):
                yield [window[member] for member in np.sort(bins[number])]

    def _short_rows(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            if len(row["input_ids"]) <= self._max_length:
                yield row
                continue
            said = f"{row['where']} has {len(row['input_ids'])} tokens, but max_length is {self._max_length}"
            if not self._drop_long:
                raise ValueError(f"{said}; drop_long leaves such samples out")
            if not self._is_warned:
                warnings.warn(f"drop_long leaves out longer samples, first: {said}", stacklevel=2)
                self._is_warned = True

    def _made(self, members: list[dict[str, Any]]) -> dict[str, Any]:
        samples = [
            {
                "input_ids": row["input_ids"],
                "labels": make_labels(
                    row["input_ids"], row["assistant_masks"], self._layout, self._labels
                ),
                "length": len(row["input_ids"]),
            }
            for row in members
        ] or [_stand_in()]
        return pack_samples(samples) if self._packed else samples[0]


def _stand_in() -> dict[str, Any]:
    return {
        "input_ids": np.zeros(1, np.int32),
        "labels": np.full(1, IGNORE_INDEX, np.int32),
        "length": 1,
    }


class StreamedEpochs(StreamedSamples):
    """`StreamedSamples` of which an iteration is one epoch, of a length that all processes share."""

    def __len__(self) -> int:
        return max(self._stream.samples_of(rank, self._world) for rank in range(self._world))

    def _sequences(self) -> Iterator[list[dict[str, Any]]]:
        none: list[dict[str, Any]] = []
        rows = itertools.chain(self._epoch_of(self._epoch), itertools.repeat(none))
        return itertools.islice(rows, len(self))


def check_streaming(args: TrainingArguments, *, packed: bool) -> None:
    """Refuse options of `Trainer` that a stream cannot follow, by name.

    Raises:
        ValueError: such an option; or `max_steps` is missing where it is needed.
    """
    for name, allowed, reason in (
        (
            "train_sampling_strategy",
            ("random",),
            "a stream knows no lengths, and has no other order",
        ),
        ("dataloader_num_workers", (0,), "reading ids takes no process of its own"),
        ("dataloader_persistent_workers", (False,), "there are none"),
    ):
        if (value := getattr(args, name)) not in allowed:
            raise ValueError(f"{name} must be {allowed[0]} with streaming, got {value!r}: {reason}")
    if packed and args.max_steps <= 0:
        raise ValueError(
            "packing=samples with streaming needs max_steps: how many sequences come of a stream is known at its end"
        )
