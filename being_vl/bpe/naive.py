"""The law of the image BPE in plain Python: codes → merge rules → tokens → codes.

Source: "From Pixels to Tokens" (ICLR 2025), sections 3 and 4, made exact: a merge is keyed by the offset
of its parts too, so a token has one shape, and the ids alone give the grid back. Nothing in the package
imports this module; the fast code is tested against it bit for bit.

1. A **token** is a connected set of cells with their codes; its **anchor** is its first cell in raster order.
2. A **merge rule** (first, second, row_offset, col_offset) of rank r joins a token `first` at p and a token
   `second` at p + offset, when they share an edge, into the token codebook_size + r at p.
3. **Count**: each unordered pair of adjacent tokens counts once for its key.
4. **Choose**: the highest score wins; ties go to the lexicographically smallest key.
5. **Apply**: occurrences are merged greedily in raster order of `first`; what has just been merged is not
   merged again by the same rule.
6. **Encode** applies the rules in rank order.
7. **Emit** in raster order of anchors.
8. **Decode**: the next id's anchor is always the first cell not yet covered.
9. **Time**: a cell of a frame that holds the code of the same cell in the frame before becomes the repeat code,
   codebook_size, in all but key frames; then each frame is a grid of codebook_size + 1 codes.

A grid under work is a dict from anchor to `Token`, a token being its visual id and its set of cells.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from .rules import MAX_TOKEN_CELLS, MAX_TOTAL_CELLS

Cell = tuple[int, int]
Rule = tuple[int, int, int, int]  # first, second, row_offset, col_offset


class Token(NamedTuple):
    visual_id: int
    cells: frozenset[Cell]


def start(grid: Iterable[Iterable[int]]) -> dict[Cell, Token]:
    """The grid as single-cell tokens."""
    return {
        (row, col): Token(int(code), frozenset([(row, col)]))
        for row, line in enumerate(grid)
        for col, code in enumerate(line)
    }


def adjacent(state: dict[Cell, Token]) -> list[tuple[Cell, Cell]]:
    """The anchors of every pair of tokens that share an edge, the earlier first, in raster order."""
    owner = {cell: anchor for anchor, token in state.items() for cell in token.cells}
    pairs = set()
    for row, col in owner:
        for beside in ((row, col + 1), (row + 1, col)):
            if beside in owner and owner[beside] != owner[row, col]:
                one, other = owner[row, col], owner[beside]
                pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


def key_of(state: dict[Cell, Token], one: Cell, other: Cell, merge_rule: str) -> Rule:
    """The key of two adjacent tokens; `merge_rule="pair"` forgets the offset (paper, Algorithm 4.1)."""
    offset = (other[0] - one[0], other[1] - one[1]) if merge_rule == "shape" else (0, 0)
    return (state[one].visual_id, state[other].visual_id, *offset)


def count(states: list[dict[Cell, Token]], merge_rule: str) -> Counter[Rule]:
    return Counter(
        key_of(state, one, other, merge_rule) for state in states for one, other in adjacent(state)
    )


def choose(
    counts: dict[Rule, int], eligible: list[Rule], scoring: str, weight: float, sigma: float
) -> Rule:
    """The eligible key with the highest score, ties to the smallest key.

    `scoring="frequency"` (Being-VL-0): the count. `scoring="spatial"` (Being-VL-0.5): F + weight · S, where
    F is the count divided by the highest eligible count of this step, and S is the `consistency` of all
    keys with the same first and second, whatever their offset.
    """
    if scoring == "frequency":
        return min(eligible, key=lambda key: (-counts[key], key))
    top = max(counts[key] for key in eligible)
    offsets: dict[tuple[int, int], dict[Cell, int]] = {}
    for (first, second, row, col), n in counts.items():
        offsets.setdefault((first, second), {})[row, col] = n
    consistent = {pair: consistency(of_pair, sigma) for pair, of_pair in offsets.items()}

    def score(key: Rule) -> float:
        return counts[key] / top + weight * consistent[key[0], key[1]]

    return min(eligible, key=lambda key: (-score(key), key))


def apply(state: dict[Cell, Token], rule: Rule, new_id: int, merge_rule: str) -> None:
    """Merge the occurrences of one rule, greedily in raster order."""
    for one, other in adjacent(state):
        if one not in state or other not in state:
            continue
        if new_id in (state[one].visual_id, state[other].visual_id):
            continue
        if key_of(state, one, other, merge_rule) == rule:
            state[one] = Token(new_id, state[one].cells | state.pop(other).cells)


def train(
    grids: Iterable[Iterable[Iterable[int]]],
    num_merges: int,
    codebook_size: int,
    min_count: int = 2,
    max_cells: int | None = None,
    max_token_extent: int | None = None,
    scoring: str = "frequency",
    merge_rule: str = "shape",
    spatial_weight: float = 0.3,
    spatial_sigma: float = 1.0,
) -> list[Rule]:
    """The rules in rank order.

    A key is eligible when its count is at least `min_count`, its token has at most `max_cells` cells, the
    token's bounding box is at most `max_token_extent` high and wide, and the vocabulary with that token can
    be saved. Training stops when no key is.
    """
    states = [start(grid) for grid in grids]
    merges: list[Rule] = []
    sizes = [1] * codebook_size  # cells of each token

    def allowed(key: Rule) -> bool:
        size = sizes[key[0]] + sizes[key[1]]
        if max_cells is not None and size > max_cells:
            return False
        if merge_rule == "pair":  # its tokens have no shape, so no table of cells limits them
            return True
        if size > MAX_TOKEN_CELLS or sum(sizes[codebook_size:]) + size > MAX_TOTAL_CELLS:
            return False
        return (
            max_token_extent is None or extent(join(key, merges, codebook_size)) <= max_token_extent
        )

    while len(merges) < num_merges:
        counts = count(states, merge_rule)
        eligible = [key for key, n in counts.items() if n >= min_count and allowed(key)]
        if not eligible:
            break
        rule = choose(counts, eligible, scoring, spatial_weight, spatial_sigma)
        for state in states:
            apply(state, rule, codebook_size + len(merges), merge_rule)
        merges.append(rule)
        sizes.append(sizes[rule[0]] + sizes[rule[1]])
    return merges


def encode(
    grid: Iterable[Iterable[int]],
    merges: Sequence[Rule],
    codebook_size: int,
    merge_rule: str = "shape",
) -> list[int]:
    """The grid's visual ids, in raster order of anchors."""
    state = start(grid)
    for rank, rule in enumerate(merges):
        apply(state, tuple(rule), codebook_size + rank, merge_rule)  # type: ignore[arg-type]
    return [state[anchor].visual_id for anchor in sorted(state)]


