"""The fast trainer against the law, bit for bit."""

import hashlib
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from being_vl import ImageBPE
from being_vl.bpe import naive
from being_vl.bpe.rules import MAX_TOKEN_CELLS
from being_vl.bpe.training import choose, count, shard, trainer
from being_vl.bpe.training import options as training_options
from being_vl.bpe.training.checkpoints import Checkpoint
from being_vl.bpe.training.grids import open_grids
from being_vl.bpe.training.processes import OneProcess
from being_vl.bpe.training.trainer import train_merges
from being_vl.codes.shards import CodeShards, ShardInfo, write_shard

SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (5, 7), (8, 8)]


def draw_grids(rng: np.random.Generator) -> tuple[list[np.ndarray], int]:
    """Some small grids of one kind, and their codebook size."""
    codes = int(rng.integers(1, 5))
    shapes = [SHAPES[i] for i in rng.integers(0, len(SHAPES), int(rng.integers(1, 6)))]
    kind = rng.choice(["random", "equal", "checkerboard", "stripes", "high codes"])
    if kind == "equal":
        return [np.zeros(shape, np.int64) for shape in shapes], codes
    if kind == "checkerboard":
        return [np.indices(shape).sum(axis=0) % 2 for shape in shapes], 2
    if kind == "stripes":
        return [np.indices(shape)[1] % 3 for shape in shapes], 3
    grids = [rng.integers(0, codes, shape) for shape in shapes]
    if kind == "high codes":
        return [16383 - grid for grid in grids], 16384
    return grids, codes


def draw_options(rng: np.random.Generator, mode: str) -> dict:
    options = {"num_merges": int(rng.integers(0, 20)), "min_count": int(rng.integers(1, 4))}
    if rng.random() < 0.3:
        options["max_cells"] = int(rng.integers(1, 7))
    if mode != "pair" and rng.random() < 0.3:
        options["max_token_extent"] = int(rng.integers(1, 5))
    if mode == "pair":
        options["merge_rule"] = "pair"
    if mode == "spatial":
        options["scoring"] = "spatial"
        options["spatial_weight"] = float(rng.choice([0.0, 0.3, 0.9, 1.5]))
        options["spatial_sigma"] = float(rng.choice([0.5, 1.0, 3.0]))
    return options


def as_rules(merges: np.ndarray) -> list[tuple[int, ...]]:
    assert merges.dtype == np.int32 and merges.shape[1:] == (4,)
    return [tuple(rule) for rule in merges.tolist()]


@pytest.mark.parametrize(("mode", "rounds"), [("shape", 150), ("spatial", 80), ("pair", 80)])
def test_rules_are_those_of_the_law(mode, rounds):
    """Also with the grids in another order, with two threads, and from a checkpoint at any rank."""
    rng = np.random.default_rng(7)
    for _ in range(rounds):
        grids, codes = draw_grids(rng)
        options = draw_options(rng, mode)
        expected = naive.train(grids, codebook_size=codes, **options)
        seen = []
        merges = train_merges(
            grids, codebook_size=codes, num_threads=1, progress=seen.append, **options
        )
        assert as_rules(merges) == expected, (options, grids)
        shuffled = [grids[i] for i in rng.permutation(len(grids))]
        again = train_merges(shuffled, codebook_size=codes, num_threads=2, **options)
        assert as_rules(again) == expected, (options, grids)
        if not seen:
            continue
        rule = options.get("merge_rule", "shape")
        tokens = sum(len(naive.encode(grid, expected, codes, rule)) for grid in grids)
        assert seen[-1].num_tokens == tokens
        rank = int(rng.integers(0, len(expected) + 1))
        checkpoint = Checkpoint(merges[:rank], seen[-1].checkpoint.counts[:rank])
        resumed = train_merges(
            grids, codebook_size=codes, num_threads=1, checkpoint=checkpoint, **options
        )
        assert as_rules(resumed) == expected, (options, grids, rank)


