"""grids → ids → bits lost: the information that the ids of paper mode lose.

Source: appendix A.1 of "From Pixels to Tokens", which bounds the loss, in (14) and (15), by natural
logarithms called bits. Here it is H(grid | ids) itself where the law of the grids is known, in bits of two
values; and two bounds where it is not. `merge_rule="shape"` loses nothing: the ids, height and width decode.

Paper mode keys a merge by two ids, so a token stands for every way in which its two parts can lie.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...bpe.image_bpe import ImageBPE

Cell = tuple[int, int, int]  # row, column, code; relative to the token's anchor
Shape = tuple[Cell, ...]


def all_grids(height: int, width: int, codebook_size: int) -> np.ndarray:
    """Every grid of that size, int64 (codebook_size ** (height · width), height, width)."""
    count = codebook_size ** (height * width)
    if count > 1 << 20:
        raise ValueError(
            f"there are {count} grids of {height}x{width} cells; at most 2^20 are listed"
        )
    digits = codebook_size ** np.arange(height * width)
    return (np.arange(count)[:, None] // digits % codebook_size).reshape(count, height, width)


def lost_bits(
    bpe: ImageBPE, grids: Any, probabilities: np.ndarray | None = None
) -> dict[str, float]:
    """H(grid | ids), exactly, for grids drawn from a list.

    The ids follow from the grid, so it is H(grid) − H(ids). For a corpus leave `probabilities` out: each
    grid is as likely as it is frequent. It takes grids that repeat, so small ones, or no ids will collide.

    Args:
        grids: int codes (N, H, W); equal grids may come several times.
        probabilities: of each grid, float (N,), with the sum 1.

    Returns:
        `grid_bits` and `ids_bits`, the two entropies; `lost_bits`, their difference; `lost_share`, as a
        share of `grid_bits`; `collisions`, how many distinct grids share their ids with another.
    """
    weights = np.full(len(grids), 1 / len(grids)) if probabilities is None else probabilities
    of_grid: dict[bytes, float] = defaultdict(float)
    of_ids: dict[bytes, float] = defaultdict(float)
    grids_of_ids: dict[bytes, set[bytes]] = defaultdict(set)
    for grid, ids, weight in zip(grids, bpe.encode_batch(grids), weights, strict=True):
        of_grid[grid.tobytes()] += weight
        of_ids[ids.tobytes()] += weight
        grids_of_ids[ids.tobytes()].add(grid.tobytes())
    grid_bits, ids_bits = entropy(of_grid.values()), entropy(of_ids.values())
    lost = grid_bits - ids_bits
    collisions = sum(len(same) for same in grids_of_ids.values() if len(same) > 1)
    bits = {"grid_bits": grid_bits, "ids_bits": ids_bits, "lost_bits": lost}
    return {**bits, "lost_share": lost / grid_bits, "collisions": collisions}


def offset_bits(bpe: ImageBPE, grids: Sequence[np.ndarray]) -> dict[str, float]:
    """A bound on H(grid | ids) for grids of any size: the entropy of where the second parts lie.

    The ids say which rules made their tokens, and with the offset of each merge they decode. So
    H(grid | ids) ≤ Σ over ranks of (uses of the rule a grid) · H(offset | rank), with the entropies of the
    offsets seen. The plain count of (cells − tokens) bits, one a merge, holds where there are two offsets.

    Returns:
        `offset_bits` and `merges`, both a grid, and `raw_bits`, log2(codebook_size) a cell.
    """
    seen: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    cells = 0
    for grid in grids:
        cells += grid.size
        for rank, row_offset, col_offset in merge_offsets(bpe, grid):
            seen[rank][row_offset, col_offset] += 1
    bits = 0.0
    for offsets in seen.values():
        total = sum(offsets.values())
        bits += total * entropy(count / total for count in offsets.values())
    merges = sum(sum(offsets.values()) for offsets in seen.values())
    return {
        "offset_bits": bits / len(grids),
        "merges": merges / len(grids),
        "raw_bits": cells / len(grids) * float(np.log2(bpe.codebook_size)),
    }


def merge_offsets(bpe: ImageBPE, grid: np.ndarray) -> list[tuple[int, int, int]]:
    """The merges that paper mode makes in a grid, in order: rank, row offset, column offset."""
    if bpe.merge_rule != "pair":
        raise ValueError(f'merge_rule must be "pair", got {bpe.merge_rule!r}')
    height, width = grid.shape
    keys = bpe.merges[:, 0].astype(np.int64) * bpe.vocab_size + bpe.merges[:, 1]
    order = np.argsort(keys)
    keys = np.append(keys[order], -1)  # no key: what lies beyond the last
    owner = np.arange(height * width).reshape(height, width)  # the anchor of each cell's token
    ids = grid.reshape(-1).astype(np.int64)  # of the token with that anchor
    made: list[Any] = []
    while True:
        pairs = _adjacent(owner)
        wanted = ids[pairs[:, 0]] * bpe.vocab_size + ids[pairs[:, 1]]
        places = np.searchsorted(keys[:-1], wanted)
        known = keys[places] == wanted
        if not known.any():
            return made
        ranks = order[places[known]]
        best, done = int(ranks.min()), set()
        for a, b in pairs[known][ranks == best].tolist():
            if a not in done and b not in done:
                done |= {a, b}
                owner[owner == b] = a
                ids[a] = bpe.codebook_size + best
                made.append((best, b // width - a // width, b % width - a % width))


def shapes_of(bpe: ImageBPE) -> list[set[Shape]]:
    """Every shape, with its codes, that each visual id of paper mode can stand for; small tokens only."""
    shapes: list[set[Shape]] = [{((0, 0, code),)} for code in range(bpe.codebook_size)]
    for first, second, _, _ in bpe.merges.tolist():
        shapes.append(
            {joined for a in shapes[first] for b in shapes[second] for joined in _joined(a, b)}
        )
    return shapes


def decodings(
    bpe: ImageBPE, ids: Sequence[int] | np.ndarray, height: int, width: int, *, limit: int = 100_000
) -> list[np.ndarray]:
    """Every grid that has these ids in paper mode, int64 (height, width) each.

    The next token's anchor is the first cell that is not covered, so the layouts form a tree; each layout's
    grid is encoded again, since not every layout is what the merges would make.
    """
    shapes = shapes_of(bpe)
    found: dict[bytes, np.ndarray] = {}
    wanted = np.asarray(ids)
    for number, grid in enumerate(_layouts(shapes, list(ids), np.full((height, width), -1))):
        if number >= limit:
            raise ValueError(
                f"{len(ids)} ids have more than {limit} layouts on {height}x{width} cells"
            )
        if grid.tobytes() not in found and np.array_equal(bpe.encode(grid), wanted):
            found[grid.tobytes()] = grid
    return list(found.values())


def lost_bits_of(
    bpe: ImageBPE, grid: np.ndarray, log_probability: Callable[[np.ndarray], np.ndarray]
) -> float:
    """−log2 Pr(grid | its ids), exactly; its mean over grids of that law is H(grid | ids).

    `log_probability` takes grids (n, height, width) to natural logarithms (n,), as that of `MarkovSource`.
    """
    same = np.stack(decodings(bpe, bpe.encode(grid), *grid.shape))
    logs = log_probability(same)
    own = log_probability(grid[None])[0]
    return float((np.logaddexp.reduce(logs) - own) / np.log(2))


def _layouts(shapes: list[set[Shape]], ids: list[int], grid: np.ndarray) -> Iterator[np.ndarray]:
    if not ids:
        if (grid >= 0).all():
            yield grid.copy()
        return
    open_cells = np.flatnonzero(grid.reshape(-1) < 0)
    if not len(open_cells):
        return
    row, col = divmod(int(open_cells[0]), grid.shape[1])
    for shape in shapes[ids[0]]:
        places = [(row + r, col + c) for r, c, _ in shape]
        if all(r < grid.shape[0] and 0 <= c < grid.shape[1] and grid[r, c] < 0 for r, c in places):
            for place, (_, _, code) in zip(places, shape, strict=True):
                grid[place] = code
            yield from _layouts(shapes, ids[1:], grid)
            for place in places:
                grid[place] = -1


def _joined(first: Shape, second: Shape) -> Iterator[Shape]:
    """`second` laid beside `first` in every way in which they touch and `first` has the earlier anchor."""
    taken = {(row, col) for row, col, _ in first}
    offsets = {
        (row + down - r, col + right - c)
        for row, col in taken
        for down, right in ((0, 1), (1, 0), (0, -1), (-1, 0))
        for r, c, _ in second
    }
    for row_offset, col_offset in offsets:
        moved = [(r + row_offset, c + col_offset, code) for r, c, code in second]
        if (row_offset, col_offset) > (0, 0) and not any((r, c) in taken for r, c, _ in moved):
            yield tuple(sorted([*first, *moved]))


def _adjacent(owner: np.ndarray) -> np.ndarray:
    """The anchors of each two tokens that share an edge, the earlier first, in raster order: (n, 2)."""
    sides = [(owner[:, :-1], owner[:, 1:]), (owner[:-1], owner[1:])]
    pairs = np.concatenate(
        [np.stack([one[one != other], other[one != other]], axis=1) for one, other in sides]
    )
    return np.unique(np.sort(pairs, axis=1), axis=0)


def entropy(probabilities: Any) -> float:
    """Of probabilities, in bits."""
    p = np.fromiter(probabilities, dtype=np.float64)
    p = p[p > 0]
    return float(-(p * np.log2(p)).sum())
