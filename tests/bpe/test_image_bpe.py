"""ImageBPE against the law in plain Python: encode, decode, boundaries, threads, with and without numba."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_bpe_fixtures import odd_grids, random_rules

import being_vl
from being_vl.bpe import naive
from being_vl.bpe.codec import encode
from being_vl.bpe.codec.encode import KernelEncoder
from being_vl.bpe.image_bpe import ImageBPE
from being_vl.hub.flat_modules import flat_modules


def without_numba(bpe):
    """The same vocabulary in plain Python."""
    plain = copy.copy(bpe)
    plain.__dict__ |= {"_by_merges": bpe._plain, "_decode_grids": None}
    return plain


def vocabularies(seed, num_codes):
    """A learned vocabulary, then a drawn one: shapes that training seldom finds."""
    rng = np.random.default_rng(seed)
    grids = [grid.tolist() for grid in odd_grids(rng, 12, num_codes)]
    yield rng, naive.train(grids, 40, num_codes, min_count=1)
    yield rng, random_rules(rng, num_codes, 40)


@pytest.mark.parametrize("num_codes", [1, 2, 3, 8, 16384])
@pytest.mark.parametrize("seed", range(3))
def test_encodes_as_the_law(num_codes, seed):
    for rng, merges in vocabularies(seed, num_codes):
        grids = odd_grids(rng, 60, num_codes)
        expected = [naive.encode(grid.tolist(), merges, num_codes) for grid in grids]
        bpe = ImageBPE(merges, num_codes)
        assert isinstance(bpe._by_merges, KernelEncoder)
        for encoder in (bpe, without_numba(bpe)):
            assert [encoder.encode(grid).tolist() for grid in grids] == expected
            for threads in (1, 2, 8):
                many = encoder.encode_batch(grids, num_threads=threads)
                assert [ids.tolist() for ids in many] == expected
            heights, widths = zip(*(grid.shape for grid in grids), strict=True)
            decoded = encoder.decode_batch(expected, heights, widths)
            for one, grid in zip(decoded, grids, strict=True):
                np.testing.assert_array_equal(one, grid)


def test_worked_example():
    """Rules over codes {0, 1}: rank 0 joins 0 and 1 side by side into 2; rank 1 puts a 2 on a 2, into 3.

        0 1 0        2 . 0        3 . 0
        0 1 1   →    2 . 1   →    . . 1       ids in raster order of anchors: 3 0 1

    The 0 at the top right has a 1 below, not beside it, so rank 0 leaves it alone.
    """
    bpe = ImageBPE([[0, 1, 0, 1], [2, 2, 1, 0]], 2)
    grid = np.array([[0, 1, 0], [0, 1, 1]])
    ids = bpe.encode(grid)
    assert ids.tolist() == [3, 0, 1] and ids.dtype == np.int32
    assert bpe.cells(3) == [(0, 0, 0), (0, 1, 1), (1, 0, 0), (1, 1, 1)]
    np.testing.assert_array_equal(bpe.decode(ids, 2, 3), grid)
    assert (bpe.codebook_size, bpe.num_merges, bpe.vocab_size) == (2, 2, 4)
    assert bpe.token_sizes().tolist() == [1, 1, 2, 4]


def test_a_chain_of_equals_merges_from_its_head():
    """(0, 0, 0, 1) on 0 0 0 0 0: cells 0 and 1, 2 and 3, and the last stays."""
    assert ImageBPE([[0, 0, 0, 1]], 1).encode(np.zeros((1, 5), int)).tolist() == [1, 1, 0]


def test_more_applicable_rules_than_room():
    """On a grid of equals every merge makes more rules applicable: the kernel starts over with room."""
    merges = [
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (1, 1, 1, 0),
        (1, 1, 0, 2),
        (1, 2, 0, 2),
        (3, 3, 0, 2),
        (6, 6, 2, 0),
    ]
    bpe = ImageBPE(merges, 1)
    for side in (31, 32, 40):
        grid = np.zeros((side, side), dtype=np.int32)
        expected = without_numba(bpe).encode(grid)
        np.testing.assert_array_equal(bpe.encode(grid), expected)
        np.testing.assert_array_equal(bpe.encode_batch([grid, grid, grid[:3]])[1], expected)


def test_wide_narrow_and_large_grids_in_one_batch():
    rng = np.random.default_rng(5)
    bpe = ImageBPE(random_rules(rng, 3, 200), 3)
    shapes = [(1, 700), (700, 1), (3, 129), (64, 64), (1, 1), (2, 255), (100, 33)]
    grids = [rng.integers(0, 3, shape) for shape in shapes]
    expected = [without_numba(bpe).encode(grid).tolist() for grid in grids]
    assert [ids.tolist() for ids in bpe.encode_batch(grids)] == expected
    assert [bpe.encode(grid).tolist() for grid in grids] == expected


def test_a_tall_and_a_wide_grid_do_not_make_one_board():
    """Laid out at one row length they would take 10¹¹ cells."""
    bpe = ImageBPE([[0, 0, 0, 1], [0, 0, 1, 0]], 1)
    grids = [np.zeros((1, 200_000), np.int8), np.zeros((200_000, 1), np.int8)]
    assert [len(ids) for ids in bpe.encode_batch(grids)] == [100_000, 100_000]
    with pytest.raises(ValueError, match="more than 16777216 cells"):
        bpe.encode(np.broadcast_to(np.int8(0), (4097, 4096)))
    with pytest.raises(ValueError, match="more than 16777216 cells"):
        bpe.encode_batch(np.broadcast_to(np.int8(0), (1, 4097, 4096)))
    with pytest.raises(ValueError, match="height 4097 x width 4096 is more than"):
        bpe.decode([0], 4097, 4096)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.uint64])
def test_arrays_of_any_integer_type_and_layout(dtype):
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 4, (50, 6, 5))
    bpe = ImageBPE(random_rules(rng, 4, 30), 4)
    expected = [ids.tolist() for ids in bpe.encode_batch(grids)]
    assert [ids.tolist() for ids in bpe.encode_batch(grids.astype(dtype))] == expected
    assert [ids.tolist() for ids in bpe.encode_batch(list(grids.astype(dtype)))] == expected
    turned = np.asfortranarray(grids.astype(dtype))
    assert [ids.tolist() for ids in bpe.encode_batch(turned)] == expected
    assert bpe.encode(grids[0].tolist()).tolist() == expected[0]
    assert bpe.encode_batch(grids[:0]) == [] == bpe.decode_batch([], 6, 5)


def test_memory_mapped_grids(tmp_path):
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 4, (700, 32, 32)).astype(np.int16)
    np.save(tmp_path / "codes.npy", grids)
    bpe = ImageBPE(random_rules(rng, 4, 30), 4)
    mapped = np.load(tmp_path / "codes.npy", mmap_mode="r")
    expected = [bpe.encode(grid).tolist() for grid in grids]
    assert [ids.tolist() for ids in bpe.encode_batch(mapped, num_threads=3)] == expected


def test_pair_mode():
    """The paper's rules ignore the offset: encode is the law's, decode says why it cannot be."""
    rng = np.random.default_rng(0)
    for num_codes in (2, 5):
        grids = odd_grids(rng, 40, num_codes)
        merges = naive.train(
            [grid.tolist() for grid in grids[:10]], 25, num_codes, min_count=1, merge_rule="pair"
        )
        bpe = ImageBPE(merges, num_codes, merge_rule="pair")
        for grid in grids:
            expected = naive.encode(grid.tolist(), merges, num_codes, merge_rule="pair")
            assert bpe.encode(grid).tolist() == expected
    same = ImageBPE([[0, 1, 0, 0], [2, 2, 0, 0]], 2, merge_rule="pair")
    first, second = np.array([[0, 1], [0, 1]]), np.array([[0, 0], [1, 1]])
    assert same.encode(first).tolist() == same.encode(second).tolist() == [3]
    for use in (lambda: same.decode([3], 2, 2), lambda: same.cells(3), lambda: same.shape_table()):
        with pytest.raises(ValueError, match='merge_rule="pair" tokens have no fixed shape'):
            use()


@pytest.mark.parametrize(
    "ids, message",
    [
        ([0, 1, 9], r"ids\[2\] is 9, but visual ids lie in \[0, 4\)"),
        ([0, -1], r"ids\[1\] is -1, but visual ids lie in"),
        ([0, 0, 2], r"ids\[2\] is 2, but there it runs over the border of the 2x3 grid"),
        ([0, 0, 0, 3], r"ids\[3\] is 3, but there it runs over the border"),
        ([0, 3, 3], r"ids\[2\] is 3, but there it .*"),
        ([0] * 7, r"ids\[6\] is 0, but the 2x3 grid is full after 6 ids"),
        ([3, 0], r"after ids\[1\], which is 0, cells of the 2x3 grid stay open"),
        ([], "ids is empty: cells of the 2x3 grid stay open"),
        ([0.5], "ids must hold integers, got dtype float64"),
        ([[0]], r"ids must have shape \(n,\), got shape \(1, 1\)"),
    ],
)
def test_decode_names_the_id_and_its_position(ids, message):
    bpe = ImageBPE([[0, 1, 0, 1], [2, 2, 1, 0]], 2)
    for decoder in (bpe, without_numba(bpe)):
        with pytest.raises(ValueError, match=f"^{message}"):
            decoder.decode(ids, 2, 3)
    begin = message.split()[0] if message.startswith("ids") else "after ids"
    with pytest.raises(ValueError, match="^" + begin.replace("ids", r"ids\[1\]", 1)):
        bpe.decode_batch([[3, 0, 1], ids], 2, 3)


def test_overlap_is_named():
    """Id 1 covers (0, 0), (1, 0) and 2 adds (1, 1): at (0, 1) an id that reaches down finds it taken."""
    bpe = ImageBPE([[0, 0, 1, 0], [1, 0, 1, 1]], 1)
    for decoder in (bpe, without_numba(bpe)):
        with pytest.raises(
            ValueError, match=r"ids\[1\] is 1, but there it overlaps the cells of earlier ids"
        ):
            decoder.decode([2, 1], 2, 2)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_decode_judges_any_ids_as_the_law(seed, data):
    rng = np.random.default_rng(seed)
    merges = random_rules(rng, 2, 8, max_cells=5)
    height, width = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    ids = data.draw(st.lists(st.integers(-1, 10), max_size=12))
    bpe = ImageBPE(merges, 2)
    try:
        expected = naive.decode(ids, height, width, merges, 2)
    except ValueError:
        for decoder in (bpe, without_numba(bpe)):
            with pytest.raises(ValueError, match=r"^(ids\[|after ids\[|ids is empty)"):
                decoder.decode(ids, height, width)
    else:
        for decoder in (bpe, without_numba(bpe)):
            assert decoder.decode(ids, height, width).tolist() == expected


@pytest.mark.parametrize(
    "grid, message",
    [
        (np.zeros((2, 2, 2), int), r"grid must have shape \(height, width\)"),
        (np.zeros((0, 2), int), "at least 1x1"),
        (np.zeros((2, 2)), "grid must hold integers, got dtype float64"),
        (np.zeros((2, 2), bool), "got dtype bool"),
        (np.array([[0, 1], [2, 0]]), r"grid\[1, 0\] is 2, but codes lie in \[0, 2\)"),
        (np.array([[0, -1]]), r"grid\[0, 1\] is -1"),
    ],
)
def test_encode_names_what_is_wrong(grid, message):
    bpe = ImageBPE([[0, 1, 0, 1]], 2)
    with pytest.raises(ValueError, match=message):
        bpe.encode(grid)
    if grid.ndim == 2:
        with pytest.raises(ValueError, match=message.replace("grid", r"grids\[3\]")):
            bpe.encode_batch([np.zeros((1, 1), int)] * 3 + [grid])
    if grid.size and grid.ndim == 2:
        with pytest.raises(ValueError, match=message.replace("grid", r"grids(\[[01]\])?")):
            bpe.encode_batch(np.stack([np.zeros_like(grid), grid]))


@pytest.mark.parametrize(
    "height, width, message", [(0, 2, "height"), (2, True, "width"), (2, 1.0, "width")]
)
def test_decode_checks_the_size(height, width, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ImageBPE([], 2).decode([0, 0], height, width)


def test_equality_copies_and_repr():
    rules = random_rules(np.random.default_rng(0), 4, 20)
    bpe = ImageBPE(rules, 4)
    bpe.encode(np.zeros((3, 3), int))
    for twin in (ImageBPE(rules, 4), copy.deepcopy(bpe), pickle.loads(pickle.dumps(bpe))):
        assert twin == bpe and hash(twin) == hash(bpe)
    assert pickle.dumps(bpe) == pickle.dumps(ImageBPE(rules, 4))
    assert bpe != ImageBPE(rules[:-1], 4) and ImageBPE([], 4) != ImageBPE([], 5) and bpe != "bpe"
    assert repr(bpe) == "ImageBPE(codebook_size=4, num_merges=20)"
    with pytest.raises(ValueError, match="read-only"):
        bpe.merges[0] = 0


def test_trains_through_the_trainer():
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 3, (20, 6, 6))
    bpe = ImageBPE.train(grids, num_merges=12, codebook_size=3)
    assert bpe.merges.tolist() == [list(r) for r in naive.train(grids.tolist(), 12, 3)]


_ALONE = """
import sys
blocked = sys.argv[3].split(",")
for name in blocked:
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from {module} import ImageBPE
bpe = ImageBPE.from_pretrained(sys.argv[2])
grids = np.load(sys.argv[2] + "/grids.npy")
ids = bpe.encode_batch(grids, num_threads=2)
assert all((bpe.decode(i, 9, 7) == g).all() for i, g in zip(ids, grids))
assert bpe.legal_next(np.zeros((9, 7), bool)).any()
loaded = [name for name in ("torch", "transformers", "numba") if sys.modules.get(name)]
compact = bpe.encode_batch(grids, segmentation="compact")
print(type(bpe._by_merges).__name__, loaded, [i.tolist() for i in ids], [i.tolist() for i in compact])
try:
    ImageBPE.train(grids, num_merges=2, codebook_size=3)
