"""flat grids → flat tokens, compiled: arrays in, arrays out, the GIL released.

Source: points 5 to 7 of the law of the image BPE. Differs from the law's wording in that a queue replaces one
pass per rule: a merge makes only rules of later ranks applicable, so one sweep over the ranks, each with a list
of the anchors where it applies, meets every rule once. Without numba this module imports, and nothing in it is
to be called.

Layout. A batch of grids lies in one board, each in a part of `1 << part` cells, in rows of `stride` cells, a
power of two of at least twice the largest width, with at least one empty row above and below. So two tokens of a
grid have one flat distance (`step`) for one offset and the reverse, neighbours are read without bounds checks,
and two cells are of one grid where all bits of their indices but the last `part` agree. A cell holds
``anchor << 32 | token``, -1 outside of the grids: one comparison says that a token lies here and has its
anchor here. A batch is swept together, because what a rank costs (its record is far away in memory, its loops
are mispredicted once) is then paid once for many grids; the board stays small enough for the second-level cache.

What is fast here, and why:
- indices are unsigned: numba adds the length to negative ones of signed types, at every access, and keeps that
  length in a register. Without this the encoder takes 1.4 times as long.
- whether some rule joins two tokens is asked of 64 bits that lie with one of them (`partners`); few pairs get
  further, to a bucket of four slots that are compared at once.
- tests whose outcome is hard to predict do not branch: a value is always written, and counted if it is wanted.
"""

import threading
from collections.abc import Iterator

import numpy as np

from .._jit import explain_compilation, inlined, kernel
from ..shapes import TokenTable, cells_around, flat_position, ragged
from .plain import KEEP_ALL, Drop

# A record of int32 for each rank, all that a sweep asks of it in one run of memory: these fields, then its
# cells but the anchor, then the cells around (none for a token that no rule takes up), relative to the anchor.
FIRST, SECOND, STEP, NUM_CELLS, NUM_AROUND, PARTNERS_LOW, PARTNERS_HIGH, RECORD = range(8)
BATCH_CELLS = 1 << 16  # of a board; a larger grid is a batch by itself
# int64 that a thread keeps from call to call, enough for all batches but single large grids: fresh memory costs a
# page fault for every 4 kB, a quarter of the time of a clip.
SCRATCH = 6 * BATCH_CELLS
_LOW32 = np.uint64(0xFFFFFFFF)
_EMPTY = np.uint64(0xFFFFFFFFFFFFFFFF)
_TOKEN_FACTOR, _STEP_FACTOR = np.uint64(0x9E3779B97F4A7C15), np.uint64(0x165667B19E3779F9)
_ONE, _TOP6, _HALF = np.uint64(1), np.uint64(58), np.uint64(32)
u = np.uint64


def hash_factors() -> Iterator[np.ndarray]:
    """Factors of the hash of a rule, odd uint64 (3,): one choice after another, the same each time."""
    rng = np.random.default_rng(0)
    while True:
        yield rng.integers(0, 1 << 63, 3, dtype=np.uint64) * u(2) + u(1)


