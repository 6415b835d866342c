"""The authors' released vocabularies: read without unpickling, encoded as their code does."""

import itertools
import os
import pickle
import re
import subprocess
import time

import numpy as np
import pytest

from being_vl.bpe.legacy import LegacyImageBPE
from being_vl.bpe.plain_pickle import read_plain_pickle


def merge_first(grid, first, second, new_id):
    """Rule 0, in words: walk the grid in raster order. Where an unspent `first` stands, a `second` to its
    right that is not spent is spent with it; else one below. The cell takes the new id, the other is
    dropped, and what remains is read as one sequence."""
    value = {(r, c): int(code) for r, line in enumerate(grid) for c, code in enumerate(line)}
    spent = set()
    for r, c in sorted(value):
        if value[r, c] == first and (r, c) not in spent:
            for other in ((r, c + 1), (r + 1, c)):
                if value.get(other) == second and other not in spent:
                    value[r, c] = new_id
                    spent.add(other)
                    break
    return [value[cell] for cell in sorted(value) if cell not in spent]


def merge_later(sequence, first, second, new_id):
    """Later rules: from left to right, `first` followed by `second` becomes the new id."""
    out = []
    while sequence:
        if sequence[:2] == [first, second]:
            out, sequence = [*out, new_id], sequence[2:]
        else:
            out, sequence = [*out, sequence[0]], sequence[1:]
    return out


def expected_ids(grid, entries):
    (first, second), new_id = entries[0]
    sequence = merge_first(grid, first, second, new_id)
    for (first, second), new_id in entries[1:]:
        sequence = merge_later(sequence, first, second, new_id)
    return sequence


def random_entries(rng, codebook_size, count):
    """Rules in the released form; repeated pairs and pairs of equals included."""
    return [
        (
            (int(rng.integers(codebook_size + r)), int(rng.integers(codebook_size + r))),
            codebook_size + r,
        )
        for r in range(count)
    ]


def learned_entries(rng, grids, codebook_size, count):
    """Rules that do apply: the pair most frequent in the sequences, ties to the smallest."""
    entries = []
    for r in range(count):
        pairs = {}
        for grid in grids:
            line = expected_ids(grid, entries) if entries else [int(c) for c in grid.reshape(-1)]
            for pair in itertools.pairwise(line):
                pairs[pair] = pairs.get(pair, 0) + 1
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        entries.append((best, codebook_size + r))
    return entries


@pytest.mark.parametrize("protocol", range(6))
def test_reads_every_protocol(tmp_path, protocol):
    entries = [((3, 70000), 70001), ((70001, 0), 70002), ((255, 256), 70003)] * 1
    path = tmp_path / "vbpe.pkl"
    path.write_bytes(pickle.dumps(entries, protocol))
    assert read_plain_pickle(path) == entries
    assert LegacyImageBPE.from_pickle(path).pairs.tolist() == [[3, 70000], [70001, 0], [255, 256]]


@pytest.mark.parametrize("seed", range(12))
def test_encodes_as_the_released_code(tmp_path, seed):
    rng = np.random.default_rng(seed)
    codebook_size = [1, 2, 3, 6][seed % 4]
    grids = [rng.integers(0, codebook_size, rng.integers(1, 9, 2)) for _ in range(12)]
    for entries in (
        random_entries(rng, codebook_size, 60),
        learned_entries(rng, [g for g in grids if g.size > 1], codebook_size, 8),
    ):
        path = tmp_path / "vbpe.pkl"
        path.write_bytes(pickle.dumps(entries))
        legacy = LegacyImageBPE.from_pickle(path)
        for grid in grids:
            assert legacy.encode(grid).tolist() == expected_ids(grid, entries)
        assert [ids.tolist() for ids in legacy.encode_batch(grids)] == [
            legacy.encode(g).tolist() for g in grids
        ]


def test_first_rule_by_hand():
    """[[1, 2], [1, 2]] with (1, 2) → 3: both rows merge to the right. [[1, 0], [2, 1]]: the first 1 has no
    2 to its right and takes the one below, so 2 is dropped from the second row."""
    legacy = LegacyImageBPE([[1, 2]], 3)
    assert legacy.encode(np.array([[1, 2], [1, 2]])).tolist() == [3, 3]
    assert legacy.encode(np.array([[1, 0], [2, 1]])).tolist() == [3, 0, 1]


