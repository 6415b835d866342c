"""The forms in which people have codes: read rightly, or refused with one sentence that says what to do."""

import subprocess
import sys

import numpy as np
import pytest

from being_vl.bpe import ImageBPE
from being_vl.bpe.training.trainer import train_merges
from being_vl.hub.part import Origin

CODES = np.random.default_rng(0).integers(0, 4, (6, 3, 5))


def train(grids):
    return train_merges(grids, num_merges=4, codebook_size=4, num_threads=1)


def encode(grids):
    return ImageBPE([[0, 1, 0, 1], [2, 3, 1, 0]], 4).encode_batch(grids, num_threads=1)


def objects():
    array = np.empty(len(CODES), dtype=object)
    array[:] = list(CODES)
    return array


def rows_of_objects():
    """As a parquet reader gives list<list<int>>: an array of arrays."""
    grids = []
    for grid in CODES:
        grids.append(np.empty(3, dtype=object))
        grids[-1][:] = list(grid)
    return grids


def series():
    pandas = pytest.importorskip("pandas")
    return pandas.Series(list(CODES), index=range(100, 106))


def column():
    datasets = pytest.importorskip("datasets")
    return datasets.Dataset.from_dict({"codes": CODES.tolist()})["codes"]


@pytest.mark.parametrize("make", [objects, rows_of_objects, series, column, CODES.tolist])
@pytest.mark.parametrize("use", [train, encode])
def test_is_read_as_the_array(make, use):
    expected, got = use(CODES), use(make())
    assert [list(map(int, one)) for one in got] == [list(map(int, one)) for one in expected]


def archive(tmp_path):
    np.savez(tmp_path / "codes.npz", grids=CODES)
    return np.load(tmp_path / "codes.npz")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda _: CODES.reshape(6, 15), r"reshape to \(6, 1, 15\)"),
        (
            lambda _: list(CODES.reshape(6, 15)),
            r"grids\[0\].*reshape a sequence of codes to \(1, 15\)",
        ),
        (archive, r"an \.npz archive of grids; pass one array of it, such as archive\['grids'\]"),
        (lambda _: CODES.astype(object), r"object array of shape \(6, 3, 5\).*astype"),
        (lambda _: CODES / 4, r"integers, got dtype float64 with values from 0.0 to 0.75"),
        (lambda _: CODES > 1, "integers, got dtype bool with values from False to True"),
        (lambda _: [CODES[0], CODES[1] / 4], r"grids\[1\] must hold integers, got dtype float64"),
        (lambda _: np.ma.masked_equal(CODES, 3), "a masked array"),
        (lambda _: [np.ma.masked_equal(CODES[0], 3)], r"grids\[0\] is a masked array"),
        (lambda _: [[[0, 1], [2]]], r"grids\[0\] is not an array"),
        (lambda _: [[["a", "b"]]], r"grids\[0\] must hold integers, got dtype <U1"),
        (lambda _: CODES[None], r"must have shape \(N, height, width\), got \(1, 6, 3, 5\)"),
    ],
)
@pytest.mark.parametrize("use", [train, encode])
def test_says_what_to_do(make, message, use, tmp_path):
    with pytest.raises(ValueError, match=message):
        use(make(tmp_path))


def test_one_sequence_of_codes():
    with pytest.raises(
        ValueError, match=r"grid must have shape.*reshape a sequence of codes to \(1, 5\)"
    ):
        ImageBPE([], 4).encode(np.zeros(5, int))


@pytest.mark.parametrize("use", [ImageBPE.train, train_merges])
def test_codebooks_of_32_bits_are_refused_before_memory_is_asked_for(use):
    with pytest.raises(
        ValueError, match=r"codebook_size must lie in \[1, 1048576\], got 4294967296; split"
    ):
        use(np.zeros((1, 2, 2), int), num_merges=1, codebook_size=1 << 32)


def test_a_sequence_beyond_the_columns_that_training_knows():
    with pytest.raises(
        ValueError, match=r"65535 rows and columns, got 65536; cut a longer sequence"
    ):
        train_merges(np.zeros((1, 1, 65536), np.int8), num_merges=2, codebook_size=4)


def test_a_relative_path_means_the_folder_at_load_time(tmp_path, monkeypatch):
    ImageBPE([[0, 1, 0, 1]], 2).save_pretrained(tmp_path / "vocabulary" / "inner")
    monkeypatch.chdir(tmp_path)
    for path, options in (("vocabulary/inner", {}), ("vocabulary", {"subfolder": "inner"})):
        bpe = ImageBPE.from_pretrained(path, **options)
        assert bpe.num_merges == 1
        assert bpe._checkpoint_source() == Origin(str(tmp_path / "vocabulary" / "inner"))
    bpe = ImageBPE.from_pretrained("vocabulary/inner/image_bpe.json")
    assert bpe._checkpoint_source() == Origin(str(tmp_path / "vocabulary" / "inner"))


def test_every_option_of_the_hub_is_handed_on(monkeypatch, tmp_path):
    (path,) = ImageBPE([[0, 1, 0, 1]], 2).save_pretrained(tmp_path)
    asked = {}

    def download(repo_id, filename, **options):
        asked.update(options, repo_id=repo_id, filename=filename)
        return path

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    options = {
        "subfolder": "inner", "revision": "v1", "cache_dir": str(tmp_path), "token": "hf_x",
        "local_files_only": True, "force_download": True,
    }  # fmt: skip
    bpe = ImageBPE.from_pretrained("someone/something", **options)
    assert bpe.num_merges == 1 and bpe._checkpoint_source() == Origin(
        "someone/something", "v1", "inner"
    )
    assert asked == {"repo_id": "someone/something", "filename": "image_bpe.json", **options}


def test_importing_the_room_loads_no_compiler():
    code = "import sys, being_vl.bpe; print({'numba', 'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