def test_how_far_rules_go_ahead_does_not_matter(monkeypatch):
    """Rules that are merged before their turn: with any limits of how many, and with two threads."""
    rng = np.random.default_rng(5)
    for _ in range(150):
        grids, codes = draw_grids(rng)
        options = draw_options(rng, "shape")
        expected = naive.train(grids, codebook_size=codes, **options)
        monkeypatch.setattr(training_options, "MAX_AHEAD", int(rng.integers(0, 6)))
        monkeypatch.setattr(choose, "_MOST_PASSED", int(rng.integers(1, 6)))
        monkeypatch.setattr(choose, "MAX_BATCH", int(rng.integers(1, 6)))
        threads = int(rng.integers(1, 3))
        merges = train_merges(grids, codebook_size=codes, num_threads=threads, **options)
        assert as_rules(merges) == expected, (options, grids)


@pytest.mark.parametrize("mode", ["shape", "spatial", "pair"])
def test_what_cannot_be_saved_is_not_learned(mode, monkeypatch):
    """A token, or all tokens together, over the limits of image_bpe.json: the law and the trainer agree."""
    rng = np.random.default_rng(11)
    for _ in range(60):
        grids, codes = draw_grids(rng)
        options = draw_options(rng, mode)
        for name, most in (
            ("MAX_TOKEN_CELLS", rng.integers(2, 9)),
            ("MAX_TOTAL_CELLS", rng.integers(4, 40)),
        ):
            monkeypatch.setattr(naive, name, int(most))
            monkeypatch.setattr(training_options, name, int(most))
        expected = naive.train(grids, codebook_size=codes, **options)
        for threads in (1, 2):
            merges = train_merges(grids, codebook_size=codes, num_threads=threads, **options)
            assert as_rules(merges) == expected, (options, grids)
        if mode != "pair":
            sizes = [
                len(naive.cells(codes + rank, expected, codes)) for rank in range(len(expected))
            ]
            assert max(sizes, default=0) <= naive.MAX_TOKEN_CELLS
            assert sum(sizes) <= naive.MAX_TOTAL_CELLS


def test_rules_ahead_that_take_the_room_of_the_next_one(monkeypatch):
    """When tokens made before their turn fill the vocabulary, the training goes on from what is sure."""
    rng = np.random.default_rng(3)
    restarts = []

    class Counted(trainer._NoRoom):
        def __init__(self, checkpoint: Checkpoint):
            super().__init__(checkpoint)
            restarts.append(checkpoint)

    monkeypatch.setattr(trainer, "_NoRoom", Counted)
    for _ in range(25):
        codes, most = int(rng.integers(3, 9)), int(rng.integers(6, 60))
        grids = [rng.integers(0, codes, (8, 12)) for _ in range(3)]
        monkeypatch.setattr(naive, "MAX_TOTAL_CELLS", most)
        monkeypatch.setattr(training_options, "MAX_TOTAL_CELLS", most)
        options = {"num_merges": 40, "codebook_size": codes, "min_count": 1}
        expected = naive.train(grids, **options)
        for threads in (1, 2):
            assert as_rules(train_merges(grids, num_threads=threads, **options)) == expected
    assert restarts


def test_a_token_stops_growing_at_the_limit(tmp_path):
    """A line of 40,000 equal codes, twice: tokens double up to 16,384 cells, and the vocabulary can be saved."""
    bpe = ImageBPE.train(np.zeros((2, 1, 40_000), np.int8), num_merges=100, codebook_size=1)
    assert bpe.token_sizes().max() == MAX_TOKEN_CELLS
    bpe.save_pretrained(tmp_path)
    assert (ImageBPE.from_pretrained(tmp_path).merges == bpe.merges).all()


