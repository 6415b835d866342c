"""counts → the next merge rules: the listed keys, their counts, and a lazy heap; and the shapes of their tokens.

A key's count never rises after the step that made its newer token. Two things follow. A heap entry that is
out of date is too high, and is put back with its true count when it surfaces. And a key below the threshold
`theta` can be forgotten without changing any rule that reaches it: what is chosen is exact until the heap
runs dry; then everything is counted afresh with a lower theta.

Rules are merged in batches, most of them before the law comes to them. Let k = (a, b) have n occurrences, and
let no key that comes before k in the law's order hold a or b. Then the law chooses k with n occurrences, and
nothing that it chooses earlier holds a or b, so that k may be merged now. For let r be the first such rule, of
a and x. Shapes are fixed: if x is new, each occurrence of r was one of a and a part of x, at one offset; so on
down to a token w that exists now. (a, w) has at least the count of r, hence of k, and came before k. Where
counts are equal, r comes before k only as (b, x) with b < a, since x is newer than a and b; and so does (b, w).

A rule that is merged before its turn waits in the heap with its count. Until then its token has no visual id,
and a key with that token, which the law does not know yet, keeps those of its other token from being chosen
ahead, as far as their counts are not higher.

A token's shape follows from its id alone (law, 2), so it is laid down once, when its rule is chosen. The cells of
a merged token are those of its first part and those of its second part, moved by the rule's offset; offsets are
(row, col) from the anchor, int32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .._jit import inlined, inner, kernel, unsigned

BIAS = 1 << 16  # offsets lie in ±65535; packed, they are not negative
MAX_BATCH = 255  # a rule's number in its batch has 8 bits, see `close_rule`
_MOST_PASSED = 384  # entries that are looked at for one batch
_NEVER = 1 << 62


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


class Index(NamedTuple):
    """Finds keys by a hash of 41 bits."""

    # (power of two,) int64: 21 bits of a key's hash above its number plus one, so that nearly always a key that is
    # not known is told from one that is without a look at it; 0 if free
    slots: np.ndarray
    # (power of two,) uint8: a bit for each hash of a key. Most keys that are asked for are not known, and this
    # says so from the second-level cache, where the slots, of megabytes, are not
    filter: np.ndarray
    tokens: np.ndarray  # (capacity,) int64, the keys, packed
    offsets: np.ndarray


@inlined
def may_be_known(index, h):
    """1 if a key with this hash may be known, else 0."""
    return (np.int64(index.filter[unsigned((h >> 3) & (index.filter.shape[0] - 1))]) >> (h & 7)) & 1


@inlined
def find_hashed(index, h, tokens, offset):
    """The number of a key that may be known and has this hash, or -1."""
    slots = index.slots
    mask, tag = slots.shape[0] - 1, h >> 20
    i = h & mask
    while slots[unsigned(i)] != 0:
        if slots[unsigned(i)] >> 32 == tag:
            key = (slots[unsigned(i)] & 0xFFFFFFFF) - 1
            if index.tokens[key] == tokens and index.offsets[key] == offset:
                return key
        i = (i + 1) & mask
    return -1


@inlined
def find_key(index, tokens, offset):
    """The number of a key, or -1."""
    h = hash_of(tokens, offset)
    if may_be_known(index, h) == 0:
        return -1
    return find_hashed(index, h, tokens, offset)


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


@inner
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


@inner
def _drop_top(heap, size):
    """Remove the first entry: the last one takes its place, and sifts down."""
    size -= 1
    for j in range(4):
        heap[0, j] = heap[size, j]
    i = np.int64(0)  # numba would compile `_before` once more for a literal
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
def _choose(
    heap, size, counts, tokens, tier, most, ahead, waiting, budget, room, num_cells, taken, token,
    passed, batch,
):  # fmt: skip
    """Choose keys that nothing before them can change: how many, -1 if room is short; and the heap's size.

    A key of a token must have more than `taken[token]` occurrences to be chosen before its turn; `ahead` may be.
    A batch ends at `most` keys, or at `budget` occurrences, so that what merging them lays aside stays in
    the processor's cache. `room` is how many cells all tokens together may still have. The entry of a chosen
    key is (count, tokens, offset, -1 - the token made, numbered from `token`), and stays in the heap.
    """
    n, n_passed, in_turn = 0, 0, True
    while size > 0 and n < most and budget > 0 and n_passed < passed.shape[0]:
        if not in_turn and ahead == 0:
            break
        count, names, offset, key = heap[0, 0], heap[0, 1], heap[0, 2], heap[0, 3]
        if key >= 0 and counts[key] != count:
            size = _drop_top(heap, size)
            if counts[key] >= tier:
                size = _push(heap, size, counts[key], names, offset, key)
            continue
        if key < 0:
            in_turn = False
        else:
            first, second = tokens[key] >> 32, tokens[key] & 0xFFFFFFFF
            if (n == 0 and in_turn) or (count > taken[first] and count > taken[second]):
                cells = num_cells[first] + num_cells[second]
                if cells > room and n > 0:
                    break
                if cells > room and waiting > 0:
                    n = -1
                    break
                if cells > room:
                    size = _drop_top(heap, size)
                    continue  # for good: the room never grows
                ahead -= 0 if in_turn else 1
                room -= cells
                budget -= count
                batch[n] = key
                key = -1 - (token + n)
                n += 1
            else:
                in_turn = False
            taken[first] = taken[second] = _NEVER
        size = _drop_top(heap, size)
        passed[n_passed, 0], passed[n_passed, 1] = count, names
        passed[n_passed, 2], passed[n_passed, 3] = offset, key
        n_passed += 1
    for i in range(n_passed):
        size = _push(heap, size, passed[i, 0], passed[i, 1], passed[i, 2], passed[i, 3])
    return n, size


@kernel
def _rank(
    heap, size, counts, tokens, offsets, tier, most, visual_ids, next_id, heads, nexts, ranked
):  # fmt: skip
    """Number the waiting rules whose turn has come: how many, and the heap's size."""
    n = 0
    while size > 0 and n < most:
        count, names, offset, key = heap[0, 0], heap[0, 1], heap[0, 2], heap[0, 3]
        if key >= 0 and counts[key] == count:
            break
        size = _drop_top(heap, size)
        if key >= 0:
            if counts[key] >= tier:
                size = _push(heap, size, counts[key], names, offset, key)
            continue
        ranked[n] = -1 - key
        visual_ids[-1 - key] = next_id + n
        n += 1
        key, heads[ranked[n - 1]] = heads[ranked[n - 1]], -1
        while key >= 0:
            following = nexts[key]
            if counts[key] >= tier:
                size = _enter_heap(
                    heap, size, counts, tokens, offsets, visual_ids, heads, nexts, key
                )
            key = following
    return n, size