def decode(
    ids: Sequence[int], height: int, width: int, merges: Sequence[Rule], codebook_size: int
) -> list[list[int]]:
    """The grid of a sequence of visual ids (not in paper mode, whose tokens have no fixed shape).

    Raises:
        ValueError: an id is out of range, overlaps, runs over the border, comes after the last cell, or
            cells stay open.
    """
    open_cells = sorted((row, col) for row in range(height) for col in range(width))
    grid: dict[Cell, int] = {}
    for position, visual_id in enumerate(ids):
        where = f"visual id {visual_id} at position {position}"
        if not 0 <= visual_id < codebook_size + len(merges):
            raise ValueError(f"{where} is not in [0, {codebook_size + len(merges)})")
        anchor = next((cell for cell in open_cells if cell not in grid), None)
        if anchor is None:
            raise ValueError(f"{where} comes after the last cell of a {height}x{width} grid")
        for row, col, code in cells(visual_id, merges, codebook_size):
            cell = (anchor[0] + row, anchor[1] + col)
            if not (0 <= cell[0] < height and 0 <= cell[1] < width):
                raise ValueError(f"{where} runs over the border of a {height}x{width} grid")
            if cell in grid:
                raise ValueError(f"{where} overlaps cell {cell}")
            grid[cell] = code
    if len(grid) < height * width:
        raise ValueError(f"{len(ids)} ids leave {height * width - len(grid)} cells open")
    return [[grid[row, col] for col in range(width)] for row in range(height)]


