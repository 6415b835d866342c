"""Fewer tokens for a vocabulary of the same size? What other ways of choosing tokens gain, and what they cost.

    python benchmarks/bpe_vocabularies.py greedy --codes 1024 --grids 1000 --merges 8192
    python benchmarks/bpe_vocabularies.py symmetric --codes 1024 --grids 1000 --merges 8192
    python benchmarks/bpe_vocabularies.py jumps --codes 1024 --grids 1000 --merges 8192
    python benchmarks/bpe_vocabularies.py bound

All but `bound` read photographs (`bpe_data.photographs`, or --train-file and --held-out-file) and print Markdown rows:
tokens of a held-out grid, and CPU seconds.

- `greedy`: tokens are taken from a pool, the merges of a vocabulary several times as large, one after the other, always
  the one that saves most tokens where it covers whole tokens of those taken before (GreedTok, arXiv 2501.06246, lazily).
  They need not be made of each other. Encoding places them in the order taken, or compactly.
- `symmetric`: tokens that are mirrored or turned copies of each other count once. A bound: which copy it is would have
  to be told beside the id.
- `jumps`: tokens that touch at corners, or with one cell between. An estimate from counts at half of the merges.
- `bound`: linear programming, on 12 small grids: no choice of as many tokens from the pool can do with fewer. The pool
  is every connected pattern of at most 4 cells that occurs twice, and four times as many merges.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from being_vl.bpe import ImageBPE
from being_vl.bpe._jit import kernel
from being_vl.bpe.codec.compact import (
    by_anchor,
    by_size_then_place,
    improve,
    is_free,
    lay,
    list_places,
)
from being_vl.bpe.shapes import TokenTable, split_position

# ---- all places of all tokens


@kernel
def places_of(grids, merges, codebook_size, table):
    """Where each merged token fits, in raster order: start int64 (M + 1,) by rank, and anchors among all cells."""
    count, height, width = grids.shape
    head = np.full(codebook_size, -1, dtype=np.int64)
    start = np.zeros(len(merges) + 1, dtype=np.int64)
    anchors = np.empty(0, dtype=np.int64)
    for write in range(2):
        if write:
            for rank in range(len(merges)):
                start[rank + 1] += start[rank]
            anchors = np.empty(start[-1], dtype=np.int64)
        at = start.copy()
        for number in range(count):
            board = grids[number].copy().reshape(-1)
            token, place = list_places(board, height, width, merges, codebook_size, table, head)
            for one in range(len(token)):
                rank = token[one] - codebook_size
                if write:
                    anchors[at[rank]] = number * height * width + place[one]
                    at[rank] += 1
                else:
                    start[rank + 1] += 1
    return start, anchors


@kernel
def tokens_saved(rank, at, anchors, cells, owner, size_of, seen, taken, stamp, lays):
    """Tokens that one more token saves: it is placed where it covers whole tokens, first come first served.

    owner int64 (cells,): anchor of the token on a cell; size_of: its cells, by anchor. With `lays` it is placed.
    """
    first, last = cells[0][rank], cells[0][rank + 1]
    saved = 0
    for one in range(at[rank], at[rank + 1]):
        anchor = anchors[one]
        covered, inside = 0, 0
        for k in range(first, last):
            cell = anchor + cells[1][k]
            if taken[cell] == stamp:
                covered = -1 << 30
                break
            whole = owner[cell]
            if seen[whole] != stamp << 32 | one:
                seen[whole] = stamp << 32 | one
                covered += size_of[whole]
                inside += 1
        if covered != last - first or inside < 2:
            continue
        saved += inside - 1
        for k in range(first, last):
            cell = anchor + cells[1][k]
            taken[cell] = stamp
            if lays:
                owner[cell] = anchor
        if lays:
            size_of[anchor] = last - first
    return saved


@kernel
def uncovered(num_cells):
    """Of each cell, where nothing is covered: its token's anchor, that token's size, and no stamps."""
    nothing = np.zeros(num_cells, dtype=np.int64)
    return np.arange(num_cells), np.ones(num_cells, dtype=np.int64), nothing, nothing.copy()


@kernel
def choose(num_tokens, at, anchors, cells, num_cells):
    """Lazy greedy: ranks in the order taken, and the tokens that they save."""
    owner, size_of, seen, taken = uncovered(num_cells)
    count = len(at) - 1
    gain = np.empty(count, dtype=np.int64)
    fresh = np.zeros(count, dtype=np.int64)
    stamp = 0
    for rank in range(count):
        gain[rank] = (at[rank + 1] - at[rank]) * (cells[0][rank + 1] - cells[0][rank] - 1)
    chosen = np.empty(num_tokens, dtype=np.int64)
    saved = 0
    for step in range(num_tokens):
        best = np.int64(gain.argmax())
        while fresh[best] != step + 1:
            stamp += 1
            gain[best] = tokens_saved(
                best, at, anchors, cells, owner, size_of, seen, taken, stamp, False
            )
            fresh[best] = step + 1
            best = np.int64(gain.argmax())
        stamp += 1
        saved += tokens_saved(best, at, anchors, cells, owner, size_of, seen, taken, stamp, True)
        gain[best] = -1
        chosen[step] = best
    return chosen, saved


@kernel
def saved_in_order(chosen, at, anchors, cells, num_cells):
    """Tokens that these save, each placed after those before it."""
    owner, size_of, seen, taken = uncovered(num_cells)
    saved = 0
    for step in range(len(chosen)):
        saved += tokens_saved(
            chosen[step], at, anchors, cells, owner, size_of, seen, taken, step + 1, True
        )
    return saved


@kernel
def compact_tokens(grids, merges, codebook_size, table, is_chosen):
    """Tokens of the compact segmentation with the chosen ranks alone."""
    count, height, width = grids.shape
    head = np.full(codebook_size, -1, dtype=np.int64)
    tokens = 0
    for number in range(count):
        board = grids[number].copy().reshape(-1)
        token, place = list_places(board, height, width, merges, codebook_size, table, head)
        keep = is_chosen[token - codebook_size]
        token, place = by_size_then_place(token[keep], place[keep], table[0], height * width)
        places = (token, place, width)
        owner = np.full(height * width, -1, dtype=np.int32)
        for one in range(len(token)):
            if is_free(one, places, table, owner):
                lay(one, one, places, table, owner)
        improve(places, by_anchor(place, height * width), table, owner)
        for at in range(height * width):
            one = owner[at]
            tokens += one < 0 or place[one] == at
    return tokens


def as_arrays(bpe: ImageBPE, width: int) -> tuple[Any, Any, Any]:
    """Rules, the kernels' table of cells by id, and flat cells by rank."""
    table: TokenTable = bpe._table
    row, col = (np.ascontiguousarray(part) for part in split_position(table.position))
    flat = row.astype(np.int64) * width + col
    first = bpe.codebook_size  # a code has one cell
    return (
        np.array(bpe.merges),
        (table.start, row, col, table.code),
        (table.start[first:].astype(np.int64), flat),
    )


