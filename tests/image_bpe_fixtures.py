"""Vocabularies and grids for the tests of the image BPE."""

import numpy as np

STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def random_rules(rng, num_codes, num_merges, max_cells=12):
    """Valid rules of every shape, drawn rather than learned: (M, 4) rows."""
    shapes = [[(0, 0)] for _ in range(num_codes)]
    rules, seen = [], set()
    while len(rules) < num_merges:
        one, two = (int(i) for i in rng.integers(0, len(shapes), 2))
        a, b = shapes[one], shapes[two]
        if len(a) + len(b) > max_cells:
            continue
        at, step, to = a[rng.integers(len(a))], STEPS[rng.integers(4)], b[rng.integers(len(b))]
        offset = (at[0] + step[0] - to[0], at[1] + step[1] - to[1])
        if offset < (0, 0):
            one, two, a, b, offset = two, one, b, a, (-offset[0], -offset[1])
        moved = [(row + offset[0], col + offset[1]) for row, col in b]
        rule = (one, two, *offset)
        if offset == (0, 0) or set(a) & set(moved) or rule in seen:
            continue
        seen.add(rule)
        rules.append(rule)
        shapes.append(sorted(a + moved))
    return rules


def odd_grids(rng, count, num_codes, side=9):
    """Grids of every odd kind: lines, single cells, all equal, checkerboards, stripes, blobs, noise."""
    grids = []
    for kind in range(count):
        height, width = rng.integers(1, side + 1, 2)
        if kind % 6 == 0:
            height = 1
        if kind % 6 == 1:
            width = 1
        grid = rng.integers(0, num_codes, (height, width))
        row, col = np.indices(grid.shape)
        pattern = kind // 6 % 5
        if pattern == 1:
            grid[:] = grid[0, 0]
        elif pattern == 2:
            grid = np.where((row + col) % 2, grid[0, 0], grid[-1, -1])
        elif pattern == 3:
            grid = (row // 2 + col // 2) % num_codes
        elif pattern == 4:
            grid = np.where(grid < num_codes / 4, grid, grid[0, 0])
        grids.append(grid)
    return grids