@inner
def _enter_heap(heap, size, counts, tokens, offsets, visual_ids, heads, nexts, key):
    """Push a key, or let it wait with one of its tokens that has no visual id; returns the heap's size."""
    for token in (tokens[key] >> 32, tokens[key] & 0xFFFFFFFF):
        if visual_ids[token] < 0:
            nexts[key], heads[token] = heads[token], key
            return size
    names = tokens_of(visual_ids[tokens[key] >> 32], visual_ids[tokens[key] & 0xFFFFFFFF])
    return _push(heap, size, counts[key], names, offsets[key], key)


@kernel
def _take_waiting(taken, counts, tokens, visual_ids, heads, nexts, begin, end):
    """Set `taken` to the highest count of each token's keys that wait for one of the tokens [begin, end)."""
    taken[:] = 0
    for token in range(begin, end):
        key = heads[token]
        while key >= 0:
            for one in (tokens[key] >> 32, tokens[key] & 0xFFFFFFFF):
                taken[one] = max(taken[one], counts[key])
            key = nexts[key]


@kernel
def _fill_index(index, begin, end):
    """Enter keys into the index."""
    slots = index.slots
    mask = slots.shape[0] - 1
    for key in range(begin, end):
        h = hash_of(index.tokens[key], index.offsets[key])
        index.filter[(h >> 3) & (index.filter.shape[0] - 1)] |= np.uint8(1 << (h & 7))
        i = h & mask
        while slots[i] != 0:
            i = (i + 1) & mask
        slots[i] = ((h >> 20) << 32) | (key + 1)


