"""grids, ids → flat arrays, checked once: the boundary of the image BPE, and its threads.

Threads rather than processes: the kernels release the GIL, so that one vocabulary serves all and no grid is
pickled.
"""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .rules import MAX_CODEBOOK_SIZE

# Enough that a thread has work for milliseconds, few enough for many chunks to be in memory.
CHUNK_CELLS = 1 << 18
_BOARD_CELLS = 1 << 20  # tallest by widest grid of a chunk: what the kernels lay out, roughly
MAX_GRID_CELLS = 1 << 24
NO_LIMIT = 1 << 62  # larger is no number for a kernel
Chunk = tuple[np.ndarray, np.ndarray, np.ndarray]  # flat int32, and two int64 per grid


def as_grids(grids: Any) -> Any:
    """What a user passes as grids: an integer array (N, H, W), or a sequence with one (h, w) for each index.

    Series of pandas and the like, whose indices are labels, and arrays of arrays become lists; nested lists stay.
    Of other forms a ValueError says what to do with them.
    """
    if isinstance(grids, np.lib.npyio.NpzFile):
        raise ValueError(
            f"grids is an .npz archive of {', '.join(grids.files) or 'no array'}; pass one array of it, "
            f"such as archive[{(grids.files or ['codes'])[0]!r}]"
        )
    if hasattr(grids, "iloc"):  # pandas: grids[0] asks for the label 0
        grids = grids.tolist() if hasattr(grids, "tolist") else grids.to_numpy()
    if not isinstance(grids, np.ndarray):
        return grids
    if grids.dtype == object:
        if grids.ndim == 1:
            return list(grids)
        raise ValueError(
            f"grids is an object array of shape {grids.shape}; pass integers: grids.astype(np.int32)"
        )
    if grids.ndim == 2:
        n, length = grids.shape
        raise ValueError(
            f"grids must have shape (N, height, width), got {grids.shape}; for {n} sequences of {length} codes, "
            f"reshape to ({n}, 1, {length}): a sequence is a grid of one row"
        )
    if grids.ndim != 3:
        raise ValueError(f"grids must have shape (N, height, width), got {grids.shape}")
    return grids


def as_grid(grid: Any, name: str) -> np.ndarray:
    """One grid, an array of integers (height, width) or nested lists of them, as an integer array, or a ValueError."""
    try:
        array = np.asanyarray(grid)  # masked arrays stay what they are
        if array.dtype == object and array.ndim == 1:
            array = np.array(array.tolist())  # an array of rows, as readers of parquet give it
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{name} is not an array (height, width): {error}") from None
    if array.ndim == 1 and array.size:
        raise ValueError(
            f"{name} must have shape (height, width), got {array.shape}; reshape a sequence of codes to "
            f"(1, {array.size}): it is a grid of one row"
        )
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"{name} must have shape (height, width), at least 1x1, got {array.shape}")
    check_integers(array, name)
    return array


def check_grid(grid: Any, codebook_size: int, name: str) -> np.ndarray:
    """One grid as an int32 array (height, width), every code in [0, codebook_size), or a ValueError."""
    array = as_grid(grid, name)
    if array.size > MAX_GRID_CELLS:
        raise ValueError(
            f"{name} has {array.size}, more than {MAX_GRID_CELLS} cells; cut it into parts"
        )
    check_codes(array, codebook_size, name)
    return np.ascontiguousarray(array, dtype=np.int32)


def check_integers(array: np.ndarray, name: str) -> None:
    """Refuse masked arrays, floats, booleans and objects as codes."""
    if isinstance(array, np.ma.MaskedArray):
        raise ValueError(
            f"{name} is a masked array, and a grid has a code in every cell; pass .filled(code), or .data "
            "where nothing is masked"
        )
    if array.dtype.kind not in "iu":
        held = ""
        if array.size and array.dtype.kind in "bf":
            held = f" with values from {array.min()} to {array.max()}"
        raise ValueError(
            f"{name} must hold integers, got dtype {array.dtype}{held}; use .astype(np.int32) if they are codes"
        )


def check_codes(array: np.ndarray, codebook_size: int, name: str, *, rule: str = "") -> None:
    """Check that an array holds codes; `rule` says in the message why they lie below `codebook_size`."""
    check_integers(array, name)
    if array.size and (array.min() < 0 or array.max() >= codebook_size):
        at = tuple(int(i) for i in np.argwhere((array < 0) | (array >= codebook_size))[0])
        place = ", ".join(map(str, at))
        raise ValueError(
            f"{name}[{place}] is {array[at]}, but codes lie in [0, {codebook_size}){rule}"
        )


