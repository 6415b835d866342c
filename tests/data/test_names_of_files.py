"""A picture is the file of its name, whatever else the name could mean to somebody."""

from __future__ import annotations

import io

import datasets
import numpy as np
import pytest
from encode_fixtures import make_processor, make_quantizer
from PIL import Image

from being_vl.codes.shards import CodeShards
from being_vl.data.quantizing import (
    DatasetSource,
    EncodeSettings,
    FolderSource,
    quantize_source,
    write_manifest,
)
from being_vl.quantizers.quantizing import quantize

# Chained URLs, fragments, queries, escapes, globs, homes, variables, and one name in two Unicode forms.
NAMES = sorted(
    (
        "b.png", "a::b.png", "x#y.png", "file::c.png", "zip:::d.png", "a?b=c.png", "%41.png", "A.png",
        "[1].png", "*.png", "~.png", "$HOME.png", "a\\b.png", "http:.png", "-x.png", "\u00e9.png",
        "e\u0301.png", "sp ace.png", "\u65e5\u672c.png",
    )
)  # fmt: skip


def picture(seed: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for seed, name in enumerate(NAMES):
        picture(seed).save(tmp_path / "images" / name)
    return tmp_path / "images"


def codes(source, output):
    model, processor = make_quantizer(), make_processor()
    settings = EncodeSettings(quantizer="test", batch_size=4)
    quantize_source(source, model, processor, output, settings)
    write_manifest(output, source)
    return dict(zip(CodeShards(output).image_ids(), CodeShards(output), strict=True))


@pytest.mark.parametrize("kind", ["folder", "paths in a data set", "relative paths"])
def test_the_file_of_that_name(folder, tmp_path, monkeypatch, kind):
    wanted = quantize(
        [picture(seed) for seed in range(len(NAMES))], make_quantizer(), make_processor()
    )
    if kind == "folder":
        source = FolderSource(folder, shard_size=8)
    else:
        monkeypatch.chdir(folder)
        paths = [str(folder / name) if kind != "relative paths" else name for name in NAMES]
        rows = datasets.Dataset.from_dict({"image": paths, "name": NAMES})
        rows = rows.cast_column("image", datasets.Image(decode=False))
        source = DatasetSource(rows, shard_size=8, id_column="name")
    found = codes(source, tmp_path / "codes")
    assert sorted(found) == NAMES
    for name, grid in zip(NAMES, wanted, strict=True):
        np.testing.assert_array_equal(found[name], grid, err_msg=name)


def test_a_null_id_is_no_name():
    content = io.BytesIO()
    picture(0).save(content, "PNG")
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": content.getvalue(), "path": None}] * 2, "name": ["a", None]},
        features=datasets.Features({"image": datasets.Image(), "name": datasets.Value("string")}),
    )
    source = DatasetSource(rows, shard_size=8, id_column="name")
    with pytest.raises(ValueError, match="row 1: the id in column 'name' is null"):
        list(source.records(0))


def test_two_pictures_of_one_id_are_no_codes_of_that_id(tmp_path):
    """As `tokenize` has it: one picture may come twice, but another of the same id is refused."""

    def source(*seeds: int) -> DatasetSource:
        pictures = [picture(seed) for seed in seeds]
        rows = datasets.Dataset.from_dict({"image": pictures, "name": ["a"] * len(seeds)})
        rows = rows.cast_column("image", datasets.Image())
        return DatasetSource(rows, shard_size=1, id_column="name")

    assert set(codes(source(0, 0), tmp_path / "same")) == {"a"}
    other = tmp_path / "other"
    with pytest.raises(ValueError, match=f"{other}: image ids must differ, got 'a' twice"):
        codes(source(0, 1), other)
    assert not (other / "manifest.json").exists()