class KernelEncoder:
    """Encodes with the compiled kernel; merge_rule "shape" alone."""

    def __init__(self, merges: np.ndarray, codebook_size: int, table: TokenTable):
        self._merges = merges.astype(np.int64)
        self._codebook_size = codebook_size
        self._table = table
        self._by_stride: dict[int, tuple[np.ndarray, ...]] = {}
        self._kept = threading.local()  # scratch memory of each thread

    def encode(
        self, codes: np.ndarray, heights: np.ndarray, widths: np.ndarray, drop: Drop = KEEP_ALL
    ) -> tuple[np.ndarray, np.ndarray]:
        """As PlainEncoder.encode."""
        stride = 1 << int(2 * widths.max() - 1).bit_length()
        if stride not in self._by_stride:
            self._by_stride[stride] = self._at_stride(stride)
        tables = self._by_stride[stride]
        if not hasattr(self._kept, "scratch"):
            self._kept.scratch = np.empty(SCRATCH, dtype=np.int64)
        with explain_compilation(encode_grids):
            size, scratch = self._codebook_size, self._kept.scratch
            return encode_grids(codes, heights, widths, stride, size, tables, *drop, scratch)

    def _at_stride(self, stride: int) -> tuple[np.ndarray, ...]:
        """What encode_grids calls `vocabulary`, for rows of this many cells."""
        merges, count = self._merges, self._codebook_size
        step = merges[:, 2] * stride + merges[:, 3]
        usable = (np.abs(merges[:, 3]) < stride // 2) & (step < 1 << 31)  # no grid here has others
        rules = np.column_stack([merges[:, :2], np.where(usable, step, -1)])
        is_of_codes = merges[:, :2].max(axis=1, initial=0) < count
        for factors in hash_factors():
            of_codes, of_tokens = (
                np.full(1 << max(6, (2 * int(n)).bit_length()), _EMPTY, dtype=np.uint64)
                for n in (is_of_codes.sum(), (~is_of_codes).sum())
            )
            partners = np.zeros(count + len(merges), dtype=np.uint64)
            if fill_tables(rules, usable, count, factors, of_codes, of_tokens, partners):
                break
        starts, records = self._records(rules, partners[count:], stride)
        return partners[:count].copy(), starts, records, factors, of_codes, of_tokens

    def _records(
        self, rules: np.ndarray, partners: np.ndarray, stride: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Where the record of each rank starts, and the records."""
        table, count = self._table, self._codebook_size
        around_start, around = cells_around(table, self._merges, count)
        num_cells, num_around = np.diff(table.start[count:]) - 1, np.diff(around_start)
        ends = np.cumsum(RECORD + num_cells + num_around)
        starts = ends - RECORD - num_cells - num_around
        records = np.zeros(ends[-1] if len(ends) else 0, dtype=np.int32)
        for field in (FIRST, SECOND, STEP):
            records[starts + field] = rules[:, field]
        records[starts + NUM_CELLS], records[starts + NUM_AROUND] = num_cells, num_around
        halves = partners.view(np.int32).reshape(-1, 2)  # of little-endian numbers
        records[starts + PARTNERS_LOW], records[starts + PARTNERS_HIGH] = halves.T
        cells = flat_position(table.position, stride)[ragged(table.start[count:-1] + 1, num_cells)]
        records[ragged(starts + RECORD, num_cells)] = cells
        records[ragged(starts + RECORD + num_cells, num_around)] = flat_position(around, stride)
        return starts.astype(np.int32), records


@inlined
def _top_shift(size):
    """How far to shift a hash right for an index below size, a power of two."""
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return u(64 - bits)


@inlined
def _hash(first, second, step, factors):
    return u(first) * factors[u(0)] + u(second) * factors[u(1)] + u(step) * factors[u(2)]


@inlined
def _partner_bit(token, step):
    """Which of 64 bits stands for a token at this distance, which may be negative."""
    return (u(token) * _TOKEN_FACTOR + u(step) * _STEP_FACTOR) >> _TOP6


@kernel
def fill_tables(rules, usable, codebook_size, factors, of_codes, of_tokens, partners):
    """Fill the hash tables of ranks and the bits of partners.

    Tables are uint64 (2^n,) of _EMPTY, in buckets of four slots ``hash << 32 | rank``: rules that join two codes
    in `of_codes`, the others in `of_tokens`. A slot keeps half of a hash, so that two rules may look alike:
    then False is returned, and other factors are needed. `partners`, uint64 (K + M,) of zeros, gets for a code
    the codes that follow it in some rule, for other tokens all that it is joined with.
    """
    for rank in range(len(rules)):
        if usable[rank]:
            first, second, step = rules[rank, FIRST], rules[rank, SECOND], rules[rank, STEP]
            slots = of_codes if max(first, second) < codebook_size else of_tokens
            mixed = _hash(first, second, step, factors)
            slot = np.int64(mixed >> _top_shift(len(slots) // 4)) << 2
            while slots[slot] != _EMPTY:
                if slots[slot] >> _HALF == mixed & _LOW32:
                    return False
                slot = (slot + 1) & (len(slots) - 1)
            slots[slot] = mixed << _HALF | u(rank)
            if first >= codebook_size or second < codebook_size:
                partners[first] |= _ONE << _partner_bit(second, step)
            if second >= codebook_size:
                partners[second] |= _ONE << _partner_bit(first, -step)
    return True


@inlined
def _rank_of(first, second, step, factors, slots, shift, none):
    """The rank of a rule, or `none`; once in 2^32 times another rank, whose rule then proves not to apply."""
    mixed = _hash(first, second, step, factors)
    slot = np.int64(mixed >> shift) << 2
    wanted = mixed << _HALF
    while True:
        a, b, c, d = slots[u(slot)], slots[u(slot + 1)], slots[u(slot + 2)], slots[u(slot + 3)]
        rank = none
        if a ^ wanted <= _LOW32:
            rank = np.int64(a & _LOW32)
        if b ^ wanted <= _LOW32:
            rank = np.int64(b & _LOW32)
        if c ^ wanted <= _LOW32:
            rank = np.int64(c & _LOW32)
        if d ^ wanted <= _LOW32:
            rank = np.int64(d & _LOW32)
        if rank != none or d == _EMPTY:
            return rank
        slot = (slot + 4) & (len(slots) - 1)


@inlined
def _wait(rank, none, at, used, entries, newest, waiting):
    """Note that the rule of a rank applies at an anchor; returns how many entries are used.

    The rank `none` has a list too, which nobody reads: this saves a branch.
    """
    entries[u(used)] = np.int64(newest[u(rank)]) << 32 | at
    newest[u(rank)] = used
    waiting[u(rank >> 6)] = True
    return used + np.int64(rank != none)


@inlined
def _lay(codes, read, base, size, stride, used, vocabulary, board):
    """Lay a grid out from `base`, and note every rule that applies to two codes."""
    partners, _, _, factors, slots, _ = vocabulary  # of codes: nothing is merged yet
    cell, spots, entries, newest, waiting, none = board
    height, width = size
    shift = _top_shift(len(slots) // 4)
    beside_it = np.int64(1)  # numba would compile what it is passed to once more for a literal
    for row in range(height):
        at = base + row * stride
        beside, below = np.int64(0), np.int64(width)  # ends of two lists in spots
        for col in range(width):
            cell[u(at + col)] = (at + col) << 32 | codes[u(read + col)]
        for col in range(width - 1):
            bit = _partner_bit(np.int64(codes[u(read + col + 1)]), beside_it)
            spots[u(beside)] = col
            beside += np.int64(partners[u(codes[u(read + col)])] >> bit & _ONE)
        if row + 1 < height:
            for col in range(width):
                bit = _partner_bit(np.int64(codes[u(read + width + col)]), stride)
                spots[u(below)] = col
                below += np.int64(partners[u(codes[u(read + col)])] >> bit & _ONE)
        # Columns that may have a rule are collected first, and looked up then: one loop with an unforeseeable branch
        # would stall at each. Equal pairs often follow each other, and are looked up once.
        one_before, two_before, rank = np.int64(-1), np.int64(-1), none
        for k in range(beside):
            col = spots[u(k)]
            one, two = np.int64(codes[u(read + col)]), np.int64(codes[u(read + col + 1)])
            if one != one_before or two != two_before:
                rank = _rank_of(one, two, beside_it, factors, slots, shift, none)
                one_before, two_before = one, two
            used = _wait(rank, none, at + col, used, entries, newest, waiting)
        one_before = np.int64(-1)  # the rank kept is of a pair side by side
        for k in range(width, below):
            col = spots[u(k)]
            one, two = np.int64(codes[u(read + col)]), np.int64(codes[u(read + width + col)])
            if one != one_before or two != two_before:
                rank = _rank_of(one, two, stride, factors, slots, shift, none)
                one_before, two_before = one, two
            used = _wait(rank, none, at + col, used, entries, newest, waiting)
        read += width
    return used


@inlined
def _is_dropped(at, rank, part, stride, first_grid, seeds, below):
    """BPE-dropout: is the rule of a rank not to be applied at an anchor? As `plain.is_dropped`."""
    place = u((at & ((1 << part) - 1)) - stride)  # row * stride + col
    row, col = place // u(stride), place % u(stride)
    z = (
        seeds[first_grid + (at >> part)]
        + u(rank) * _TOKEN_FACTOR
        + (row << u(32) | col) * _STEP_FACTOR
    )
    z = (z ^ z >> u(30)) * u(0xBF58476D1CE4E5B9)
    z = (z ^ z >> u(27)) * u(0x94D049BB133111EB)
    return (z ^ z >> u(31)) >> u(11) < below


@inlined
def _sweep(part, stride, codebook_size, used, vocabulary, board, kept, first_grid, seeds, below):
    """Apply the waiting rules in rank order; returns whether entries were enough.

    One long function: numba counts references to arrays where they are handed on, inlined or not, which cost
    a fifth of the time when the steps of a rank were functions.
    """
    _, starts, records, factors, _, slots = vocabulary
    cell, spots, entries, newest, waiting, none = board
    shift = _top_shift(len(slots) // 4)
    beyond = np.int64(len(cell) - 1)  # an empty cell
    for word in range(len(waiting) - 1):
        if not waiting[u(word)]:
            continue
        for rank in range(64 * word, 64 * word + 64):
            entry = np.int64(newest[u(rank)])
            if entry < 0:
                continue
            newest[u(rank)] = -1
            record = starts[u(rank)]
            first, second = np.int64(records[u(record)]), np.int64(records[u(record + SECOND)])
            step = np.int64(records[u(record + STEP)])
            cells = record + RECORD
            around = cells + records[u(record + NUM_CELLS)]
            end = around + records[u(record + NUM_AROUND)]
            low, high = records[u(record + PARTNERS_LOW)], records[u(record + PARTNERS_HIGH)]
            mine = u(np.uint32(low)) | u(np.uint32(high)) << _HALF
            made = codebook_size + rank

            # Where does the rule still apply? That both lie in one grid is asked because `_rank_of` may have
            # taken another pair for this rule. `falling`: do the anchors come from the last to the first?
            found = np.int64(0)
            falling, last = True, beyond
            while entry >= 0:
                at = entries[u(entry)] & 0xFFFFFFFF
                entry = entries[u(entry)] >> 32
                there = min(at + step, beyond)
                differs = cell[u(at)] ^ (at << 32 | first) | cell[u(there)] ^ (there << 32 | second)
                spots[u(found)] = at
                found += np.int64((differs | (at ^ there) >> part) == 0)
                falling &= at < last
                last = at

            if below != 0:
                remaining = np.int64(0)
                for k in range(found):
                    at = spots[u(k)]
                    spots[u(remaining)] = at
                    dropped = _is_dropped(at, rank, part, stride, first_grid, seeds, below)
                    remaining += np.int64(not dropped)
                found = remaining

            # Chains a a a overlap: greedily in raster order. Anchors that fall are taken from the end (pairs
            # of codes always fall); otherwise each chain is followed from its head, not beyond its grid.
            is_chain = first == second and found > 1
            if is_chain:
                merged = np.int64(0)
                if falling:
                    for k in range(found - 1, -1, -1):
                        at = spots[u(k)]
                        there, mark = at + step, at << 32 | made
                        differs = cell[u(at)] ^ (at << 32 | first)
                        differs |= cell[u(there)] ^ (there << 32 | first)
                        cell[u(at)] = mark if differs == 0 else cell[u(at)]
                        cell[u(there)] = mark if differs == 0 else cell[u(there)]
                        kept[u(merged)] = at
                        merged += np.int64(differs == 0)
                else:
                    for k in range(found):
                        at = spots[u(k)]
                        begin = at >> part << part
                        if cell[u(at)] != at << 32 | first:
                            continue
                        while (
                            at - step >= begin and cell[u(at - step)] == (at - step) << 32 | first
                        ):
                            at -= step
                        while at + step < begin + (1 << part):
                            there, mark = at + step, at << 32 | made
                            differs = cell[u(at)] ^ (at << 32 | first)
                            if differs != 0 or cell[u(there)] != there << 32 | first:
                                break
                            if below != 0 and _is_dropped(
                                at, rank, part, stride, first_grid, seeds, below
                            ):
                                at = there
                                continue
                            cell[u(at)] = mark
                            cell[u(there)] = mark
                            kept[u(merged)] = at
                            merged += 1
                            at = there + step
                for k in range(merged):
                    spots[u(k)] = kept[u(k)]
                found = merged

            # Merge, each place once: tokens that touch along several edges noted the rule several times, and
            # were all taken up, the next token would note its rules as often for each of them, and so on.
            merged = np.int64(0)
            for k in range(found):
                at = spots[u(k)]
                mark = at << 32 | made
                spots[u(merged)] = at
                merged += np.int64(is_chain | (cell[u(at)] != mark))
                cell[u(at)] = mark
                for m in range(cells, around):
                    cell[u(at + records[u(m)])] = mark

            # Which rules apply to the new tokens and those that touch them?
            if around == end:
                continue
            if used + merged * (end - around) >= len(entries):
                return False
            for k in range(merged):
                at = spots[u(k)]
                num_near = np.int64(0)
                before = np.int64(-1)
                for m in range(around, end):
                    near = cell[u(at + records[u(m)])]
                    token = near & 0xFFFFFFFF
                    bit = _partner_bit(token, (near >> 32) - at)
                    wanted = np.int64(near != before) & np.int64(near >= 0)
                    # Two new tokens see each other; one alone notes it, so that lists keep their order.
                    wanted &= np.int64((token != made) | (near > at << 32))
                    kept[u(num_near)] = near
                    num_near += np.int64(mine >> bit & _ONE) & wanted
                    before = near
                for m in range(num_near):
                    there, token = kept[u(m)] >> 32, kept[u(m)] & 0xFFFFFFFF
                    is_first = there > at
                    one, two = made if is_first else token, token if is_first else made
                    next_rank = _rank_of(one, two, abs(there - at), factors, slots, shift, none)
                    used = _wait(next_rank, none, min(there, at), used, entries, newest, waiting)
    waiting[:] = False
    return True


@inlined
def _emit(base, size, stride, cell, ids, written):
    """Write the tokens of a grid in raster order of their anchors; returns how many ids are written."""
    height, width = size
    for row in range(height):
        for at in range(base + row * stride, base + row * stride + width):
            ids[u(written)] = cell[u(at)]
            written += np.int64(cell[u(at)] >> 32 == at)
    return written


@kernel
def encode_grids(codes, heights, widths, stride, codebook_size, vocabulary, seeds, below, scratch):
    """Encode grids that lie one after another in codes.

    Args:
        codes: int32, raster order; heights, widths: int64, one a grid.
        stride: int64, a power of two ≥ 2 * max(widths).
        vocabulary: partners of codes uint64 (K,), starts int32 (M,), records int32, and the hash of rules:
            factors and the two tables of `fill_tables`; at this stride.
        seeds, below: see `plain.Drop`.
        scratch: int64, whatever it holds; where it is too small, new memory is taken.

    Returns:
        ids int32, one grid after another, and int64 counts.
    """
    tallest = largest = np.int64(0)  # numba would compile functions of its own for heights.max()
    for grid in range(len(heights)):
        tallest, largest = max(tallest, heights[grid]), max(largest, heights[grid] * widths[grid])
    part = 0
    while (1 << part) < (tallest + 2) * stride:
        part += 1
    together = max(1, min(len(heights), BATCH_CELLS >> part))
    most = together * largest
    # Of one rule there are at most as many entries as cells around the tokens that it joins. Of all rules there are
    # 2 entries a cell when laid, and 4 to 6 where one code fills most of a grid.
    room = 4 * most + 2 * stride
    needed = (together << part) + 2 * room + max(1024, 8 * most)
    if needed > len(scratch):
        scratch = np.empty(needed, dtype=np.int64)
    cell, scratch = scratch[: together << part], scratch[together << part :]
    spots, kept = scratch[:room], scratch[room : 2 * room]
    entries = scratch[2 * room :]  # an anchor, and the entry before in its list
    words = (len(vocabulary[1]) + 63) // 64
    newest = np.empty(64 * words + 1, dtype=np.int32)  # by rank: the head of its list
    waiting = np.empty(words + 1, dtype=np.bool_)  # is any list of these 64 ranks filled?
    newest[:], waiting[:] = -1, False
    ids = np.empty(len(codes) + 1, dtype=np.int32)
    counts = np.empty(len(heights), dtype=np.int64)
    read = written = np.int64(0)
    for begin in range(0, len(heights), together):
        end = min(begin + together, len(heights))
        while True:
            board = (cell, spots, entries, newest, waiting, 64 * words)
            cell[:] = -1
            used, after = np.int64(0), read
            for grid in range(begin, end):
                base, size = ((grid - begin) << part) + stride, (heights[grid], widths[grid])
                used = _lay(codes, after, base, size, stride, used, vocabulary, board)
                after += heights[grid] * widths[grid]
            if _sweep(
                part, stride, codebook_size, used, vocabulary, board, kept, begin, seeds, below
            ):
                break
            entries = np.empty(2 * len(entries), dtype=np.int64)  # once more, with more
            newest[:] = -1
            waiting[:] = False
        for grid in range(begin, end):
            base, size = ((grid - begin) << part) + stride, (heights[grid], widths[grid])
            start, written = written, _emit(base, size, stride, cell, ids, written)
            counts[grid] = written - start
        read = after
    return ids[:written].copy(), counts
