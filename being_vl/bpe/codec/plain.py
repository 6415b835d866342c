"""codes → tokens and back in plain Python: what ImageBPE runs where numba is not installed.

Source: points 5 to 8 of the law of the image BPE. Differs from the law's wording in that a heap of
applicable rules replaces one pass per rule; a merge makes only rules of later ranks applicable, so
popping (rank, anchor) in order is the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from heapq import heapify, heappop, heappush
from typing import Any, NamedTuple

import numpy as np

from ..shapes import TokenTable

UNCOVERED = -1
# What is wrong with a sequence of ids; the kernels return the same numbers.
OK, OUT_OF_RANGE, OVERLAP, OVER_BORDER, TOO_MANY, TOO_FEW = range(6)
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


class PlainCodec:
    """Encodes and decodes without numba."""

    def __init__(
        self, merges: np.ndarray, codebook_size: int, merge_rule: str, table: TokenTable | None
    ):
        self._codebook_size = codebook_size
        self._merges = [tuple(rule) for rule in merges.tolist()]
        self._table = table
        self._ranks: dict[tuple[int, ...], int] = {}
        for rank, rule in enumerate(self._merges):
            self._ranks.setdefault(rule if merge_rule == "shape" else rule[:2], rank)
        self._by_offset = merge_rule == "shape"

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray, drop: Drop = KEEP_ALL
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32 codes of many grids, one after another → int32 ids, and how many each grid has."""
        ids: list[int] = []
        counts = []
        begin = 0
        vocabulary = self._ranks, self._merges, self._codebook_size, self._by_offset
        below = int(drop.below)
        for i, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
            end = begin + height * width
            seed = int(drop.seeds[i]) if below else 0
            found = encode(codes[begin:end].tolist(), height, width, *vocabulary, seed, below)
            ids += found
            counts.append(len(found))
            begin = end
        return np.array(ids, dtype=np.int32), np.array(counts, dtype=np.int64)

    def decode(
        self, ids: np.ndarray, counts: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 ids of many grids → int32 codes, what is wrong with each, and at which of its ids."""
        codes = np.empty(int((heights * widths).sum()), dtype=np.int32)
        status = np.zeros(len(counts), dtype=np.int64)
        index = np.zeros(len(counts), dtype=np.int64)
        id_begin = cell_begin = 0
        for i, (count, height, width) in enumerate(
            zip(counts.tolist(), heights.tolist(), widths.tolist(), strict=True)
        ):
            one = ids[id_begin : id_begin + count].tolist()
            out: list[int] = []
            status[i], index[i] = decode(one, height, width, self._cells, out)
            codes[cell_begin : cell_begin + height * width] = out
            id_begin += count
            cell_begin += height * width
        return codes, status, index

    @cached_property
    def _cells(self) -> Any:
        return _CellsOf(self._table)  # type: ignore[arg-type]


class _CellsOf:
    """`TokenTable.cells` by visual id, made when first asked for."""

    def __init__(self, table: TokenTable):
        self._made = cache(table.cells)
        self._size = len(table.start) - 1

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, visual_id: int) -> list[tuple[int, int, int]]:
        return self._made(visual_id)


def encode(
    codes: list[int],
    height: int,
    width: int,
    ranks: Mapping[tuple[int, ...], int],
    merges: Sequence[tuple[int, ...]],
    codebook_size: int,
    by_offset: bool,
    seed: int = 0,
    below: int = 0,
) -> list[int]:
    """Tokens of one grid, given as its codes in raster order, in raster order of their anchors.

    ranks has the keys (first, second, row_offset, col_offset), or (first, second) unless by_offset.
    """
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
        if token[p] != merges[rank][0] or token[q] != merges[rank][1]:
            continue
        if below and is_dropped(*divmod(p, width), rank, seed, below):
            continue
        token[p], token[q] = codebook_size + rank, UNCOVERED
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


def decode(
    ids: list[int],
    height: int,
    width: int,
    cells: Sequence[Sequence[tuple[int, int, int]]],
    out: list[int],
) -> tuple[int, int]:
    """Fill out (height * width codes in raster order); return what is wrong and at which index of ids.

    cells lists (row, col, code) of every id; the index is len(ids) where cells stay open.
    """
    out[:] = [UNCOVERED] * (height * width)
    anchor = 0
    for index, visual_id in enumerate(ids):
        if not 0 <= visual_id < len(cells):
            return OUT_OF_RANGE, index
        while anchor < height * width and out[anchor] != UNCOVERED:
            anchor += 1
        if anchor == height * width:
            return TOO_MANY, index
        anchor_row, anchor_col = divmod(anchor, width)
        for row, col, code in cells[visual_id]:
            row, col = anchor_row + row, anchor_col + col
            if row >= height or not 0 <= col < width:
                return OVER_BORDER, index
            if out[row * width + col] != UNCOVERED:
                return OVERLAP, index
            out[row * width + col] = code
    return (TOO_FEW if UNCOVERED in out else OK), len(ids)
