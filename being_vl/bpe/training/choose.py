"""counts → the next merge rules: the listed keys, their counts, and a lazy heap.

A key's count never rises after the step that made its newer token. Two things follow. A heap entry that is
out of date is too high, and is put back with its true count when it surfaces. And a key below the threshold
`theta` can be forgotten without changing any rule that reaches it: what is chosen is exact until the heap
runs dry; then everything is counted afresh with a lower theta.

Rules are chosen in batches: the best keys, as long as no two of them share a token. They are what the law
chooses one by one. A merge changes only the counts of keys that hold one of its two tokens, so the others keep
their place. And no new key comes before one of them: since shapes are fixed, a neighbour x of c = (a, b) at one
offset touches a at one offset, or b. So the key of a and x, or of b and x, was listed with at least the count of
the new one, and it wins a tie, c being the newest id. It came earlier, and ended the batch: it shares a token.
"""

from __future__ import annotations

import numpy as np

from .._jit import inlined, kernel

BIAS = 1 << 16  # offsets lie in ±65535; packed, they are not negative
MAX_BATCH = 64


@inlined
def tokens_of(first, second):
    return (first << 32) | second


@inlined
def offset_of(row, col):
    """Rows are never negative in a key."""
    return (row << 17) | (col + BIAS)


@inlined
def hash_of(tokens, offset):
    """41 bits. Tokens stay below 2**24 and offsets below 2**33, so that no product leaves 63 bits."""
    h = (tokens >> 32) * 0x9E3779B1 + (tokens & 0xFFFFFFFF)
    h ^= h >> 29
    h = (h & 0xFFFFFFF) * 0x5851F42D + offset * 0x2545F491
    h ^= h >> 27
    return ((h & 0x3FFFFFFF) * 0x6C078965) >> 20


def packed(columns):
    """Keys, (n, 4), as tokens and offsets, (n,) each."""
    tokens = (columns[:, 0] << 32) | columns[:, 1]
    return tokens, (columns[:, 2] << 17) | (columns[:, 3] + BIAS)


@inlined
def find_key(index, tokens, offsets, wanted_tokens, wanted_offset):
    """The number of a key, or -1.

    A slot of the index holds 21 bits of a key's hash above its number plus one: nearly always, a key that is
    not listed is told from one that is without a look at it.
    """
    h = hash_of(wanted_tokens, wanted_offset)
    mask, tag = index.shape[0] - 1, h >> 20
    i = h & mask
    while index[i] != 0:
        if index[i] >> 32 == tag:
            key = (index[i] & 0xFFFFFFFF) - 1
            if tokens[key] == wanted_tokens and offsets[key] == wanted_offset:
                return key
        i = (i + 1) & mask
    return -1


@inlined
def _before(heap, one, other):
    """Does one entry (count, tokens, offset, key) come out before the other? The law's order.

    Tokens and offsets are packed so that their order as integers is the lexicographic order of keys.
    """
    if heap[one, 0] != heap[other, 0]:
        return heap[one, 0] > heap[other, 0]
    if heap[one, 1] != heap[other, 1]:
        return heap[one, 1] < heap[other, 1]
    return heap[one, 2] < heap[other, 2]


@kernel
def _push(heap, size, count, tokens, offset, key):
    """Append an entry to the heap of `size` entries, and sift it up."""
    i = size
    heap[i, 0], heap[i, 1], heap[i, 2], heap[i, 3] = count, tokens, offset, key
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(heap, i, parent):
            break
        for j in range(4):
            heap[i, j], heap[parent, j] = heap[parent, j], heap[i, j]
        i = parent
    return size + 1


@kernel
def _drop_top(heap, size):
    """Remove the first entry: the last one takes its place, and sifts down."""
    size -= 1
    for j in range(4):
        heap[0, j] = heap[size, j]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _before(heap, child + 1, child):
            child += 1
        if not _before(heap, child, i):
            break
        for j in range(4):
            heap[i, j], heap[child, j] = heap[child, j], heap[i, j]
        i = child
    return size


@kernel
def _choose(heap, size, counts, theta, most, budget, room, num_cells, taken, stamp, batch):
    """Take the best keys off the heap while they share no token; how many, and the heap's size.

    `taken` marks the tokens of this batch with `stamp`. A batch ends at `most` keys, or at `budget`
    occurrences, so that what merging them lays aside stays in the processor's cache. `room` is how many
    cells all tokens together may still have.
    """
    n = 0
    while size > 0 and n < most and budget > 0:
        key, first, second = heap[0, 3], heap[0, 1] >> 32, heap[0, 1] & 0xFFFFFFFF
        count = counts[key]
        if count != heap[0, 0]:
            tokens, offset = heap[0, 1], heap[0, 2]
            size = _drop_top(heap, size)
            if count >= theta:
                size = _push(heap, size, count, tokens, offset, key)
            continue
        if taken[first] == stamp or taken[second] == stamp:
            break
        size = _drop_top(heap, size)
        if num_cells[first] + num_cells[second] > room:
            continue  # for good: the room never grows
        room -= num_cells[first] + num_cells[second]
        taken[first] = taken[second] = stamp
        batch[n] = key
        n += 1
        budget -= count
    return n, size


