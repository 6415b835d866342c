"""codes → tokens in plain Python: what ImageBPE runs where numba is not installed.

Source: points 5 to 7 of the law of the image BPE. Differs from the law's wording in that a heap of
applicable rules replaces one pass per rule; a merge makes only rules of later ranks applicable, so
popping (rank, anchor) in order is the same.
"""

from heapq import heapify, heappop, heappush
from typing import NamedTuple

import numpy as np

UNCOVERED = -1
_MASK = (1 << 64) - 1


class Drop(NamedTuple):
    """BPE-dropout (arXiv 1910.13267): which applications of rules are left out, by a hash of 53 bits.

    A hash rather than a stream of random numbers: the outcome does not depend on the order of the work.

    Attributes:
        seeds: uint64, one a grid.
        below: hashes below this are dropped, p · 2^53; 0 drops nothing, and then seeds are not read.
    """

    seeds: np.ndarray
    below: np.uint64


KEEP_ALL = Drop(np.zeros(0, dtype=np.uint64), np.uint64(0))


def is_dropped(row: int, col: int, rank: int, seed: int, below: int) -> bool:
    """Is the rule of a rank not to be applied at an anchor? The hash ends as splitmix64 does."""
    z = seed + rank * 0x9E3779B97F4A7C15 + (row << 32 | col) * 0x165667B19E3779F9 & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return (z ^ z >> 31) >> 11 < below


class PlainEncoder:
    """Encodes without numba, by either merge rule."""

    def __init__(self, merges: np.ndarray, codebook_size: int, merge_rule: str):
        self._codebook_size = codebook_size
        self._by_offset = merge_rule == "shape"
        self._merges = [tuple(rule) for rule in merges.tolist()]
        self._ranks: dict[tuple[int, ...], int] = {}  # by the whole rule, or by its parts alone
        for rank, rule in enumerate(self._merges):
            self._ranks.setdefault(rule if self._by_offset else rule[:2], rank)

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray, drop: Drop = KEEP_ALL
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32 codes of many grids, one after another → int32 ids, and how many each grid has."""
        ids: list[int] = []
        counts = []
        begin = 0
        below = int(drop.below)
        for i, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
            end = begin + height * width
            seed = int(drop.seeds[i]) if below else 0
            found = self._encode_one(codes[begin:end].tolist(), height, width, seed, below)
            ids += found
            counts.append(len(found))
            begin = end
        return np.array(ids, dtype=np.int32), np.array(counts, dtype=np.int64)

    def _encode_one(
        self, codes: list[int], height: int, width: int, seed: int, below: int
    ) -> list[int]:
        """Tokens of one grid, codes and tokens in raster order."""
        merges, ranks, by_offset = self._merges, self._ranks, self._by_offset
        size = height * width
        token = list(codes)  # at anchors; UNCOVERED where a merge took the cell
        owner = list(range(size))
        cells = [[cell] for cell in range(size)]
        heap: list[tuple[int, int, int]] = []

        def entry(p: int, q: int) -> tuple[int, int, int] | None:
            key: tuple[int, ...] = (token[p], token[q])
            if by_offset:
                key += (q // width - p // width, q % width - p % width)
            rank = ranks.get(key)
            return None if rank is None else (rank, p, q)

        for p in range(size):
            for q in _neighbours(p, height, width):
                if q > p and (found := entry(p, q)):
                    heap.append(found)
        heapify(heap)
        while heap:
            rank, p, q = heappop(heap)
            # Entries are not taken back when their tokens are merged away. The id at an anchor only ever gives way to
            # a greater one, or to UNCOVERED: where both ids still stand, so do the tokens that the entry is of.
            if token[p] != merges[rank][0] or token[q] != merges[rank][1]:
                continue
            if below and is_dropped(*divmod(p, width), rank, seed, below):
                continue
            token[p], token[q] = self._codebook_size + rank, UNCOVERED
            for cell in cells[q]:
                owner[cell] = p
            cells[p] += cells[q]
            around = {owner[n] for cell in cells[p] for n in _neighbours(cell, height, width)}
            for other in around - {p}:
                if found := entry(min(p, other), max(p, other)):
                    heappush(heap, found)
        return [t for t in token if t != UNCOVERED]


def _neighbours(cell: int, height: int, width: int) -> list[int]:
    row, col = divmod(cell, width)
    found = []
    if row > 0:
        found.append(cell - width)
    if col > 0:
        found.append(cell - 1)
    if col + 1 < width:
        found.append(cell + 1)
    if row + 1 < height:
        found.append(cell + width)
    return found
