"""counts → the next merge rule: the listed keys, their counts, and a lazy heap.

A key's count never rises after the step that made its newer token. So a heap entry that is out of date is
too high, and is put back with its true count when it surfaces; and a key that falls below the threshold
can be forgotten until the cells are counted afresh with a lower one.
"""

from __future__ import annotations

import numpy as np

from .._jit import kernel
from .kernels import view_of


@kernel
def _before(columns, one, one_count, other, other_count):
    """Does the key `one` come out of the heap before `other`? The law's order."""
    if one_count != other_count:
        return one_count > other_count
    for i in range(4):
        if columns[one, i] != columns[other, i]:
            return columns[one, i] < columns[other, i]
    return False


@kernel
def _push(columns, heap, size, key, count):
    """Append (count, key) to the heap of `size` entries, and sift it up."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if not _before(columns, key, count, heap[parent, 1], heap[parent, 0]):
            break
        heap[i, 0], heap[i, 1] = heap[parent, 0], heap[parent, 1]
        i = parent
    heap[i, 0], heap[i, 1] = count, key
    return size + 1


@kernel
def _drop_top(columns, heap, size):
    """Remove the first entry: the last one takes its place, and sifts down."""
    size -= 1
    count, key = heap[size, 0], heap[size, 1]
    i = 0
    while 2 * i + 1 < size:
        child = 2 * i + 1
        if child + 1 < size and _before(
            columns, heap[child + 1, 1], heap[child + 1, 0], heap[child, 1], heap[child, 0]
        ):
            child += 1
        if not _before(columns, heap[child, 1], heap[child, 0], key, count):
            break
        heap[i, 0], heap[i, 1] = heap[child, 0], heap[child, 1]
        i = child
    heap[i, 0], heap[i, 1] = count, key
    return size


@kernel
def _pop_best(columns, counts, heap, size, theta):
    """The best key with a count of at least theta, or -1; and the new size of the heap."""
    while size > 0:
        count, key = heap[0, 0], heap[0, 1]
        size = _drop_top(columns, heap, size)
        if counts[key] == count:
            return key, size
        if counts[key] >= theta:
            size = _push(columns, heap, size, key, counts[key])
    return -1, size


@kernel
def _link(columns, links, heads, heap, size, counts, begin, end):
    """Enter new keys into the heap and into the lists of their tokens."""
    for key in range(begin, end):
        for side in range(2):
            token = columns[key, side]
            if side == 1 and token == columns[key, 0]:
                continue
            links[key, side] = heads[token]
            heads[token] = key
        size = _push(columns, heap, size, key, counts[key])
    return size


@kernel
def _views_at(columns, counts, links, heads, floor, token, side, row, col, views, keys, sides, n):
    """Append the views that the keys of `token` see, the token standing at (row, col) of the new one."""
    before, key = -1, heads[token]
    while key != -1:
        own = 0 if columns[key, 0] == token else 1
        following = links[key, own]
        if counts[key] < floor:  # never needed again: leave it out of the list
            if before == -1:
                heads[token] = following
            else:
                links[before, 0 if columns[before, 0] == token else 1] = following
            key = following
            continue
        for look in range(2):
            if columns[key, look] == token:
                sign = 1 if look == 0 else -1
                if n == views.shape[0]:
                    views = np.append(views, np.empty_like(views))
                    keys = np.append(keys, np.empty_like(keys))
                    sides = np.append(sides, np.empty_like(sides))
                views[n] = view_of(
                    columns[key, 1 - look],
                    row + sign * columns[key, 2],
                    col + sign * columns[key, 3],
                )
                keys[n] = key
                sides[n] = side
                n += 1
        before, key = key, following
    return views, keys, sides, n


@kernel
def _views_of_rule(columns, counts, links, heads, floor, rule_key, row, col):
    """The views of the listed keys of a rule's two tokens, the keys, and the sides (0 first, 1 second).

    The second token stands at (row, col).
    """
    views = np.empty(64, np.int64)
    keys = np.empty(64, np.int64)
    sides = np.empty(64, np.int64)
    views, keys, sides, n = _views_at(
        columns, counts, links, heads, floor, columns[rule_key, 0], 0, 0, 0, views, keys, sides, 0
    )
    views, keys, sides, n = _views_at(
        columns, counts, links, heads, floor, columns[rule_key, 1], 1, row, col, views, keys, sides, n,
    )  # fmt: skip
    return views[:n], keys[:n], sides[:n]


@kernel
def _subtract(counts, keys, lost):
    for i in range(keys.shape[0]):
        counts[keys[i]] -= lost[i]


class KeyTable:
    """The keys with at least `theta` occurrences, numbered as they came.

    Args:
        vocab_size: how many ids there can be.
        theta: keys below this count are not listed.
        floor: listed keys below this count are forgotten.
        merge_rule: with `"pair"`, keys have no offset, and (0, 1) stands in its place.

    Attributes:
        columns: (capacity, 4) int64, the keys: first, second, row_offset, col_offset.
        counts: (capacity,) int64.
        size: how many keys there are.
    """

    def __init__(self, vocab_size: int, theta: int, floor: int, merge_rule: str):
        self.theta = theta
        self.floor = floor
        self.size = 0
        self.columns = np.empty((1024, 4), np.int64)
        self.counts = np.empty(1024, np.int64)
        self._by_shape = merge_rule == "shape"
        self._links = np.empty((1024, 2), np.int64)
        self._heads = np.full(vocab_size, -1, np.int64)
        self._heap = np.empty((1024, 2), np.int64)
        self._heap_size = 0

    def add(self, columns: np.ndarray, counts: np.ndarray) -> None:
        """Append keys, (n, 4), with their counts, (n,)."""
        begin, end = self.size, self.size + len(columns)
        if end > len(self.columns):
            for name in ("columns", "counts", "_links", "_heap"):
                setattr(self, name, lengthened(getattr(self, name), 2 * end))
        self.columns[begin:end] = columns
        self.counts[begin:end] = counts
        self.size = end
        self._heap_size = _link(
            self.columns, self._links, self._heads, self._heap, self._heap_size, self.counts, begin, end
        )  # fmt: skip

    def pop_best(self) -> int:
        """The number of the key that the law chooses, or -1 if none reaches theta."""
        key, self._heap_size = _pop_best(
            self.columns, self.counts, self._heap, self._heap_size, self.theta
        )
        return int(key)

    def views_of(self, key: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What the merge of `key` may take from other keys: views, key numbers, sides (see kernels.py)."""
        row, col = self.columns[key, 2:] if self._by_shape else (0, 0)
        return _views_of_rule(
            self.columns, self.counts, self._links, self._heads, self.floor, key, int(row), int(col)
        )

    def subtract(self, keys: np.ndarray, lost: np.ndarray) -> None:
        """Lower the counts of `keys` (a key may stand there more than once)."""
        _subtract(self.counts, keys, lost)


def lengthened(array: np.ndarray, length: int) -> np.ndarray:
    longer = np.empty((length, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