def test_without_numba():
    """The same kernels as plain Python: the same rules, in every mode."""
    script = """
import numpy as np
from being_vl.bpe import _jit, naive
from being_vl.bpe.training.trainer import train_merges
assert not _jit.HAS_NUMBA
rng = np.random.default_rng(0)
grids = [rng.integers(0, 3, (4, 5)) for _ in range(4)] + [np.zeros((3, 7), int)]
for options in ({}, {"merge_rule": "pair"}, {"scoring": "spatial"}, {"max_cells": 4}):
    expected = naive.train(grids, num_merges=12, codebook_size=3, **options)
    merges = train_merges(grids, num_merges=12, codebook_size=3, num_threads=2, **options)
    assert [tuple(rule) for rule in merges.tolist()] == expected, options
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        check=True,
        env={"BEING_VL_DISABLE_NUMBA": "1", "PYTHONPATH": ":".join(sys.path)},
    )


@pytest.fixture(scope="module")
def smooth_grids() -> np.ndarray:
    """Grids with structure: steps of a slow random walk in both directions, (200, 16, 16) int16."""
    rng = np.random.default_rng(3)
    steps = rng.integers(-1, 2, (200, 16, 16)).cumsum(axis=1) + rng.integers(
        -1, 2, (200, 1, 16)
    ).cumsum(axis=2)
    return (steps % 64).astype(np.int16)


def digest(merges: np.ndarray) -> str:
    return hashlib.sha256(merges.tobytes()).hexdigest()


def test_threads_and_order_do_not_matter(smooth_grids):
    """Five trainings: 1, 2 and 8 threads, and two other orders of the grids."""
    options = {"num_merges": 400, "codebook_size": 64}
    digests = {digest(train_merges(smooth_grids, num_threads=n, **options)) for n in (1, 2, 8)}
    for seed in (0, 1):
        order = np.random.default_rng(seed).permutation(len(smooth_grids))
        digests.add(digest(train_merges(smooth_grids[order], num_threads=2, **options)))
    assert len(digests) == 1


def test_a_low_memory_limit_counts_again_with_the_same_result(smooth_grids):
    options = {"num_merges": 400, "codebook_size": 64, "num_threads": 1}
    free = train_merges(smooth_grids, **options)
    tight = train_merges(smooth_grids, memory_limit=5 * smooth_grids.size, **options)
    assert digest(free) == digest(tight)


def test_positions_are_listed_tier_by_tier(monkeypatch):
    """The keys of one count at a time: the law's rules, also from a checkpoint."""
    rng = np.random.default_rng(13)
    passes, list_codes = [], shard.list_codes
    monkeypatch.setattr(shard, "list_codes", lambda *args: passes.append(1) or list_codes(*args))
    for _ in range(100):
        grids, codes = draw_grids(rng)
        options = draw_options(rng, "shape")
        expected = naive.train(grids, codebook_size=codes, **options)
        rank = int(rng.integers(0, len(expected) + 1))
        for threads in (1, 2):
            options |= {
                "codebook_size": codes,
                "num_threads": threads,
                "memory_limit": 1,
            }
            seen = []
            merges = train_merges(grids, progress=seen.append, **options)
            assert as_rules(merges) == expected, (options, grids)
            if seen:
                checkpoint = Checkpoint(merges[:rank], seen[-1].checkpoint.counts[:rank])
                resumed = train_merges(grids, checkpoint=checkpoint, **options)
                assert as_rules(resumed) == expected, (options, grids, rank)
    assert len(passes) > 400  # a tier for each training would be 300 with its threads


@pytest.mark.parametrize("threads", [1, 2])
def test_tiers_of_many_keys(smooth_grids, monkeypatch, threads):
    """Far more tiers than memory asks for, with lists that are dropped and moved between them."""
    options = {"num_merges": 400, "codebook_size": 64, "num_threads": threads}
    at_once = train_merges(smooth_grids, **options)
    passes, list_codes = [], shard.list_codes
    monkeypatch.setattr(shard, "list_codes", lambda *args: passes.append(1) or list_codes(*args))
    monkeypatch.setattr(shard, "_SPARE_POSITIONS", 1)
    cells = 4 * 17 * (17 * len(smooth_grids) + 1)
    for positions in (0, 3000, 12_000):
        passes.clear()
        limit = cells + 4 * positions
        assert digest(train_merges(smooth_grids, memory_limit=limit, **options)) == digest(at_once)
        assert len(passes) > 2 * threads