@kernel
def _enter(index, heap, size, counts, tokens, offsets, begin, end):
    """Enter new keys into the index and the heap."""
    mask = index.shape[0] - 1
    for key in range(begin, end):
        h = hash_of(tokens[key], offsets[key])
        i = h & mask
        while index[i] != 0:
            i = (i + 1) & mask
        index[i] = ((h >> 20) << 32) | (key + 1)
        if heap.shape[0] > 0:
            size = _push(heap, size, counts[key], tokens[key], offsets[key], key)
    return size


@kernel
def _find(index, tokens, offsets, wanted_tokens, wanted_offset):
    return find_key(index, tokens, offsets, wanted_tokens, wanted_offset)


@kernel
def _subtract(counts, losses):
    for i in range(losses.shape[0]):
        counts[losses[i, 0]] -= losses[i, 1]


@kernel
def _subtract_by_name(counts, index, tokens, offsets, losses):
    for i in range(losses.shape[0]):
        key = find_key(index, tokens, offsets, losses[i, 0], losses[i, 1])
        if key >= 0:
            counts[key] -= losses[i, 2]


@kernel
def _rules(tokens, offsets, keys, token):
    rules = np.empty((keys.shape[0], 5), np.int64)
    for i in range(keys.shape[0]):
        key = keys[i]
        rules[i, 0], rules[i, 1] = tokens[key] >> 32, tokens[key] & 0xFFFFFFFF
        rules[i, 2], rules[i, 3] = offsets[key] >> 17, (offsets[key] & 0x1FFFF) - BIAS
        rules[i, 4] = token + i
    return rules


class KeyTable:
    """The keys with at least `theta` occurrences, numbered as they came.

    Args:
        vocab_size: how many ids there can be.
        theta: keys below this count are not listed.
        num_cells: of each token.

    Attributes:
        tokens, offsets: (capacity,) int64, the keys, packed.
        counts: (capacity,) int64.
        index: (power of two,) int64: finds a key's number.
        size: how many keys there are.
    """

    def __init__(self, vocab_size: int, theta: int, num_cells: np.ndarray):
        self.theta = theta
        self.size = 0
        self.tokens = np.empty(1024, np.int64)
        self.offsets = np.empty(1024, np.int64)
        self.counts = np.empty(1024, np.int64)
        self.index = np.zeros(4096, np.int64)
        self._heap = np.empty((1024, 4), np.int64)
        self._heap_size = 0
        self._num_cells = num_cells
        self._taken = np.zeros(vocab_size, np.int64)
        self._stamp = 0
        self._batch = np.empty(MAX_BATCH, np.int64)

    def add(self, tokens: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        """Append keys, packed, with their counts, (n,) each."""
        begin, end = self.size, self.size + len(tokens)
        if end > len(self.tokens):
            for name in ("tokens", "offsets", "counts", "_heap"):
                setattr(self, name, lengthened(getattr(self, name), 2 * end))
        self.tokens[begin:end], self.offsets[begin:end] = tokens, offsets
        self.counts[begin:end] = counts
        self.size = end
        if 2 * end > len(self.index):
            self.index = np.zeros(1 << (4 * end).bit_length(), np.int64)
            nowhere = self._heap[:0]
            _enter(self.index, nowhere, 0, self.counts, self.tokens, self.offsets, 0, begin)
        self._heap_size = _enter(
            self.index, self._heap, self._heap_size, self.counts, self.tokens, self.offsets, begin, end
        )  # fmt: skip

    def choose(self, most: int, budget: int, room: int) -> np.ndarray:
        """The numbers of the keys that the law chooses next, (n,); none if no listed key reaches theta."""
        self._stamp += 1
        n, self._heap_size = _choose(
            self._heap, self._heap_size, self.counts, self.theta, min(most, MAX_BATCH), budget, room,
            self._num_cells, self._taken, self._stamp, self._batch,
        )  # fmt: skip
        return self._batch[:n].copy()

    def find(self, tokens: int, offset: int) -> int:
        """The number of a packed key, or -1."""
        return _find(self.index, self.tokens, self.offsets, tokens, offset)

    def subtract(self, losses: np.ndarray) -> None:
        """Lower counts by (key, loss) rows, (n, 2); a key may stand there more than once."""
        _subtract(self.counts, losses)

    def subtract_by_name(self, losses: np.ndarray) -> None:
        """Lower counts by (tokens, offset, loss) rows, (n, 3), as far as the keys are listed."""
        _subtract_by_name(self.counts, self.index, self.tokens, self.offsets, losses)

    def rules(self, keys: np.ndarray, token: int) -> np.ndarray:
        """(n, 5): first, second, row_offset, col_offset, and the token made, numbered from `token`."""
        return _rules(self.tokens, self.offsets, keys, token)


def lengthened(array: np.ndarray, length: int) -> np.ndarray:
    longer = np.empty((length, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