@kernel
def _enter(heap, size, counts, tokens, offsets, tier, visual_ids, heads, nexts, begin, end):
    for key in range(begin, end):
        if counts[key] >= tier:
            size = _enter_heap(heap, size, counts, tokens, offsets, visual_ids, heads, nexts, key)
    return size


@kernel
def _find(index, tokens, offset):
    return find_key(index, tokens, offset)


@kernel
def _subtract(counts, losses):
    for i in range(losses.shape[0]):
        counts[losses[i, 0]] -= losses[i, 1]


@kernel
def _subtract_by_name(counts, index, losses):
    for i in range(losses.shape[0]):
        key = find_key(index, losses[i, 0], losses[i, 1])
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


@kernel
def _lay_cells(rules, codebook_size, starts, offsets, num_cells, boxes, token):
    """Append the cells and the bounding boxes of the tokens of `rules`, the first of which is `token`."""
    for i in range(rules.shape[0]):
        at = starts[token - codebook_size]
        top, bottom, left, right = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        for side in range(2):
            part = rules[i, side]
            row, col = (rules[i, 2], rules[i, 3]) if side == 1 else (np.int64(0), np.int64(0))
            n = num_cells[part]
            if part < codebook_size:
                offsets[at, 0], offsets[at, 1] = row, col
            else:
                begin = starts[part - codebook_size]
                for k in range(n):
                    offsets[at + k, 0] = offsets[begin + k, 0] + row
                    offsets[at + k, 1] = offsets[begin + k, 1] + col
            at += n
            top, bottom = min(top, boxes[part, 0] + row), max(bottom, boxes[part, 1] + row)
            left, right = min(left, boxes[part, 2] + col), max(right, boxes[part, 3] + col)
        boxes[token, 0], boxes[token, 1] = top, bottom
        boxes[token, 2], boxes[token, 3] = left, right
        num_cells[token] = num_cells[rules[i, 0]] + num_cells[rules[i, 1]]
        token += 1
        starts[token - codebook_size] = at


@kernel
def _surround(token, end, codebook_size, first_cells, starts, offsets, boxes, around, ends):
    """The cells around the tokens [token, end), and which part of a token each of them touches.

    Rows of `around` are (row, col, touches): bit 0 for the first part, bit 1 for the second. A bitmap of the
    bounding box and a border of one cell holds a cell's part.
    """
    n = 0
    for i in range(end - token):
        begin, stop = starts[token + i - codebook_size], starts[token + i + 1 - codebook_size]
        top, left = boxes[token + i, 0] - 1, boxes[token + i, 2] - 1
        height, width = boxes[token + i, 1] - top + 2, boxes[token + i, 3] - left + 2
        parts = np.zeros((height, width), np.uint8)
        for k in range(begin, stop):
            part = 1 if k - begin < first_cells[i] else 2
            parts[offsets[k, 0] - top, offsets[k, 1] - left] = part
        for row in range(height):
            for col in range(width):
                if parts[row, col] != 0:
                    continue
                touches = 0
                if row > 0:
                    touches |= parts[row - 1, col]
                if row + 1 < height:
                    touches |= parts[row + 1, col]
                if col > 0:
                    touches |= parts[row, col - 1]
                if col + 1 < width:
                    touches |= parts[row, col + 1]
                if touches != 0:
                    around[n, 0], around[n, 1], around[n, 2] = row + top, col + left, touches
                    n += 1
        ends[i + 1] = n
    return n


