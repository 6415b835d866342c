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


_VALUES = (
    "-1", "0", "1", "2", "7", "99999", "2147483648", "-2147483649", "1e3", "0.5", "true", "null", '"x"', "[]",
    "{}", "NaN", "-Infinity", "1" + "0" * 30, "[[[]]]", "16384", "-16384", "3", "",
)  # fmt: skip


def mutated_files(rng, count):
    """Valid files of image_bpe.json with one to four things changed: values, rules, bytes, fields, ends."""
    for _ in range(count):
        num_codes = int(rng.integers(1, 9))
        rules = random_rules(rng, num_codes, int(rng.integers(0, 24)))
        fields = {
            "format": '"being_vl.bpe.image_bpe"',
            "version": "1",
            "codebook_size": str(num_codes),
            "merge_rule": '"shape"',
        }
        rows = [[str(value) for value in rule] for rule in rules]
        for _ in range(rng.integers(1, 5)):
            _mutate(rng, fields, rows)
        merges = ",".join(f"[{','.join(row)}]" for row in rows)
        lines = [f'"{key}": {value}' for key, value in fields.items()] + [f'"merges": [{merges}]']
        text = bytearray(("{" + ",\n".join(lines) + "}").encode())
        if rng.random() < 0.2:
            text[rng.integers(len(text))] = rng.integers(256)
        if rng.random() < 0.1:
            del text[rng.integers(len(text)) :]
        if rng.random() < 0.05:
            at = rng.integers(len(text))
            text[at:at] = b"[" * int(rng.integers(1, 200_000))
        yield bytes(text)


def _mutate(rng, fields, rows):
    kind = rng.integers(9)
    any_row = rows[rng.integers(len(rows))] if rows else None
    if kind == 0:
        fields[list(fields)[rng.integers(len(fields))]] = _VALUES[rng.integers(len(_VALUES))]
    elif kind == 1 and len(fields) > 1:
        del fields[list(fields)[rng.integers(len(fields))]]
    elif kind == 2:
        fields["unknown"] = "1"
    elif any_row is None:
        return
    elif kind == 3 and any_row:
        any_row[rng.integers(len(any_row))] = _VALUES[rng.integers(len(_VALUES))]
    elif kind == 4 and any_row:  # cyclic and forward references, overlaps, gaps
        any_row[rng.integers(len(any_row))] = str(rng.integers(-2, 40))
    elif kind == 5:
        rows.append(list(any_row))
    elif kind == 6:
        any_row.append("0")
    elif kind == 7:  # doublings
        last = len(rows) + 8
        rows += [[str(last + r), str(last + r), "0", str(2**r)] for r in range(20)]
    else:
        rng.shuffle(rows)