def test_keys_near_theta_are_listed_when_merges_come_down_to_them(smooth_grids, monkeypatch):
    options = {"num_merges": 400, "codebook_size": 64}
    at_once = train_merges(smooth_grids, **options)
    passes, list_codes = [], shard.list_codes
    monkeypatch.setattr(shard, "list_codes", lambda *args: passes.append(1) or list_codes(*args))
    assert digest(train_merges(smooth_grids, **options)) == digest(at_once) and not passes
    monkeypatch.setattr(training_options.Options, "num_listed", 100)  # so that theta lies above 2
    assert digest(train_merges(smooth_grids, **options)) == digest(at_once)
    assert len(passes) == 1


@pytest.fixture
def turns(monkeypatch) -> list[tuple[int, int, int]]:
    """Each turn of a first count: its first code, where it ends, and the bytes of sorted cells after it."""
    turns = []
    pairs = count._CodeCounter.pairs

    def counted(counter, turn, *args):
        found = pairs(counter, turn, *args)
        turns.append((*turn, counter._records.nbytes))
        return found

    monkeypatch.setattr(count._CodeCounter, "pairs", counted)
    monkeypatch.setattr(count, "_FOUND_AT_ONCE", 16)
    return turns


def set_room(monkeypatch, limit, room):
    """Sort so many bytes at a time, in as many turns as that takes."""
    if limit:
        monkeypatch.setattr(count, "_LEAST_ROOM", room)
        monkeypatch.setattr(count, "_MOST_TURNS", 1000)
    else:
        monkeypatch.setattr(training_options, "USUAL_ROOM", room)
        monkeypatch.setattr(training_options, "USUAL_TURNS", 1000)