Frame = list[list[int]]


def cell_by_cell(choose: Callable[[int, int], int], frame: Frame, before: Frame) -> Frame:
    """What `choose` makes of the codes of each cell in a frame and in the frame before."""
    pairs = (zip(*lines, strict=True) for lines in zip(frame, before, strict=True))
    return [[choose(code, old) for code, old in line] for line in pairs]


def mark_repeats(
    frames: Sequence[Frame], codebook_size: int, key_frame_interval: int | None = None
) -> list[Frame]:
    """The frames with the repeat code; the first, and one every key_frame_interval frames, hold none."""
    marked = []
    for t, frame in enumerate(frames):
        if t > 0 and (key_frame_interval is None or t % key_frame_interval):
            frame = cell_by_cell(
                lambda code, old: codebook_size if code == old else code, frame, frames[t - 1]
            )
        marked.append(frame)
    return marked


def restore_repeats(marked: Sequence[Frame], codebook_size: int) -> list[Frame]:
    """The frames of `mark_repeats`.

    Raises:
        ValueError: the first frame holds a repeat code.
    """
    if marked and any(codebook_size in line for line in marked[0]):
        raise ValueError(f"the first frame holds {codebook_size}, which repeats nothing there")
    frames: list[Frame] = []
    for frame in marked:
        before = frames[-1] if frames else frame
        frames.append(
            cell_by_cell(lambda code, old: old if code == codebook_size else code, frame, before)
        )
    return frames


def join(rule: Rule, merges: Sequence[Rule], codebook_size: int) -> list[tuple[int, int, int]]:
    """The cells (row, col, code) of a rule's token, relative to its anchor, in raster order."""
    first, second, row_offset, col_offset = rule
    moved = [
        (row + row_offset, col + col_offset, code)
        for row, col, code in cells(second, merges, codebook_size)
    ]
    return sorted(cells(first, merges, codebook_size) + moved)


def cells(visual_id: int, merges: Sequence[Rule], codebook_size: int) -> list[tuple[int, int, int]]:
    """The cells (row, col, code) of a token, relative to its anchor, in raster order."""
    if visual_id < codebook_size:
        return [(0, 0, visual_id)]
    return join(merges[visual_id - codebook_size], merges, codebook_size)


def extent(shape: list[tuple[int, int, int]]) -> int:
    """The longer side of the bounding box of cells (row, col, code)."""
    rows, cols = [row for row, _, _ in shape], [col for _, col, _ in shape]
    return max(max(rows) - min(rows), max(cols) - min(cols)) + 1


def consistency(offsets: dict[Cell, int], sigma: float) -> float:
    """S of Being-VL-0.5: the mean of exp(-|u - ū|² / 2σ²) over the occurrences of a pair.

    `offsets` maps each relative position u of the pair to how often it occurs; ū is their mean.
    """
    total = sum(offsets.values())
    mean_row = sum(n * row for (row, _), n in offsets.items()) / total
    mean_col = sum(n * col for (_, col), n in offsets.items()) / total
    score = 0.0
    for (row, col), n in sorted(offsets.items()):
        dr, dc = row - mean_row, col - mean_col
        score += n * exp_minus((dr * dr + dc * dc) / (2.0 * sigma * sigma))
    return score / total


def exp_minus(x: float) -> float:
    """exp(-x) for x ≥ 0 to 1e-8, by a fixed sequence of IEEE operations, so that all machines agree."""
    if x > 64.0:
        return 0.0
    t = x / 256.0
    y = 1.0 - t * (1.0 - t * (0.5 - t * (1.0 / 6.0 - t * (1.0 / 24.0))))
    for _ in range(8):
        y = y * y
    return y