except ImportError as error:
    assert "needs the package being_vl" in str(error), error
    print("cannot train")
"""


def _run_alone(tmp_path, module, path, blocked, **environment):
    rng = np.random.default_rng(3)
    bpe = ImageBPE(random_rules(rng, 3, 40), 3)
    bpe.save_pretrained(tmp_path)
    grids = rng.integers(0, 3, (30, 9, 7))
    np.save(tmp_path / "grids.npy", grids)
    script = _ALONE.format(module=module)
    command = [sys.executable, "-c", script, str(path), str(tmp_path), blocked]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    expected = [
        str([ids.tolist() for ids in bpe.encode_batch(grids, segmentation=segmentation)])
        for segmentation in ("merges", "compact")
    ]
    return done.stdout, " ".join(expected)


def test_without_numba_and_without_torch(tmp_path):
    package = Path(being_vl.__file__).parent
    out, expected = _run_alone(
        tmp_path, "being_vl.bpe.image_bpe", package.parent, "numba,torch,transformers"
    )
    assert out.startswith(f"PlainEncoder [] {expected}")


def test_without_the_compiler_of_numba(tmp_path):
    """NUMBA_DISABLE_JIT=1 leaves decorators that do nothing: the plain code runs, not kernels that wrap."""
    out, expected = _run_alone(
        tmp_path, "being_vl.bpe", Path(being_vl.__file__).parents[1], "torch", NUMBA_DISABLE_JIT="1"
    )
    assert out.startswith(f"PlainEncoder ['numba'] {expected}")


def test_as_flat_modules_of_a_checkpoint(tmp_path):
    """What travels with a checkpoint works where being_vl and numba are not installed."""
    folder = tmp_path / "lonely" / "flat"
    folder.mkdir(parents=True)
    for name, source in flat_modules(["image_bpe"]).items():
        (folder / f"{name}.py").write_text(source)
    out, expected = _run_alone(tmp_path, "flat.image_bpe", folder.parent, "being_vl,numba")
    assert out == f"PlainEncoder [] {expected}\ncannot train\n"


def test_first_keeps_what_the_vocabulary_says():
    rules = random_rules(np.random.default_rng(0), 4, 20)
    bpe = ImageBPE(rules, 4)
    assert bpe.first(7) == ImageBPE(rules[:7], 4) and bpe.first(20) == bpe
    assert bpe.first(0).vocab_size == 4
    pairs = ImageBPE([[0, 1, 0, 0], [2, 2, 0, 0]], 2, merge_rule="pair")
    assert pairs.first(1) == ImageBPE([[0, 1, 0, 0]], 2, merge_rule="pair")
    for wrong in (-1, 21):
        with pytest.raises(ValueError, match=rf"num_merges must be in \[0, 20\], got {wrong}"):
            bpe.first(wrong)


def test_rules_that_hash_alike_get_other_factors(monkeypatch):
    """Half of a hash is kept of each rule; where two of them look alike, the next factors are taken."""
    rng = np.random.default_rng(0)
    rules, grids = random_rules(rng, 3, 60), odd_grids(rng, 40, 3)
    taken = []

    def factors():
        for these in ([0, 0, 0], [1, 0, 0], [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 5]):
            taken.append(these)
            yield np.array(these, dtype=np.uint64)

    monkeypatch.setattr(encode, "hash_factors", factors)
    bpe = ImageBPE(rules, 3)
    assert [ids.tolist() for ids in bpe.encode_batch(grids)] == [
        without_numba(bpe).encode(grid).tolist() for grid in grids
    ]
    assert len(taken) >= 3


def test_combs_that_touch_along_many_edges():
    """Two combs, the teeth of one between those of the other, share four dozen edges, and each edge notes their
    rule; what they make must not be merged, and note its own rules, as many times. Every cell has its own code."""
    width = 25
    grid = np.arange(4 * width).reshape(4, width)
    down = [(0, col) for col in range(width)] + [(1, col) for col in range(0, width, 2)]
    up = [(1, 1), *((2, col) for col in range(1, width)), (2, 0)]
    up += [(1, col) for col in range(3, width, 2)]
    rules = []

    def join(first, second, offset):
        rules.append((first, second, *offset))
        return grid.size + len(rules) - 1

    def grow(cells):
        token = int(grid[cells[0]])
        for row, col in cells[1:]:
            token = join(token, int(grid[row, col]), (row - cells[0][0], col - cells[0][1]))
        return token

    whole = join(grow(down), grow(up), (1, 1))
    for col in range(width):
        whole = join(whole, int(grid[3, col]), (3, col))
    bpe = ImageBPE(rules, grid.size)
    assert bpe.encode(grid).tolist() == [whole]
    assert [ids.tolist() for ids in bpe.encode_batch([grid] * 40)] == [[whole]] * 40
    assert without_numba(bpe).encode(grid).tolist() == [whole]