# ---- the ways


def length(bpe: ImageBPE, grids: np.ndarray, segmentation: str = "merges") -> float:
    """Tokens a grid."""
    return float(np.mean([*map(len, bpe.encode_batch(grids, segmentation=segmentation))]))


def show(name: str, tokens: float, plain: float, cpu: float) -> None:
    print(f"| {name} | {tokens:.1f} | {tokens / plain - 1:+.2%} | {cpu:.1f} |", flush=True)


def compare_greedy(args: argparse.Namespace, training: np.ndarray, held_out: np.ndarray) -> None:
    """Ours in both segmentations, and the greedy choice from pools of several sizes."""
    before = time.process_time()
    plain = ImageBPE.train(training, num_merges=args.merges, codebook_size=args.codes)
    cpu, base = time.process_time() - before, length(plain, held_out)
    show("merges", base, base, cpu)
    show("merges, compact", length(plain, held_out, "compact"), base, cpu)
    for factor in args.pools:
        before = time.process_time()
        pool = ImageBPE.train(training, num_merges=factor * args.merges, codebook_size=args.codes)
        merges, table, cells = as_arrays(pool, training.shape[2])
        trained = np.ascontiguousarray(training[: args.choose_from])
        at, anchors = places_of(trained, merges, args.codes, table)
        chosen, saved = choose(args.merges, at, anchors, cells, trained.size)
        cpu = time.process_time() - before
        if saved_in_order(chosen, at, anchors, cells, trained.size) != saved:
            sys.exit("the tokens saved in order are not those saved while choosing")
        name = f"greedy, pool of {len(merges)}"
        at, anchors = places_of(held_out, merges, args.codes, table)
        saved_there = saved_in_order(chosen, at, anchors, cells, held_out.size)
        show(f"{name}, in order", (held_out.size - saved_there) / len(held_out), base, cpu)
        is_chosen = np.zeros(len(merges), dtype=np.bool_)
        is_chosen[chosen] = True
        compact = compact_tokens(held_out, merges, args.codes, table, is_chosen)
        show(f"{name}, compact", compact / len(held_out), base, cpu)
        own = (trained.size - saved) / len(trained)
        print(f"  (training grids: {own:.1f} in order, merges {length(plain, trained):.1f})")
        show(f"all {len(merges)} merges", length(pool, held_out), base, cpu)


