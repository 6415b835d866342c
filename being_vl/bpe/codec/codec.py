"""flat grids ↔ flat tokens: picks the compiled kernels, or plain Python where numba is missing.

Source: the project's own. Both codecs take and return the same flat arrays, and give the same tokens.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from .plain import decode, encode
from .tables import TokenTable, cells_around, flat_position, ragged, split_position


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
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """int32 codes of many grids, one after another → int32 ids, and how many each grid has."""
        ids: list[int] = []
        counts = []
        begin = 0
        for height, width in zip(heights.tolist(), widths.tolist(), strict=True):
            end = begin + height * width
            grid = codes[begin:end].tolist()
            found = encode(
                grid, height, width, self._ranks, self._merges, self._codebook_size, self._by_offset
            )
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
    def _cells(self) -> _CellsOf:
        return _CellsOf(self._table)


class _CellsOf:
    """(row, col, code) lists by visual id, made when first asked for."""

    def __init__(self, table: TokenTable):
        self._table = table
        self._made: dict[int, list[tuple[int, int, int]]] = {}

    def __len__(self) -> int:
        return len(self._table.start) - 1

    def __getitem__(self, visual_id: int) -> list[tuple[int, int, int]]:
        if visual_id not in self._made:
            begin, end = self._table.start[visual_id], self._table.start[visual_id + 1]
            rows, cols = split_position(self._table.position[begin:end])
            self._made[visual_id] = list(
                zip(rows.tolist(), cols.tolist(), self._table.code[begin:end].tolist(), strict=True)
            )
        return self._made[visual_id]


class KernelCodec:
    """Encodes and decodes tokens of fixed shape with the compiled kernels."""

    def __init__(self, merges: np.ndarray, codebook_size: int, table: TokenTable):
        self._merges = np.array(merges)
        self._codebook_size = codebook_size
        self._table = table
        self._by_stride: dict[int, tuple[np.ndarray, ...]] = {}

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As PlainCodec.encode."""
        from .kernels import encode_grids, explain_compilation

        stride = 1 << int(2 * widths.max() - 1).bit_length()
        if stride not in self._by_stride:
            self._by_stride[stride] = self._at_stride(stride)
        tables = self._by_stride[stride]
        with explain_compilation(encode_grids):
            return encode_grids(codes, heights, widths, stride, self._codebook_size, tables)

    def decode(
        self, ids: np.ndarray, counts: np.ndarray, heights: np.ndarray, widths: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As PlainCodec.decode."""
        from .kernels import decode_grids, explain_compilation

        tables = self._decode_tables
        with explain_compilation(decode_grids):
            return decode_grids(ids, counts, heights, widths, self._codebook_size, *tables)

    def _at_stride(self, stride: int) -> tuple[np.ndarray, ...]:
        """What encode_grids takes after the codebook's size, for rows of this many cells."""
        from .kernels import build_ranks

        table, merges = self._table, self._merges.astype(np.int64)
        step = merges[:, 2] * stride + merges[:, 3]
        usable = (np.abs(merges[:, 3]) < stride // 2) & (step < 1 << 31)  # no grid here has others
        second = merges[:, 1]
        sizes = table.start[second + 1] - table.start[second]
        cells_end = np.cumsum(sizes)
        cell = flat_position(table.position, stride)[ragged(table.start[second], sizes)]
        edge_start, edge = cells_around(table, self._merges, self._codebook_size)
        rules = np.zeros((len(merges), 8), dtype=np.int32)
        rules[:, :2] = merges[:, :2]
        rules[:, 2] = np.where(usable, step, -1)
        rules[:, 3], rules[:, 4] = cells_end - sizes, cells_end
        rules[:, 5], rules[:, 6] = edge_start[:-1], edge_start[1:]
        slots = np.full(1 << max(6, (2 * len(merges)).bit_length()), -1, dtype=np.int32)
        bloom = np.zeros(max(1, len(slots) // 4), dtype=np.uint64)
        build_ranks(rules, usable, slots, bloom)
        cell += np.repeat(step, sizes)
        return (
            rules,
            slots,
            bloom,
            cell.astype(np.int32),
            flat_position(edge, stride).astype(np.int32),
        )

    @cached_property
    def _decode_tables(self) -> tuple[np.ndarray, ...]:
        start, position = self._table.start, self._table.position
        row, col = split_position(position)
        begins = start[:-1]
        box = np.stack(
            [
                np.maximum.reduceat(row, begins),
                np.minimum.reduceat(col, begins),
                np.maximum.reduceat(col, begins),
            ],
            axis=1,
        )
        return start, row, col, self._table.code, box


def make_codec(
    merges: np.ndarray, codebook_size: int, merge_rule: str, table: TokenTable | None
) -> PlainCodec | KernelCodec:
    """The fastest codec that can run here."""
    if table is not None:
        from .kernels import HAVE_NUMBA  # here: importing numba takes half a second

        if HAVE_NUMBA:
            return KernelCodec(merges, codebook_size, table)
    return PlainCodec(merges, codebook_size, merge_rule, table)
