"""`being-vl encode`: sources, order, restarts, refusals."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import datasets
import numpy as np
import psutil
import pytest
import torch
from data_fixtures import forked
from encode_fixtures import make_images, make_processor, make_quantizer, shard_bytes, write_tar
from filelock import FileLock
from PIL import Image

from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import CodeShards
from being_vl.data.quantizing import (
    DatasetSource,
    EncodeSettings,
    FolderSource,
    StreamSource,
    TarSource,
    quantize_source,
    quantizer_identity,
    write_manifest,
)

SHARD_SIZE = 4


def encode(source, output, *, crop=True, finish=True, **options):
    model, processor = make_quantizer(), make_processor(crop=crop)
    chosen = {
        "quantizer": quantizer_identity(model, processor),
        "shard_size": SHARD_SIZE,
        "batch_size": 3,
    }
    chosen |= {
        name: options.pop(name) for name in ("quantizer", "on_error", "format") if name in options
    }
    settings = EncodeSettings(**chosen)
    summary = quantize_source(source, model, processor, output, settings, **options)
    if finish:
        write_manifest(output, source, settings.format)
    return summary


def folder_source(folder):
    return FolderSource(folder, shard_size=SHARD_SIZE)


@pytest.fixture
def images(tmp_path):
    make_images(tmp_path / "images")
    return tmp_path / "images"


def test_each_image_gets_the_codes_that_it_gets_alone_in_sorted_order(tmp_path):
    ids = make_images(tmp_path / "images", 11)
    encode(folder_source(tmp_path / "images"), tmp_path / "out", crop=False)
    read = CodeShards(tmp_path / "out")
    assert read.image_ids() == ids
    model, processor = make_quantizer(), make_processor(crop=False)
    shapes = set()
    for image_id, grid in zip(ids, read, strict=True):
        image = Image.open(tmp_path / "images" / image_id)
        alone = model.encode(processor(image, return_tensors="pt")["pixel_values"])[0]
        np.testing.assert_array_equal(grid, alone.numpy())
        shapes.add(grid.shape)
    assert len(shapes) > 1  # the batches were mixed


def test_workers_and_ranks_do_not_change_a_byte(images, tmp_path):
    source = folder_source(images)
    encode(source, tmp_path / "one")
    encode(source, tmp_path / "workers", num_workers=2)
    for rank in (2, 0, 1):
        encode(source, tmp_path / "ranks", rank=rank, world=3, finish=rank == 1)
    assert shard_bytes(tmp_path / "workers") == shard_bytes(tmp_path / "one")
    assert shard_bytes(tmp_path / "ranks") == shard_bytes(tmp_path / "one")


def test_all_sources_give_the_same_codes(images, tmp_path):
    ids = [record.image_id for part in range(3) for record in folder_source(images).records(part)]
    rows = {"name": ids, "image": [{"bytes": (images / i).read_bytes(), "path": None} for i in ids]}
    features = datasets.Features({"name": datasets.Value("string"), "image": datasets.Image()})
    rows = datasets.Dataset.from_dict(rows, features=features)
    for i, part in enumerate((ids[:5], ids[5:])):
        members = {}
        for image_id in part:
            members[f"{image_id[:-4]}.json"] = b"{}"
            members[f"{image_id[:-4]}.PNG"] = (images / image_id).read_bytes()
        write_tar(tmp_path / f"shard-{i}.tar", members)
    sources = {
        "folder": (folder_source(images), ids),
        "dataset": (DatasetSource(rows, shard_size=SHARD_SIZE, id_column="name"), ids),
        "stream": (StreamSource(rows.to_iterable_dataset(num_shards=2), id_column="name"), ids),
        "tar": (
            TarSource(str(tmp_path / "shard-*.tar")),
            [f"shard-{i // 5}/{name[:-4]}" for i, name in enumerate(ids)],
        ),
    }
    grids = {}
    for name, (source, expected_ids) in sources.items():
        encode(source, tmp_path / name)
        read = CodeShards(tmp_path / name)
        assert read.image_ids() == expected_ids
        grids[name] = np.stack(list(read))
    for name in grids:
        np.testing.assert_array_equal(grids[name], grids["folder"])


def test_unreadable_images_are_named_and_never_replaced(images, tmp_path):
    (images / "b" / "001.png").write_bytes(b"not a picture")
    (images / "c" / "999.jpg").symlink_to("nowhere")
    source = folder_source(images)
    with pytest.raises(ValueError, match=r"b/001\.png: not a readable image"):
        encode(source, tmp_path / "raise", on_error="raise")
    summary = encode(source, tmp_path / "skip", on_error="skip")
    assert (summary.images, summary.skipped) == (9, 2)
    read = CodeShards(tmp_path / "skip")
    assert len(read) == 9
    assert "b/001.png" not in read.image_ids()
    lines = [json.loads(line) for line in (tmp_path / "skip" / "skipped.jsonl").open()]
    assert [line["image_id"] for line in lines] == ["b/001.png", "c/999.jpg"]
    assert lines[0]["reason"].startswith("not a readable image")
    assert "No such file" in lines[1]["reason"]


def test_samples_without_an_image_and_damaged_archives(tmp_path):
    write_tar(tmp_path / "a.tar", {"one.json": b""})
    encode(TarSource(str(tmp_path / "a.tar")), tmp_path / "skip", on_error="skip")
    assert "the sample has no image" in (tmp_path / "skip" / "skipped.jsonl").read_text()
    assert len(CodeShards(tmp_path / "skip")) == 0
    (tmp_path / "b.tar").write_bytes(b"x" * 2000)
    with pytest.raises(ValueError, match=r"b\.tar: damaged tar file"):
        encode(TarSource(str(tmp_path / "b.tar")), tmp_path / "damaged")


def test_names_in_archives(tmp_path):
    """Two images of a key, keys with dots before the extension, a key that two archives have."""
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    members = {
        "a": ("k.left.png", "k.right.png", "d/v1.0.png", "._k.png", "README"),
        "b": ("k.png",),
    }
    for name, inside in members.items():
        write_tar(tmp_path / f"{name}.tar", dict.fromkeys(inside, data))
    encode(TarSource(str(tmp_path / "*.tar")), tmp_path / "out")
    wanted = ["a/k.left.png", "a/k.right.png", "a/d/v1", "b/k"]
    assert CodeShards(tmp_path / "out").image_ids() == wanted


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_no_image_in_an_archive_is_counted_and_named(tmp_path, capsys, workers):
    """Members that are passed over, also where nothing else is in an archive: in the answer, and in skipped.jsonl."""
    make_quantizer().save_pretrained(tmp_path / "vq")
    make_processor(crop=True).save_pretrained(tmp_path / "vq")
    Image.new("RGB", (32, 32)).save(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    members = {
        "a": ("./k.png", "._k.png", "__MACOSX/k.png", ".git/k.png", "d/README"),
        "b": ("README",),
    }
    for name, inside in members.items():
        write_tar(tmp_path / f"{name}.tar", dict.fromkeys(inside, data))
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.LNKTYPE, "./k.png"
        archive.addfile(link)
    argv = ["encode", "--quantizer", tmp_path / "vq", "--webdataset", tmp_path / "*.tar", "--output", tmp_path / "out"]  # fmt: skip
    argv += ["--device", "cpu", "--workers", workers, "--json"]
    for _ in range(2):  # made, and found done
        assert being_vl_command(list(map(str, argv))) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["images"], result["skipped"]) == (1, 0)
        assert result["left_out"] == {
            "made by macOS beside a file": 2, "hidden": 1, "no extension": 2, "a link or a device": 1,
        }  # fmt: skip
    lines = map(json.loads, (tmp_path / "out/skipped.jsonl").read_text().splitlines())
    assert {line["image_id"]: line["reason"] for line in lines} == {
        "a/._k.png": "left out: made by macOS beside a file",
        "a/__MACOSX/k.png": "left out: made by macOS beside a file",
        "a/.git/k.png": "left out: hidden",
        "a/d/README": "left out: no extension",
        "a/link.png": "left out: a link or a device",
        "b/README": "left out: no extension",
    }


def test_a_continued_run_makes_only_what_is_missing(images, tmp_path):
    source = folder_source(images)
    encode(source, tmp_path / "out")
    wanted = shard_bytes(tmp_path / "out")
    (tmp_path / "out" / "codes-00001-00000.parquet").unlink()
    (tmp_path / "out" / "codes-00002-00000.parquet.tmp").write_bytes(b"half")
    summary = encode(source, tmp_path / "out")
    assert (summary.shards, summary.shards_found) == (1, 2)
    assert shard_bytes(tmp_path / "out") == wanted


def test_a_continued_part_of_many_shards(tmp_path):
    ids = make_images(tmp_path / "images", 10)
    features = datasets.Features({"image": datasets.Image()})
    rows = {"image": [{"bytes": (tmp_path / "images" / i).read_bytes(), "path": None} for i in ids]}
    rows = datasets.Dataset.from_dict(rows, features=features)

    def source():
        return StreamSource(rows.to_iterable_dataset(num_shards=1))

    encode(source(), tmp_path / "out")
    wanted = shard_bytes(tmp_path / "out")
    assert sorted(wanted)[:3] == [f"codes-00000-0000{i}.parquet" for i in range(3)]
    assert CodeShards(tmp_path / "out").image_ids()[-1] == "00000/00000009"
    for name in ("codes-00000-00001.parquet", "codes-00000-00002.parquet"):
        (tmp_path / "out" / name).unlink()
        encode(source(), tmp_path / "out")
        assert shard_bytes(tmp_path / "out") == wanted


def test_an_unfinished_folder_is_not_read_as_if_it_were_whole(images, tmp_path):
    encode(folder_source(images), tmp_path / "out", rank=0, world=2, finish=False)
    with pytest.raises(ValueError, match="has not finished"):
        CodeShards(tmp_path / "out")
    with pytest.raises(ValueError, match=r"codes-00001-00000\.parquet: this shard is missing"):
        write_manifest(tmp_path / "out", folder_source(images))
    encode(folder_source(images), tmp_path / "out")
    (tmp_path / "out" / "codes-00000-00000.parquet").unlink()
    with pytest.raises(ValueError, match=r"is listed in manifest\.json but missing"):
        CodeShards(tmp_path / "out")


def test_a_changed_source_or_quantizer_is_refused(images, tmp_path):
    encode(folder_source(images), tmp_path / "out")
    before = shard_bytes(tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"encode\.json: quantizer is sha256:.* this run's is other"
    ):
        encode(folder_source(images), tmp_path / "out", quantizer="other")
    shutil.copy(images / "a" / "000.png", images / "a" / "new.png")
    with pytest.raises(ValueError, match=r"encode\.json: source is .*'images': 10.*'images': 11"):
        encode(folder_source(images), tmp_path / "out")
    (images / "a" / "new.png").unlink()
    encode(folder_source(images), tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == before


def test_a_newer_image_is_compared_by_its_bytes(images, tmp_path):
    encode(folder_source(images), tmp_path / "out")
    path = images / "a" / "000.png"
    later = time.time() + 100
    os.utime(path, (later, later))
    encode(folder_source(images), tmp_path / "out")  # touched, not changed
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, (later, later))
    with pytest.raises(
        ValueError, match=r"codes-00000-00000\.parquet: an image of this shard has changed"
    ):
        encode(folder_source(images), tmp_path / "out")


def test_of_two_processes_one_wins(images, tmp_path):
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".rank-00000.lock"):
        with pytest.raises(OSError, match="another process is encoding into it as rank 0"):
            encode(folder_source(images), tmp_path / "out")
    encode(folder_source(images), tmp_path / "out")


def test_a_full_disk_leaves_nothing_half_written(images, tmp_path):
    encode(folder_source(images), tmp_path / "wanted")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (600, limits[1])
    )  # encode.json fits, a shard does not
    try:
        with pytest.raises(OSError, match=r"File too large: .*codes-00000-00000\.parquet"):
            encode(folder_source(images), tmp_path / "out", num_workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"encode.json", ".rank-00000.lock"}
    encode(folder_source(images), tmp_path / "out")
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "wanted")


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path, format):
    make_images(tmp_path / "images", 40)
    source = folder_source(tmp_path / "images")
    started = time.perf_counter()
    encode(source, tmp_path / "wanted", format=format)
    seconds = time.perf_counter() - started
    rng = np.random.default_rng(0)

    def begin() -> None:
        torch.set_num_threads(1)  # OpenMP does not survive a fork
        encode(source, tmp_path / "out", finish=False, format=format)

    for _ in range(5):
        child = forked(begin)
        time.sleep(float(rng.uniform(0, seconds)))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    encode(source, tmp_path / "out", format=format)
    assert shard_bytes(tmp_path / "out") == shard_bytes(tmp_path / "wanted")
    assert not list((tmp_path / "out").glob(".*.tmp*"))


def test_a_killed_process_leaves_no_worker_behind(tmp_path):
    make_images(tmp_path / "images", 200)

    def begin() -> None:
        torch.set_num_threads(1)
        encode(folder_source(tmp_path / "images"), tmp_path / "out", num_workers=2, finish=False)

    child = forked(begin)
    workers = wait_for(lambda: [p for p in psutil.Process(child).children() if p.is_running()])
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert workers
    wait_for(lambda: not any(p.is_running() and p.status() != "zombie" for p in workers))


WORKER = """
import multiprocessing, os, time
from being_vl.data.quantizing.decoding import end_with_parent

