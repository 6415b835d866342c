"""merge rules → token shapes: what every visual id covers, checked rule by rule.

Source: points 1 and 2 of the law of the image BPE (the shape of a token follows from its id alone).
Differs from a direct expansion in that rules are expanded level by level (all rules whose parts are
known, at once, in numpy): a vocabulary of 16,384 merges takes tens of milliseconds without numba.

A cell relative to its token's anchor is one integer, ``row * ROW + col``, so that raster order is the
order of integers and an offset is added by adding.
"""

from dataclasses import dataclass

import numpy as np

from .rules import MAX_TOKEN_CELLS, MAX_TOTAL_CELLS

ROW = 1 << 16
_BLOCK_CELLS = 1 << 17
_NEIGHBOURS = (1, -1, ROW, -ROW)


@dataclass(frozen=True)
class TokenTable:
    """The cells of every visual id; arrays indexed by visual id or by cell.

    Attributes:
        start: int64 (V + 1,), the cells of id v are ``position[start[v]:start[v + 1]]``.
        position: int32 (cells,), ``row * ROW + col`` relative to the anchor, in raster order.
        code: int32 (cells,).
    """

    start: np.ndarray
    position: np.ndarray
    code: np.ndarray

    def cells(self, visual_id: int) -> list[tuple[int, int, int]]:
        """(row, column, code) of a token's cells, rows (≥ 0) and columns (any) relative to its anchor."""
        own = slice(self.start[visual_id], self.start[visual_id + 1])
        rows, cols = split_position(self.position[own])
        return list(zip(rows.tolist(), cols.tolist(), self.code[own].tolist(), strict=True))


def split_position(position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``row * ROW + col`` with |col| < ROW / 2, back into row and col."""
    row = (position + ROW // 2) >> 16
    return row, position - row * ROW


def ragged(start: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Concatenation of ``range(start[i], start[i] + size[i])``."""
    ends = np.cumsum(size)
    return np.repeat(start - ends + size, size) + np.arange(ends[-1] if len(ends) else 0)


def _sizes_and_levels(merges: np.ndarray, codebook_size: int) -> np.ndarray:
    """int64 (2, M): cells of each merged token, and the length of the longest chain of merges that makes it."""
    sizes = [1] * codebook_size
    levels = [0] * codebook_size
    total = 0
    for r, (first, second) in enumerate(merges[:, :2].tolist()):
        size = sizes[first] + sizes[second]
        total += size
        if size > MAX_TOKEN_CELLS or total > MAX_TOTAL_CELLS:
            raise ValueError(
                f"merges[{r}] makes a token of {size} cells, {total} cells with all tokens before; "
                f"at most {MAX_TOKEN_CELLS} and {MAX_TOTAL_CELLS} are allowed"
            )
        sizes.append(size)
        levels.append(1 + (levels[first] if levels[first] > levels[second] else levels[second]))
    return np.array([sizes[codebook_size:], levels[codebook_size:]], dtype=np.int64)


def _blocks(ranks: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    """Split ranks into runs of at most about _BLOCK_CELLS cells."""
    ends = np.cumsum(sizes[ranks])
    cuts = np.flatnonzero(np.diff(ends // _BLOCK_CELLS)) + 1
    return np.split(ranks, cuts)


def build_token_table(merges: np.ndarray, codebook_size: int) -> TokenTable:
    """Expand checked rules (M, 4) into the cells of all K + M tokens.

    Raises:
        ValueError: a rule's parts overlap or share no edge, or a token or the table grows too large.
    """
    sizes, levels = _sizes_and_levels(merges, codebook_size)
    start = np.cumsum(np.concatenate([[0], np.ones(codebook_size, np.int64), sizes]))
    table = TokenTable(start, *np.zeros((2, start[-1]), dtype=np.int32))
    table.code[:codebook_size] = np.arange(codebook_size)
    by_level = np.argsort(levels, kind="stable")
    ends = np.flatnonzero(np.diff(levels[by_level])) + 1
    for ranks in np.split(by_level, ends):
        for block in _blocks(ranks, sizes):
            _expand(block, merges, codebook_size, table)
    return table


def _expand(ranks: np.ndarray, merges: np.ndarray, codebook_size: int, table: TokenTable) -> None:
    """Fill in the cells of the given ranks, whose parts are known."""
    start, position, code = table.start, table.position, table.code
    keys, codes = [], []
    offset = [np.zeros_like(ranks), merges[ranks, 2] * ROW + merges[ranks, 3]]
    for part in (0, 1):
        token = merges[ranks, part]
        size = start[token + 1] - start[token]
        cells = ragged(start[token], size)
        rule = np.repeat(np.arange(len(ranks)), size)
        # one sortable number a cell: the rule above, the position (made positive) below
        keys.append((rule << 32) + (position[cells] + np.repeat(offset[part], size)) + (1 << 31))
        codes.append(code[cells])
    _check_contact(ranks, keys[0], keys[1])
    both = np.concatenate(keys)
    order = np.argsort(both, kind="stable")
    made = codebook_size + ranks
    target = ragged(start[made], start[made + 1] - start[made])
    position[target] = (both[order] & ((1 << 32) - 1)) - (1 << 31)
    code[target] = np.concatenate(codes)[order]


def _check_contact(ranks: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Refuse rules whose two cell sets overlap or share no edge; sorted keys as in _expand."""

    def is_in_first(keys: np.ndarray) -> np.ndarray:
        at = np.searchsorted(first, keys)
        return first[np.minimum(at, len(first) - 1)] == keys

    overlap = is_in_first(second)
    if overlap.any():
        r = ranks[second[overlap] >> 32].min()
        raise ValueError(f"merges[{r}]: first and second overlap at this offset")
    touching = np.zeros(len(ranks), dtype=bool)
    for step in _NEIGHBOURS:
        touching[second[is_in_first(second + step)] >> 32] = True
    if not touching.all():
        r = ranks[~touching].min()
        raise ValueError(f"merges[{r}]: first and second share no edge at this offset")


def flat_position(position: np.ndarray, stride: int) -> np.ndarray:
    """Relative positions at another row length, int64."""
    row, col = split_position(position.astype(np.int64))
    return row * stride + col


def cells_around(
    table: TokenTable, merges: np.ndarray, codebook_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """The cells that touch each merged token, for the tokens that some rule takes up.

    Returns:
        int64 (M + 1,) and int32: around the token of rank r lie around[start[r]:start[r + 1]].
    """
    count = len(merges)
    taken = np.zeros(codebook_size + count, dtype=bool)
    taken[merges[:, :2].reshape(-1)] = True
    ranks = np.flatnonzero(taken[codebook_size:])
    sizes = np.diff(table.start[codebook_size:])
    found = []
    for block in _blocks(ranks, sizes):
        cells = ragged(table.start[codebook_size + block], sizes[block])
        keys = (np.repeat(block, sizes[block]) << 32) + table.position[cells] + (1 << 31)
        near = np.unique(np.concatenate([keys + step for step in _NEIGHBOURS]))
        found.append(np.setdiff1d(near, keys, assume_unique=True))
    around = np.concatenate(found) if found else np.zeros(0, dtype=np.int64)
    start = np.searchsorted(around, np.arange(count + 1) << 32)
    return start, ((around & ((1 << 32) - 1)) - (1 << 31)).astype(np.int32)