def check_codebook_size(value: Any) -> int:
    """K: an integer that a vocabulary can be saved with."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f"codebook_size must be an integer, got {value!r}")
    if not 1 <= value <= MAX_CODEBOOK_SIZE:
        hint = "; split codes of more bits into several, as rows of a grid" if value > 1 else ""
        raise ValueError(f"codebook_size must lie in [1, {MAX_CODEBOOK_SIZE}], got {value}{hint}")
    return int(value)


def grid_chunks(grids: Any, codebook_size: int) -> Iterator[Chunk]:
    """Checked chunks (codes flat int32, heights, widths) of an array (N, H, W) or of a sequence of grids."""
    grids = as_grids(grids)
    if not isinstance(grids, (list, tuple)) and getattr(grids, "ndim", None) == 3:
        yield from _array_chunks(grids, codebook_size)
        return
    held: list[np.ndarray] = []
    cells = tallest = widest = 0
    for index, grid in enumerate(grids):
        array = check_grid(grid, codebook_size, f"grids[{index}]")
        height, width = array.shape
        tallest, widest = max(tallest, height), max(widest, width)
        if held and (cells + array.size > CHUNK_CELLS or tallest * widest > _BOARD_CELLS):
            yield _pack(held)
            held, cells, tallest, widest = [], 0, height, width
        held.append(array)
        cells += array.size
    if held:
        yield _pack(held)


def _array_chunks(grids: Any, codebook_size: int) -> Iterator[Chunk]:
    count, height, width = grids.shape
    if count and height * width == 0:
        raise ValueError(f"grids must have at least one cell each, got shape {tuple(grids.shape)}")
    if height * width > MAX_GRID_CELLS:
        raise ValueError(f"grids have more than {MAX_GRID_CELLS} cells each, got {height}x{width}")
    step = max(1, CHUNK_CELLS // max(1, height * width))
    for begin in range(0, count, step):
        block = np.asanyarray(grids[begin : begin + step])
        try:
            check_codes(block, codebook_size, "grids")
        except ValueError:  # say which grid it is among all
            for index, grid in enumerate(block, begin):
                check_grid(grid, codebook_size, f"grids[{index}]")
            raise
        flat = np.ascontiguousarray(block, dtype=np.int32).reshape(-1)
        sides = np.full((2, len(block)), [[height], [width]], dtype=np.int64)
        yield flat, sides[0], sides[1]


def _pack(held: list[np.ndarray]) -> Chunk:
    sides = np.array([grid.shape for grid in held], dtype=np.int64).T.copy()
    return np.concatenate([grid.reshape(-1) for grid in held]), sides[0], sides[1]


def flat_ids(ids: Sequence[Any], name: Callable[[int], str]) -> tuple[np.ndarray, np.ndarray]:
    """Sequences of visual ids as one int64 array and their int64 lengths; decode judges their range."""
    arrays = [np.asarray(one) for one in ids]
    for index, array in enumerate(arrays):
        if array.ndim != 1:
            raise ValueError(f"{name(index)} must have shape (n,), got shape {array.shape}")
        if array.dtype.kind not in "iu" and array.size:
            raise ValueError(f"{name(index)} must hold integers, got dtype {array.dtype}")
    counts = np.array([len(array) for array in arrays], dtype=np.int64)
    return np.concatenate(arrays).astype(np.int64), counts


def check_integer(value: Any, name: str, least: int = 1) -> int:
    """An integer of at least `least`, such as a height or width, that kernels can take."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
    if value > NO_LIMIT:
        raise ValueError(f"{name} must be at most {NO_LIMIT}, got {value!r}")
    return int(value)


def check_sides(value: Any, count: int, name: str) -> list[int]:
    """A height or width for each of count sequences, given as one for all or one for each."""
    if not isinstance(value, (Sequence, np.ndarray)):
        return [check_integer(value, name)] * count
    sides = [check_integer(side, f"{name}[{i}]") for i, side in enumerate(value)]
    if len(sides) != count:
        raise ValueError(f"{name} has {len(sides)} values for {count} sequences of ids")
    return sides


def check_threads(num_threads: int | None) -> int:
    """The number of threads to use: all cores this process may run on by default."""
    if num_threads is not None:
        return check_integer(num_threads, "num_threads")
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1


def map_in_order(work: Callable[..., Any], items: Iterator[Any], num_threads: int) -> Iterator[Any]:
    """work(*item) for every item, in order, on threads, with a bounded number of items in flight.

    A single item is worked on at once: to start a thread takes longer than to encode some grids.
    """
    first = list(itertools.islice(items, 2))
    if num_threads == 1 or len(first) < 2:
        for item in itertools.chain(first, items):
            yield work(*item)
        return
    items = itertools.chain(first, items)
    with ThreadPoolExecutor(num_threads) as pool:
        waiting = []
        for item in items:
            waiting.append(pool.submit(work, *item))
            if len(waiting) > 2 * num_threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()


def split_flat(flat: np.ndarray, counts: Sequence[int] | np.ndarray) -> list[np.ndarray]:
    """Cut flat into pieces of the given lengths."""
    ends = np.cumsum(counts).tolist()
    return [flat[begin:end] for begin, end in itertools.pairwise([0, *ends])]