def work():
    end_with_parent()
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    worker = multiprocessing.get_context("{method}").Process(target=work)
    worker.start()
    worker.join()
"""


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_worker_lives_as_long_as_the_process_that_asked_for_it(tmp_path, method):
    """Whose child it is not where a fork server starts it, as Python 3.14 does."""
    (tmp_path / "main.py").write_text(WORKER.format(method=method))
    main = subprocess.Popen([sys.executable, tmp_path / "main.py"], stdout=subprocess.PIPE)
    worker = psutil.Process(int(main.stdout.readline()))
    time.sleep(0.5)
    assert worker.is_running() and main.poll() is None
    main.kill()
    main.communicate()
    wait_for(lambda: not worker.is_running() or worker.status() == "zombie")


def wait_for(condition, seconds=20.0):
    """The first true value of a condition; the test fails if none comes."""
    end = time.perf_counter() + seconds
    while not (value := condition()):
        assert time.perf_counter() < end, "it did not happen"
        time.sleep(0.02)
    return value


def test_the_identity_follows_what_decides_the_codes():
    model, processor = make_quantizer(), make_processor()
    same = quantizer_identity(make_quantizer(), make_processor())
    assert quantizer_identity(model, processor) == same
    assert quantizer_identity(model, processor, torch.bfloat16) != same
    assert quantizer_identity(model, make_processor(crop=False)) != same
    model.codebook.data[0, 0] += 1
    assert quantizer_identity(model, processor) != same


@pytest.fixture
def quantizer_folder(tmp_path):
    make_quantizer().save_pretrained(tmp_path / "quantizer")
    make_processor().save_pretrained(tmp_path / "quantizer")
    return tmp_path / "quantizer"


def test_the_command(images, tmp_path, quantizer_folder, capsys):
    arguments = [
        "encode", "--images", str(images), "--quantizer", str(quantizer_folder), "--output",
        str(tmp_path / "out"), "--shard-size", "4", "--device", "cpu", "--workers", "0", "--json",
    ]  # fmt: skip
    assert being_vl_command(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["images"], result["skipped"], result["shards"]) == (10, 0, 3)
    assert result["cells"] == 160
    assert len(CodeShards(tmp_path / "out")) == 10
    # The saved configuration runs the command again, which finds all done.
    saved = str(tmp_path / "out" / "encode.yaml")
    assert being_vl_command(["encode", "--config", saved, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["shards_found_done"] == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"--images": None}, "name one of --images, --data, --webdataset, --videos; got none"),
        ({"--webdataset": "x.tar"}, "got --images, --webdataset"),
        ({"--images": "nowhere"}, "nowhere: not a folder"),
        ({"--images": None, "--webdataset": "no*.tar"}, "no*.tar: no tar file matches"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    images, tmp_path, quantizer_folder, capsys, changes, message
):
    options = {
        "--images": str(images),
        "--quantizer": str(quantizer_folder),
        "--output": str(tmp_path / "out"),
        **changes,
    }
    flags = [part for pair in options.items() if pair[1] is not None for part in pair]
    assert being_vl_command(["encode", *flags]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("being-vl encode: error:")
    assert message in error[-1]