@pytest.mark.parametrize("num_listed", [1, 200, 20_000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("limit", [None, 1])
def test_cells_are_counted_in_turns(smooth_grids, monkeypatch, turns, threads, num_listed, limit):
    """With theta from a sample, whether the turns find as many keys as it made expect, or far more."""
    options = {"num_merges": 400, "codebook_size": 64, "num_threads": threads}
    at_once = train_merges(smooth_grids, **options)
    assert len(turns) == 1
    turns.clear()
    room = 8 * smooth_grids.size // 5
    set_room(monkeypatch, limit, room)
    monkeypatch.setattr(training_options.Options, "num_listed", num_listed)
    assert digest(train_merges(smooth_grids, memory_limit=limit, **options)) == digest(at_once)
    assert len(turns) >= 4 and turns[0][0] == 0 and turns[-1][1] == 64
    assert max(records for _, _, records in turns) <= room


@pytest.mark.parametrize("num_listed", [1, 200, 20_000])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("limit", [None, 1, 260_000])
def test_a_code_of_most_cells_is_not_sorted(
    smooth_grids, monkeypatch, turns, threads, num_listed, limit
):
    """As the repeat code of still videos: what is sorted keeps to its room, and the rules stay the same."""
    still = np.random.default_rng(4).random(smooth_grids.shape) < 0.7
    for code in (0, 30, 64):
        grids = np.where(still, code, smooth_grids)
        options = {"num_merges": 400, "codebook_size": 65, "num_threads": threads}
        with monkeypatch.context() as patch:
            at_once = train_merges(grids, **options)
            turns.clear()
            room = 8 * grids.size // 4
            set_room(patch, limit, room)
            patch.setattr(training_options.Options, "num_listed", num_listed)
            again = train_merges(grids, memory_limit=limit, **options)
        assert digest(again) == digest(at_once)
        assert (code, code + 1) in [turn[:2] for turn in turns]
        assert max(records for _, _, records in turns) <= room


def test_a_full_pool_is_compacted_and_enlarged(smooth_grids, monkeypatch):
    options = {"num_merges": 400, "codebook_size": 64, "num_threads": 2}
    roomy = train_merges(smooth_grids, **options)
    options["memory_limit"] = 1  # a pool begins with the room of one list
    monkeypatch.setattr(shard, "_SPARE_POSITIONS", 1)
    sizes = []
    compact = shard.compact
    monkeypatch.setattr(shard, "compact", lambda *args: sizes.append(compact(*args)) or sizes[-1])
    assert digest(train_merges(smooth_grids, **options)) == digest(roomy)
    assert len(sizes) > 2


def test_large_ids_and_long_grids_need_wide_cells(smooth_grids):
    """More than 65,535 ids, or more than 256 columns: the same rules in 64 bits."""
    options = {"num_merges": 60, "num_threads": 1}
    rules = train_merges(smooth_grids, codebook_size=64, **options).astype(np.int64)
    wide = train_merges(smooth_grids, codebook_size=70_000, **options).astype(np.int64)
    rules[:, :2] += (rules[:, :2] >= 64) * (70_000 - 64)
    assert (rules == wide).all()
    long = [np.tile(np.arange(3), 100).reshape(1, 300)]
    assert as_rules(train_merges(long, codebook_size=3, num_merges=5)) == naive.train(long, 5, 3)


def test_sources_give_the_same_rules(tmp_path, smooth_grids):
    options = {"num_merges": 100, "codebook_size": 64, "num_threads": 2}
    expected = digest(train_merges(smooth_grids, **options))
    np.save(tmp_path / "codes.npy", smooth_grids)
    info = ShardInfo(codebook_size=64, quantizer="test")
    for part in range(2):
        grids = list(smooth_grids[100 * part : 100 * part + 100])
        names = [f"{part}-{i}" for i in range(100)]
        write_shard(tmp_path / f"codes-{part}.parquet", names, grids, info)
    for source in (
        tmp_path / "codes.npy",
        np.load(tmp_path / "codes.npy", mmap_mode="r"),
        list(smooth_grids),
        tmp_path,
        [tmp_path / "codes-0.parquet", tmp_path / "codes-1.parquet"],
        CodeShards(tmp_path),
        smooth_grids.astype(np.uint16),
        smooth_grids.astype(np.int32),
    ):
        assert digest(train_merges(source, **options)) == expected


class TwoInOne(OneProcess):
    """Claims to be one of two processes whose other half holds no grids: sums and joins change nothing."""

    size = 2


def test_a_process_reads_its_own_grids_alone(smooth_grids):
    seen = []
    train_merges(
        smooth_grids, num_merges=1, codebook_size=64, processes=TwoInOne(), progress=seen.append
    )
    half = train_merges(smooth_grids[:100], num_merges=1, codebook_size=64, progress=seen.append)
    assert seen[0].checkpoint.counts[0] == seen[1].checkpoint.counts[0]
    assert half.shape == (1, 4)


class Together:
    """One of several processes that are threads of this one."""

    def __init__(self, rank: int, said: list[np.ndarray], barrier: threading.Barrier):
        self.rank, self.size, self._said, self._barrier = rank, len(said), said, barrier

    def _all(self, values: np.ndarray) -> list[np.ndarray]:
        self._said[self.rank] = values.copy()
        self._barrier.wait(60)
        every = list(self._said)
        self._barrier.wait(60)
        return every

    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.sum(np.stack(self._all(values)), axis=0, dtype=values.dtype)

    def join(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate(self._all(values))

    def close(self) -> None:
        pass


def train_together(size: int, grids, **options) -> list[np.ndarray]:
    """The rules that each of `size` processes learns."""
    said, barrier = [np.empty(0)] * size, threading.Barrier(size)

    def train(rank: int) -> np.ndarray:
        try:
            return train_merges(grids, processes=Together(rank, said, barrier), **options)
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(size) as executor:
        return list(executor.map(train, range(size)))


@pytest.mark.parametrize("limit", [1, 60_000, 70_000, 94_500])
def test_processes_with_unequal_cells_agree_under_a_memory_limit(limit):
    """21 grids: one process has 10 of them, the other 11, and so less room beside its cells."""
    grids = np.minimum(np.random.default_rng(30).geometric(0.1, (21, 25, 30)) - 1, 11)
    options = {"num_merges": 100, "codebook_size": 12, "num_threads": 1}
    expected = digest(train_merges(grids, **options))
    for merges in train_together(2, grids, memory_limit=limit, **options):
        assert digest(merges) == expected


@pytest.mark.parametrize("mode", ["shape", "spatial", "pair"])
def test_processes_of_any_grids_learn_the_rules_of_the_law(mode):
    """Two or three, with grids of many sizes, with none at all, and with cells of 8 bytes in one alone."""
    rng = np.random.default_rng(17)
    for round_ in range(15):
        grids, codes = draw_grids(rng)
        if round_ % 3 == 0:
            grids.append(rng.integers(0, codes, (1, 300)))
        options = draw_options(rng, mode) | {"codebook_size": codes}
        expected = naive.train(grids, **options)
        options["memory_limit"] = [None, 1, 2000][int(rng.integers(3))]
        for merges in train_together(int(rng.integers(2, 4)), grids, num_threads=2, **options):
            assert as_rules(merges) == expected, (options, grids)


@pytest.mark.parametrize(
    ("grids", "options", "message"),
    [
        ([[[0, 9]]], {}, r"grids\[0\]\[0, 1\] must be in \[0, 4\), got 9"),
        ([[[0]], [[-1]]], {}, r"grids\[1\]\[0, 0\] must be in \[0, 4\), got -1"),
        ([[0, 1]], {}, r"grids\[0\] must have shape \(height, width\), got \(2,\)"),
        ([[[0.5]]], {}, r"grids\[0\] must hold integers, got dtype float64"),
        (np.zeros((2, 2)), {}, r"grids must have shape \(N, height, width\), got \(2, 2\)"),
        (np.zeros((2, 0, 2), int), {}, r"grids\[0\] must not be empty, got 0x2"),
        ([[[0]]], {"num_merges": -1}, "num_merges must be an integer of at least 0, got -1"),
        ([[[0]]], {"num_merges": True}, "num_merges must be an integer of at least 0, got True"),
        ([[[0]]], {"num_merges": 1 << 18}, "num_merges must be at most 131072, got 262144"),
        ([[[0]]], {"codebook_size": 1 << 21}, r"codebook_size must lie in \[1, 1048576\], got"),
        ([[[0]]], {"min_count": 0}, "min_count must be an integer of at least 1, got 0"),
        ([[[0]]], {"min_count": 1 << 63}, "min_count must be at most 4611686018427387904, got"),
        ([[[0]]], {"max_cells": 1 << 63, "merge_rule": "pair"}, "max_cells must be at most"),
        ([[[0]]], {"scoring": "best"}, "scoring must be one of .*, got 'best'"),
        ([[[0]]], {"merge_rule": "best"}, "merge_rule must be one of .*, got 'best'"),
        ([[[0]]], {"merge_rule": "pair", "scoring": "spatial"}, "needs the offsets"),
        ([[[0]]], {"merge_rule": "pair", "max_token_extent": 2}, "needs the shapes"),
        ([[[0]]], {"spatial_sigma": float("nan")}, "spatial_sigma must be .*, got nan"),
        (
            [[[0]]],
            {"spatial_sigma": 1e-200},
            "spatial_sigma must be .* at least 1e-100, got 1e-200",
        ),
    ],
)
def test_wrong_input_is_named(grids, options, message):
    with pytest.raises(ValueError, match=message):
        train_merges(grids, **{"num_merges": 4, "codebook_size": 4, **options})


def test_a_checkpoint_of_other_grids_is_refused():
    grids = [np.zeros((2, 2), int)]
    checkpoint = Checkpoint(np.array([[0, 0, 0, 1]], np.int32), np.array([3]))
    with pytest.raises(
        ValueError, match="its merge 0 occurs 2 times in these, and occurred 3 times"
    ):
        train_merges(grids, num_merges=2, codebook_size=1, checkpoint=checkpoint)


def test_no_grids_no_rules():
    assert train_merges([], num_merges=3, codebook_size=4).shape == (0, 4)
    assert open_grids(np.empty((0, 4, 4), np.int16)).sizes.shape == (0, 2)