def turned(cells: list[tuple[int, int, int]]) -> bytes:
    """A name of a token that its eight mirrored and turned copies share."""
    grid = np.array(cells)
    copies = []
    for flip in range(8):
        row, col = (grid[:, 1], grid[:, 0]) if flip & 4 else (grid[:, 0], grid[:, 1])
        row, col = row * (-1 if flip & 1 else 1), col * (-1 if flip & 2 else 1)
        copy = np.column_stack([row - row.min(), col - col.min(), grid[:, 2]])
        copies.append(copy[np.lexsort(copy.T[::-1])].tobytes())
    return min(copies)


def compare_symmetric(args: argparse.Namespace, training: np.ndarray, held_out: np.ndarray) -> None:
    """As many merges as make `--merges` classes of tokens under mirrors and turns."""
    before = time.process_time()
    pool = ImageBPE.train(training, num_merges=4 * args.merges, codebook_size=args.codes)
    seen: set[bytes] = set()
    merges = 0
    while len(seen) < args.merges and merges < pool.num_merges:
        seen.add(turned(pool.cells(args.codes + merges)))
        merges += 1
    cpu, base = time.process_time() - before, length(pool.first(args.merges), held_out)
    show("merges", base, base, cpu)
    name = f"{len(seen)} classes of mirrored and turned tokens: {merges} merges"
    show(name, length(pool.first(merges), held_out), base, cpu)


