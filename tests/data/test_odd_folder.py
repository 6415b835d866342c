"""A folder of files as people have them goes through `encode` and comes out counted."""

from __future__ import annotations

import json
import os
import re
import tarfile

import numpy as np
import pytest
from encode_fixtures import make_images, make_processor, make_quantizer
from odd_folder import BROKEN, READ, check_encoded, make_folder
from PIL import Image

from being_vl.cli import main
from being_vl.data.quantizing import FolderSource
from being_vl.data.quantizing.sources import Record, TarSource
from being_vl.quantizers.image_loading import UnreadableImageError, load_image


@pytest.fixture
def quantizer(tmp_path):
    make_quantizer().save_pretrained(tmp_path / "vq")
    make_processor().save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


def encode(tmp_path, *more: str) -> int:
    words = [
        "--images",
        f"{tmp_path}/files",
        "--quantizer",
        f"{tmp_path}/vq",
        "--output",
        f"{tmp_path}/out",
    ]
    return main(["encode", *words, "--workers", "0", "--device", "cpu", *more])


def test_every_file_is_read_or_named_with_the_reason(tmp_path, quantizer, capsys):
    made = make_folder(tmp_path / "files", 120)
    assert encode(tmp_path, "--on-error", "skip", "--json") == 0
    counts = check_encoded(made, tmp_path / "out")
    assert counts[READ] > 50 and counts[BROKEN] > 15 and len(counts) > 8
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert sum(answer["left_out"].values()) == len(made) - counts[READ] - counts[BROKEN]
    count = counts[READ] + counts[BROKEN]
    found = rf"{count} images \(\d+ × .*\); left out \d+: .*: on cpu, into {re.escape(str(tmp_path))}/out\n"
    assert re.search(found, printed.err) and "× hidden" in printed.err  # before it starts


def test_names_that_libraries_take_for_something_else(tmp_path, quantizer):
    """fsspec chains at "::", URLs end at "#": a name of a file is a name of a file."""
    (tmp_path / "files").mkdir()
    names = [
        "a::b.png",
        "#1.png",
        "50%.png",
        "https:__x.png",
        "写真.png",
        "e\u0301.png",
        "line\nbreak.png",
    ]
    for name in names:
        Image.new("RGB", (16, 16)).save(tmp_path / "files" / name)
    assert encode(tmp_path) == 0  # --on-error raise
    made = dict.fromkeys(names, READ)
    assert check_encoded(made, tmp_path / "out") == {READ: len(names)}


def test_a_folder_without_pictures_says_what_is_there(tmp_path, quantizer, capsys):
    (tmp_path / "files").mkdir()
    for name in ("a.txt", "b.txt", "._c.jpg"):
        (tmp_path / "files" / name).touch()
    assert encode(tmp_path) == 2
    error = capsys.readouterr().err
    assert "no image file; left out 3: 2 × no image: .txt, 1 × made by macOS" in error


@pytest.mark.parametrize("way", ["pipe", "zero", "folder"])
def test_what_is_no_regular_file_neither_blocks_nor_fills_the_memory(tmp_path, way):
    path = tmp_path / "a.png"
    target = tmp_path / "target"
    if way == "pipe":
        os.mkfifo(target)
    elif way == "folder":
        target.mkdir()
    path.symlink_to("/dev/zero" if way == "zero" else target)
    reason = "Is a directory" if way == "folder" else "not a regular file"
    with pytest.raises(UnreadableImageError, match=reason):
        load_image(path)
    with pytest.raises((OSError, ValueError), match=reason):
        Record("a", path).read()


def test_the_source_counts_a_picture_once(tmp_path):
    make_images(tmp_path / "files", 5)
    (tmp_path / "files" / "again").symlink_to(tmp_path / "files", target_is_directory=True)
    source = FolderSource(tmp_path / "files", shard_size=2)
    assert source.num_images == 5 and source.left_out == [("again", "a link to a folder")]


def test_heic_is_read_where_its_plugin_is_installed(tmp_path, quantizer):
    """From a folder and from an archive, and with the pixels that were written."""
    heif = pytest.importorskip("pillow_heif")
    picture = Image.linear_gradient("L").resize((32, 32)).convert("RGB")
    (tmp_path / "files").mkdir()
    for name in ("a.heic", "B.HEIF"):
        heif.from_pillow(picture).save(tmp_path / "files" / name, quality=95)
    assert encode(tmp_path) == 0  # --on-error raise
    assert check_encoded(dict.fromkeys(("a.heic", "B.HEIF"), READ), tmp_path / "out") == {READ: 2}
    read = np.asarray(load_image(tmp_path / "files/a.heic"), int)
    assert np.abs(read - np.asarray(picture, int)).max() < 8
    with tarfile.open(tmp_path / "files.tar", "w") as archive:
        archive.add(tmp_path / "files/a.heic", "a.heic")
    (record,) = TarSource(str(tmp_path / "files.tar")).records(0)
    assert (
        record.image_id == "files/a" and (np.asarray(load_image(record.read()), int) == read).all()
    )