def test_saves_marked_as_not_decodable(tmp_path):
    legacy = LegacyImageBPE([[0, 1], [2, 0]], 2)
    (path,) = legacy.save_pretrained(tmp_path)
    assert '"decodable": false' in open(path).read()
    assert LegacyImageBPE.from_pretrained(tmp_path).pairs.tolist() == [[0, 1], [2, 0]]
    with pytest.raises(ValueError, match="cannot be decoded"):
        legacy.decode([2], 1, 2)


class _Calls:
    """Pickles into a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def malicious_pickles(flag):
    """Twenty files that would run, import, allocate or loop; flag is a path that a run would create."""
    run = f"touch {flag}"
    recursive = []
    recursive.append(recursive)
    one = b"K\x01K\x02\x86K\x03\x86"
    return {
        "os.system": pickle.dumps(_Calls(os.system, run)),
        "os.system, protocol 0": pickle.dumps(_Calls(os.system, run), 0),
        "os.system inside an entry": pickle.dumps([((1, 2), _Calls(os.system, run))]),
        "subprocess": pickle.dumps(
            _Calls(subprocess.call, run, -1, None, None, None, None, None, True, True)
        ),
        "eval": pickle.dumps(_Calls(eval, f"open({str(flag)!r}, 'w')")),
        "exec": pickle.dumps(_Calls(exec, f"open({str(flag)!r}, 'w')")),
        "open": pickle.dumps(_Calls(open, str(flag), "w")),
        "GLOBAL alone": b"cos\nsystem\n.",
        "INST": b"(S'" + run.encode() + b"'\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nS'" + run.encode() + b"'\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(run)])
        + run.encode()
        + b"\x85R.",
        "NEWOBJ": b"\x80\x02cbuiltins\nobject\n)\x81.",
        "BUILD": b"\x80\x02](K\x01K\x02e}b.",
        "EXT1": b"\x80\x02\x82\x01.",
        "persistent id": b"P" + run.encode() + b"\n.",
        "huge memo index": b"\x80\x02]r\xff\xff\xff\xff.",
        "huge bytes": b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        "huge integer": b"\x80\x02](K\x01K\x02\x86\x8b\xff\xff\xff\x7f" + b"\x01" * 100 + b"\x86e.",
        "a list in itself": pickle.dumps(recursive),
        "a dict": pickle.dumps({(1, 2): 3}),
        "cut off": pickle.dumps([((1, 2), 3)] * 50)[:60],
        "no stop": b"\x80\x02](" + one + b"e",
        "booleans": pickle.dumps([((True, False), 3)], 0),
        "too short a stack": b"\x86.",
        "nothing": b"",
    }


def test_refuses_malicious_pickles(tmp_path):
    flag = tmp_path / "ran"
    files = malicious_pickles(flag)
    assert len(files) >= 20
    for name, data in files.items():
        path = tmp_path / "vbpe.pkl"
        path.write_bytes(data)
        begin = time.process_time()
        with pytest.raises(ValueError, match=re.escape("vbpe.pkl: ")):
            LegacyImageBPE.from_pickle(path)
        assert time.process_time() - begin < 1, name
        assert not flag.exists(), name


def test_refuses_a_file_too_large(tmp_path):
    path = tmp_path / "vbpe.pkl"
    with open(path, "wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ValueError, match="larger than"):
        LegacyImageBPE.from_pickle(path)


@pytest.mark.parametrize(
    "entries, message",
    [
        ([], "must hold a list"),
        ([((1, 2), 3, 4)], "entry 0 is not"),
        ([[(1, 2), 3]], "entry 0 is not"),
        ([((1, 2), 3), ((1, 3), 5)], "entry 1 makes id 5, expected 4"),
        ([((1, 3), 3)], r"pairs\[0\].second is 3, but only 3 tokens exist"),
        ([((1, -1), 3)], r"pairs\[0\].second is -1"),
        ([((1, 2), 0)], "codebook_size must lie in"),
        ([((1, 2**40), 3)], "beyond 32 bits"),
    ],
)
def test_names_the_bad_entry(tmp_path, entries, message):
    path = tmp_path / "vbpe.pkl"
    path.write_bytes(pickle.dumps(entries))
    with pytest.raises(ValueError, match=message):
        LegacyImageBPE.from_pickle(path)