def pair_counts(bpe: ImageBPE, grids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts of each key of two tokens: of those that share an edge, and of those that a step of two cells joins."""
    height, width = grids.shape[1:]
    token, anchor = (np.empty(grids.shape, np.int64) for _ in range(2))
    start = bpe._table.start
    row, col = split_position(bpe._table.position)
    flat = row.astype(np.int64) * width + col
    for number, ids in enumerate(bpe.encode_batch(grids)):
        owner = np.full(height * width, -1)
        at = 0
        for one in ids:
            while owner[at] >= 0:
                at += 1
            cells = at + flat[start[one] : start[one + 1]]
            owner[cells] = at
            token[number].reshape(-1)[cells] = one
        anchor[number] = owner.reshape(height, width) + number * height * width
    sets = []
    for steps in ([(0, 1), (1, 0)], [(0, 2), (2, 0), (1, 1), (1, -1)]):
        pairs = []
        for down, right in steps:
            a = (slice(None), slice(0, height - down), slice(max(0, -right), width - max(0, right)))
            b = (slice(None), slice(down, height), slice(max(0, right), width - max(0, -right)))
            ends = np.stack([anchor[a].ravel(), anchor[b].ravel()])
            differ = ends[0] != ends[1]
            pairs.append(np.sort(ends[:, differ], axis=0))
        joined = np.concatenate(pairs, axis=1)
        sets.append(np.unique(joined[0] << 32 | joined[1]))
    sets[1] = np.setdiff1d(sets[1], sets[0], assume_unique=True)
    counts = []
    for joined in sets:
        a, b = joined >> 32, joined & 0xFFFFFFFF
        names = token.ravel()
        keys = np.stack([names[a], names[b], b // width - a // width, b % width - a % width])
        counts.append(np.sort(np.unique(keys, axis=1, return_counts=True)[1])[::-1])
    return counts[0], counts[1]


def compare_jumps(args: argparse.Namespace, training: np.ndarray, held_out: np.ndarray) -> None:
    """What the second half of the merges could save at most, by the counts that they start with."""
    before = time.process_time()
    half = args.merges // 2
    bpe = ImageBPE.train(training, num_merges=half, codebook_size=args.codes)
    touching, jumping = pair_counts(bpe, training[: args.choose_from])
    both = np.sort(np.concatenate([touching, jumping]))[::-1]
    cpu = time.process_time() - before
    for name, counts in (("touching", touching), ("jumping", jumping), ("both", both)):
        saved = counts[:half].sum() / len(training[: args.choose_from])
        print(f"| counts of the best {half} pairs, {name} | {saved:.1f} a grid | | {cpu:.1f} |")


# ---- the bound


def small_patterns(grids: np.ndarray, most: int) -> dict[bytes, list[tuple[int, ...]]]:
    """Connected patterns of 2 to `most` cells that occur twice → their places, as numbers of cells."""
    height, width = grids.shape[1:]
    shapes, new = set(), {((0, 0),)}
    for _ in range(most - 1):
        grown = set()
        for shape in new:
            for row, col in shape:
                for cell in ((row + 1, col), (row - 1, col), (row, col + 1), (row, col - 1)):
                    if cell not in shape:
                        cells = sorted((*shape, cell))
                        top, left = cells[0]
                        grown.add(tuple((r - top, c - left) for r, c in cells))
        shapes |= grown
        new = grown
    number = np.arange(grids.size).reshape(grids.shape)
    found: dict[bytes, list[tuple[int, ...]]] = {}
    for shape in sorted(shapes):
        cells = np.array(shape)
        low, high = cells.min(axis=0), cells.max(axis=0)
        views = [
            (slice(None), slice(r - low[0], height - high[0] + r), slice(c - low[1], width - high[1] + c))
            for r, c in cells
        ]  # fmt: skip
        codes = np.stack([grids[view].ravel() for view in views], axis=1)
        places = np.stack([number[view].ravel() for view in views], axis=1)
        _, which, counts = np.unique(codes, axis=0, return_inverse=True, return_counts=True)
        for one in np.flatnonzero(counts[which.ravel()] >= 2):
            name = cells.tobytes() + b"|" + codes[one].tobytes()
            found.setdefault(name, []).append(tuple(places[one]))
    return found


def bound(grids: np.ndarray, codes: int, num_tokens: int) -> None:
    """Tokens of the merges, compactly, and at least for any `num_tokens` of the pool."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array, vstack

    before = time.process_time()
    plain = ImageBPE.train(grids, num_merges=num_tokens, codebook_size=codes)
    found = small_patterns(grids, 4)
    pool = ImageBPE.train(grids, num_merges=4 * num_tokens, codebook_size=codes)
    merges, table, (start, flat) = as_arrays(pool, grids.shape[2])
    at, anchors = places_of(grids, merges, codes, table)
    named = set(map(frozenset, (p for places in found.values() for p in places)))
    for rank in range(len(merges)):
        cells = flat[start[rank] : start[rank + 1]]
        places = [tuple(anchor + cells) for anchor in anchors[at[rank] : at[rank + 1]]]
        if places and frozenset(places[0]) not in named:
            found[f"rank {rank}".encode()] = places
    # Variables: whether a pattern is in the vocabulary, whether a place is used, whether a cell stays single.
    places = [place for ones in found.values() for place in ones]
    of = np.repeat(np.arange(len(found)), [len(ones) for ones in found.values()])
    tokens, used, cells = len(found), len(places), grids.size
    cell = np.concatenate([np.array(place) for place in places])
    by = np.repeat(np.arange(used), [len(place) for place in places])
    once = coo_array(
        (np.ones(len(cell) + cells), (np.append(cell, np.arange(cells)), np.append(by + tokens, np.arange(cells) + tokens + used))),
        shape=(cells, tokens + used + cells),
    )  # fmt: skip
    rows = np.arange(used)
    allowed = coo_array(
        (np.append(np.ones(used), -np.ones(used)), (np.append(rows, rows), np.append(rows + tokens, of))),
        shape=(used, tokens + used + cells),
    )  # fmt: skip
    size = coo_array(
        (np.ones(tokens), (np.zeros(tokens, int), np.arange(tokens))),
        shape=(1, tokens + used + cells),
    )
    solved = linprog(
        np.append(np.zeros(tokens), np.ones(used + cells)),
        A_ub=vstack([allowed, size]), b_ub=np.append(np.zeros(used), num_tokens),
        A_eq=once, b_eq=np.ones(cells), bounds=(0, 1), method="highs",
    )  # fmt: skip
    if solved.status != 0:
        sys.exit(f"linprog: {solved.message}")
    count, cpu = len(grids), time.process_time() - before
    print(
        f"| {codes} codes, {num_tokens} tokens of {tokens} | {length(plain, grids):.2f} | "
        f"{length(plain, grids, 'compact'):.2f} | {solved.fun / count:.2f} | {cpu:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("way", choices=["greedy", "symmetric", "jumps", "bound"])
    parser.add_argument("--codes", type=int, default=1024)
    parser.add_argument("--grids", type=int, default=1000, help="to train on")
    parser.add_argument("--merges", type=int, default=8192)
    parser.add_argument("--pools", type=int, nargs="+", default=[2], help="times --merges")
    parser.add_argument("--choose-from", type=int, default=1000, help="grids that `greedy` reads")
    parser.add_argument("--train-file", type=Path, help=".npy of grids; photographs by default")
    parser.add_argument("--held-out-file", type=Path)
    parser.add_argument("--side", type=int, default=16, help="of the grids of `bound`")
    args = parser.parse_args()
    if args.train_file:
        training, held_out = (np.load(path) for path in (args.train_file, args.held_out_file))
        training = training[: args.grids]
    else:
        from bpe_data import photographs

        training, held_out = photographs(args.grids, args.codes)
    training, held_out = training.astype(np.int32), held_out.astype(np.int32)
    if args.way == "bound":
        small = np.ascontiguousarray(training[:12, : args.side, : args.side])
        bound(small, args.codes, args.merges)
        return
    print(f"| {args.codes} codes, {args.merges} tokens | held out | | CPU s |\n|---|---|---|---|")
    {"greedy": compare_greedy, "symmetric": compare_symmetric, "jumps": compare_jumps}[args.way](
        args, training, held_out
    )


if __name__ == "__main__":
    main()