class Shapes:
    """The shapes of `codebook_size` single cells and of the merges added to them, numbered as they are made.

    With `merge_rule="pair"` a token has a number of cells, but no shape.

    Attributes:
        size: how many tokens there are.
        capacity: how many there can be.
        visual_ids: (capacity,) int64, the law's number of each token; -1 until it is known.
        num_cells: (capacity,) int64.
        boxes: (capacity, 4) int64: first and last row, first and last column, relative to the anchor.
        starts, offsets: the cells of token t, t ≥ codebook_size, are
            `offsets[starts[t - codebook_size]:starts[t - codebook_size + 1]]`.
    """

    def __init__(self, codebook_size: int, capacity: int, merge_rule: str):
        self.codebook_size = codebook_size
        self.merge_rule = merge_rule
        self.size = codebook_size
        self.capacity = capacity
        self.visual_ids = np.full(capacity, -1, np.int64)
        self.visual_ids[:codebook_size] = np.arange(codebook_size)
        self.num_cells = np.ones(capacity, np.int64)
        self.boxes = np.zeros((capacity, 4), np.int64)
        self.starts = np.zeros(capacity - codebook_size + 1, np.int64)
        self.offsets = np.empty((1024, 2), np.int32)
        self._first_cells = np.zeros(capacity, np.int64)

    @property
    def total_cells(self) -> int:
        """The cells of all merged tokens together."""
        return int(self.num_cells[self.codebook_size : self.size].sum())

    def add(self, rules: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the tokens of rules, (n, 4), whose parts are known; returns the cells around each.

        The two arrays are (_, 3) int32, rows (row, col, touches), and (n + 1,), where each token's end.
        """
        begin = self.size
        self.size = begin + len(rules)
        sizes = self.num_cells[rules[:, 0]] + self.num_cells[rules[:, 1]]
        if self.merge_rule == "pair":
            self.num_cells[begin : self.size] = sizes
            return np.empty((0, 3), np.int32), np.zeros(len(rules) + 1, np.int64)
        needed = int(self.starts[begin - self.codebook_size] + sizes.sum())
        if needed > len(self.offsets):
            self.offsets = np.resize(self.offsets, (2 * needed, 2))
        self._first_cells[begin : self.size] = self.num_cells[rules[:, 0]]
        _lay_cells(
            rules, self.codebook_size, self.starts, self.offsets, self.num_cells, self.boxes, begin
        )
        return self.around(begin, self.size)

    def around(self, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """The cells around the merged tokens [begin, end), as `add` returns them."""
        around = np.empty((int((2 * self.num_cells[begin:end] + 2).sum()), 3), np.int32)
        ends = np.zeros(end - begin + 1, np.int64)
        n = _surround(
            begin, end, self.codebook_size, self._first_cells[begin:end], self.starts, self.offsets,
            self.boxes, around, ends,
        )  # fmt: skip
        return around[:n], ends


class KeyTable:
    """The keys with at least `theta` occurrences, numbered as they came.

    A count never rises, so what reaches `tier` is chosen as if only those keys were known.

    Args:
        shapes: of the tokens; a key holds their numbers as they were made.
        theta: keys below this count are not known.

    Attributes:
        tier: keys below this count are not chosen, so that their positions need not be listed yet.
        tokens, offsets: (capacity,) int64, the keys, packed.
        counts: (capacity,) int64.
        size: how many keys there are.
    """

    def __init__(self, shapes: Shapes, theta: int):
        self.theta = self.tier = theta
        self.size = 0
        self.tokens = np.empty(1024, np.int64)
        self.offsets = np.empty(1024, np.int64)
        self.counts = np.empty(1024, np.int64)
        self._slots = np.zeros(4096, np.int64)
        self._filter = np.zeros(2048, np.uint8)
        self._shapes = shapes
        self._heap = np.empty((1024, 4), np.int64)
        self._heap_size = 0
        self._taken = np.empty(shapes.capacity, np.int64)
        # the keys that wait for a token's visual id: the first of each token, and the one after each key
        self._heads = np.full(shapes.capacity, -1, np.int64)
        self._nexts = np.empty(1024, np.int64)
        self._first_waiting = shapes.size
        self._passed = np.empty((_MOST_PASSED, 4), np.int64)
        self._batch = np.empty(MAX_BATCH, np.int64)

    @property
    def index(self) -> Index:
        return Index(self._slots, self._filter, self.tokens, self.offsets)

    def add(self, tokens: np.ndarray, offsets: np.ndarray, counts: np.ndarray) -> None:
        """Append keys, packed, with their counts, (n,) each."""
        begin, end = self.size, self.size + len(tokens)
        if end > len(self.tokens):
            for name in ("tokens", "offsets", "counts", "_heap", "_nexts"):
                setattr(self, name, lengthened(getattr(self, name), 2 * end))
        self.tokens[begin:end], self.offsets[begin:end] = tokens, offsets
        self.counts[begin:end] = counts
        self.size = end
        first = begin
        if 2 * end > len(self._slots):
            size, first = 1 << (4 * end).bit_length(), 0
            self._slots, self._filter = np.zeros(size, np.int64), np.zeros(size // 2, np.uint8)
        _fill_index(self.index, first, end)
        self._enter(begin)

    def lower(self, tier: int) -> None:
        """Let keys down to a lower tier be chosen, when there is none left above it."""
        self.tier, self._heap_size = tier, 0
        self._enter(0)

    def _enter(self, begin: int) -> None:
        self._heap_size = _enter(
            self._heap, self._heap_size, self.counts, self.tokens, self.offsets, self.tier,
            self._shapes.visual_ids, self._heads, self._nexts, begin, self.size,
        )  # fmt: skip

    def choose(self, most: int, ahead: int, budget: int, room: int) -> np.ndarray | None:
        """The numbers of keys to merge, (n,); none if no key reaches the tier.

        Args:
            most: the most keys.
            ahead: the most of them that are not the law's next ones.
            budget: the most occurrences, of all but one.
            room: the most cells.

        Returns:
            None if the next rule finds no room because others went ahead.
        """
        shapes = self._shapes
        while self._first_waiting < shapes.size and shapes.visual_ids[self._first_waiting] >= 0:
            self._first_waiting += 1
        _take_waiting(
            self._taken, self.counts, self.tokens, shapes.visual_ids, self._heads, self._nexts,
            self._first_waiting, shapes.size,
        )  # fmt: skip
        n, self._heap_size = _choose(
            self._heap, self._heap_size, self.counts, self.tokens, self.tier, min(most, MAX_BATCH),
            ahead, shapes.size - self._first_waiting, budget, room, shapes.num_cells, self._taken,
            shapes.size, self._passed, self._batch,
        )  # fmt: skip
        return self._batch[:n].copy() if n >= 0 else None

    def rank(self, most: int, next_id: int) -> np.ndarray:
        """Give visual ids from `next_id` to the tokens whose turn has come; returns their numbers, (n,)."""
        ranked = np.empty(most, np.int64)
        n, self._heap_size = _rank(
            self._heap, self._heap_size, self.counts, self.tokens, self.offsets, self.tier, most,
            self._shapes.visual_ids, next_id, self._heads, self._nexts, ranked,
        )  # fmt: skip
        return ranked[:n]

    def find(self, tokens: int, offset: int) -> int:
        """The number of a packed key, or -1."""
        return _find(self.index, tokens, offset)

    def subtract(self, losses: np.ndarray) -> None:
        """Lower counts by (key, loss) rows, (n, 2); a key may stand there more than once."""
        _subtract(self.counts, losses)

    def subtract_by_name(self, losses: np.ndarray) -> None:
        """Lower counts by (tokens, offset, loss) rows, (n, 3), as far as the keys are listed."""
        _subtract_by_name(self.counts, self.index, losses)

    def rules(self, keys: np.ndarray, token: int) -> np.ndarray:
        """(n, 5): first, second, row_offset, col_offset, and the token made, numbered from `token`."""
        return _rules(self.tokens, self.offsets, keys, token)


def lengthened(array: np.ndarray, length: int) -> np.ndarray:
    longer = np.empty((length, *array.shape[1:]), array.dtype)
    longer[: len(array)] = array
    return longer
