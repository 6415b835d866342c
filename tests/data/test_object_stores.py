"""Images, archives and codes in a bucket, on moto's S3 server; names that only look like URLs."""

from __future__ import annotations

import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
from data_fixtures import make_checkpoint, make_codes, make_rows, write_rows
from encode_fixtures import make_images, shard_bytes, write_tar
from transformers import AutoTokenizer

from being_vl.bpe import ImageBPE
from being_vl.cli import main as being_vl_command
from being_vl.codes.shards import CodeShards
from being_vl.data import load_training_data
from being_vl.data.quantizing import FolderSource, TarSource
from being_vl.files import place, write_atomic

_NEEDED = ("s3fs", "upath", "moto", "flask")
needs_s3 = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, _NEEDED)),
    reason="needs s3fs and moto; .ci/cluster installs them",
)


@pytest.fixture(scope="module")
def server():
    from moto.server import ThreadedMotoServer

    with pytest.MonkeyPatch.context() as environment:
        made = ThreadedMotoServer(port=0, verbose=False)
        made.start()
        host, port = made.get_host_and_port()
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            environment.setenv(name, "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        yield made
        made.stop()


@pytest.fixture
def bucket(server):
    import s3fs

    store = s3fs.S3FileSystem(use_listings_cache=False)
    if store.exists("bucket"):
        store.rm("bucket", recursive=True)
    store.mkdir("bucket")
    return store


def command(checkpoint, images, output, *more):
    options = [
        "--quantizer",
        f"{checkpoint}/vq_model",
        "--images",
        str(images),
        "--output",
        str(output),
    ]
    return ["encode", *options, "--device", "cpu", "--shard-size", "4", *more]


def in_bucket(store, folder, local):
    """Bytes of the files of a local folder's names in the bucket."""
    return {name: store.cat(f"bucket/{folder}/{name}") for name in local}


@needs_s3
@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_from_images_in_a_bucket_to_ids(bucket, tmp_path, format):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = make_images(tmp_path / "images", 10)
    bucket.put(str(tmp_path / "images"), "bucket/images", recursive=True)
    assert (
        being_vl_command(
            command(checkpoint, tmp_path / "images", tmp_path / "codes", "--format", format)
        )
        == 0
    )
    local = shard_bytes(tmp_path / "codes")
    remote = command(checkpoint, "s3://bucket/images", "s3://bucket/codes", "--workers", "2")
    remote += ["--format", format]
    assert being_vl_command(remote) == 0
    bucket.get("bucket/codes", str(tmp_path / "fetched"), recursive=True)
    assert shard_bytes(tmp_path / "fetched") == local
    assert being_vl_command(remote) == 0  # finds all of it done
    data = write_rows(tmp_path / "samples.json", make_rows(names))
    made = {}
    for name, codes in (("local", tmp_path / "codes"), ("remote", "s3://bucket/codes")):
        train = ["train-bpe", "--codes", str(codes), "--output", str(tmp_path / f"bpe-{name}")]
        assert being_vl_command([*train, "--num-merges", "8"]) == 0
        ids = [
            "tokenize",
            "--checkpoint",
            str(checkpoint),
            "--data",
            str(data),
            "--codes",
            str(codes),
        ]
        ids += ["--output", str(tmp_path / f"ids-{name}"), "--workers", "0", "--verify"]
        assert being_vl_command(ids) == 0
        shard = (tmp_path / f"ids-{name}" / "data-00000-of-00001.arrow").read_bytes()
        made[name] = ((tmp_path / f"bpe-{name}" / "image_bpe.json").read_bytes(), shard)
    assert made["remote"] == made["local"]
    changed = command(checkpoint, "s3://bucket/images", "s3://bucket/codes", "--batch-size", "2")
    assert being_vl_command([*changed, "--shard-size", "5"]) == 2  # refused as in a folder


def kill_and_go_on(bucket, argv, pattern, whole):
    """Kill a command at its first shard in the bucket: what is there is whole, and the command goes on."""
    run = subprocess.Popen([sys.executable, "-m", "being_vl", *argv], stderr=subprocess.DEVNULL)
    try:
        while run.poll() is None and not bucket.glob(pattern):
            time.sleep(0.01)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    for name in bucket.glob(pattern):
        assert bucket.cat(name) == whole[name.rpartition("/")[2]]
    assert being_vl_command(argv) == 0


@needs_s3
def test_a_run_that_was_killed_goes_on(bucket, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    make_images(tmp_path / "images", 24)
    assert being_vl_command(command(checkpoint, tmp_path / "images", tmp_path / "codes")) == 0
    local = shard_bytes(tmp_path / "codes")
    whole = {name: (tmp_path / "codes" / name).read_bytes() for name in local}
    remote = command(checkpoint, tmp_path / "images", "s3://bucket/codes", "--workers", "0")
    kill_and_go_on(bucket, remote, "bucket/codes/codes-*", whole)
    assert in_bucket(bucket, "codes", local) == whole


@needs_s3
def test_an_upload_that_was_killed_leaves_nothing_under_its_name(bucket):
    """Of more than s3fs sends at once: the parts that have come are no object."""
    script = (
        "import sys; from being_vl.files import place, write_atomic\n"
        "write_atomic(place('s3://bucket/large'), bytes(300 << 20))"
    )
    run = subprocess.Popen([sys.executable, "-c", script])
    uploads = []
    while run.poll() is None and not uploads:
        uploads = bucket.call_s3("list_multipart_uploads", Bucket="bucket").get("Uploads", [])
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL and uploads
    assert not bucket.exists("bucket/large")
    write_atomic(place("s3://bucket/large"), b"whole")
    assert bucket.cat("bucket/large") == b"whole"


@needs_s3
def test_ids_and_merges_are_written_to_a_bucket(bucket, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = sorted(make_codes(tmp_path / "codes"))
    data = write_rows(tmp_path / "samples.json", make_rows(names, 20))
    ids = ["tokenize", "--checkpoint", str(checkpoint), "--data", str(data), "--shard-size", "3"]
    ids += ["--codes", str(tmp_path / "codes"), "--workers", "0", "--output"]
    assert being_vl_command([*ids, str(tmp_path / "ids")]) == 0
    remote = [*ids, "s3://bucket/ids"]
    whole = {path.name: path.read_bytes() for path in (tmp_path / "ids").iterdir()}
    kill_and_go_on(bucket, remote, "bucket/ids/data-*", whole)
    found = {name.rpartition("/")[2]: bucket.cat(name) for name in bucket.ls("bucket/ids")}
    assert found.keys() == whole.keys() - {".lock"}
    assert [n for n in found if found[n] != whole[n]] == ["tokenize.yaml"]
    assert being_vl_command([*remote, "--on-missing", "skip"]) == 2  # refused as in a folder

    train = ["train-bpe", "--codes", str(tmp_path / "codes"), "--num-merges"]
    for output in (str(tmp_path / "bpe"), "s3://bucket/bpe"):
        assert being_vl_command([*train, "4", "--output", output]) == 0
    checkpoint_file = bucket.cat("bucket/bpe/checkpoint.json")
    assert checkpoint_file == (tmp_path / "bpe" / "checkpoint.json").read_bytes()
    assert being_vl_command([*train, "8", "--output", "s3://bucket/bpe"]) == 0  # goes on from it
    assert being_vl_command([*train, "8", "--output", str(tmp_path / "bpe8")]) == 0
    found = bucket.cat("bucket/bpe/image_bpe.json")
    assert found == (tmp_path / "bpe8" / "image_bpe.json").read_bytes()
    assert ImageBPE.from_pretrained("s3://bucket/bpe") == ImageBPE.from_pretrained(
        tmp_path / "bpe8"
    )


@needs_s3
def test_ids_in_a_bucket_are_trained_on_from_a_copy(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(make_checkpoint(tmp_path / "checkpoint"))
    names = sorted(make_codes(tmp_path / "codes"))
    data = write_rows(tmp_path / "samples.json", make_rows(names, 20))
    ids = ["tokenize", "--checkpoint", f"{tmp_path}/checkpoint", "--data", str(data)]
    ids += ["--codes", str(tmp_path / "codes"), "--workers", "0", "--shard-size", "7", "--output"]
    assert being_vl_command([*ids, str(tmp_path / "ids")]) == 0
    assert being_vl_command([*ids, "s3://bucket/ids"]) == 0
    local = load_training_data(tmp_path / "ids", tokenizer).to_list()
    assert load_training_data("s3://bucket/ids", tokenizer).to_list() == local
    mixture = {"sources": {"a": "s3://bucket/ids"}, "weights": {"a": 1}}
    own = {**mixture, "sources": {"a": str(tmp_path / "ids")}}
    assert (
        load_training_data(mixture, tokenizer).to_list()
        == load_training_data(own, tokenizer).to_list()
    )
    shard = "bucket/ids/data-00001-of-00003.arrow"
    whole = bucket.cat(shard)
    bucket.pipe(shard, bytes(len(whole)))
    assert load_training_data("s3://bucket/ids", tokenizer).to_list() == local  # has its copy
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "another")
    with pytest.raises(ValueError, match=r"s3://bucket/ids/data-00001.*its sha256 is"):
        load_training_data("s3://bucket/ids", tokenizer)
    bucket.pipe(shard, whole)  # what has come before stays, the rest follows
    assert load_training_data("s3://bucket/ids", tokenizer).to_list() == local
    bucket.rm("bucket/ids/tokenized.json")
    with pytest.raises(ValueError, match="being-vl tokenize has not finished here"):
        load_training_data("s3://bucket/ids", tokenizer)


@needs_s3
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_parquet_files_here_and_in_a_bucket(streaming, bucket, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = make_images(tmp_path / "images", 6)
    assert being_vl_command(command(checkpoint, tmp_path / "images", tmp_path / "codes")) == 0
    rows = [{"name": n, "image": {"bytes": (tmp_path / "images" / n).read_bytes()}} for n in names]
    features = datasets.Features({"name": datasets.Value("string"), "image": datasets.Image()})
    for number in range(2):
        part = datasets.Dataset.from_list(rows[number * 3 : number * 3 + 3], features=features)
        part.to_parquet(tmp_path / f"{number}.parquet")
        bucket.put(str(tmp_path / f"{number}.parquet"), f"bucket/rows/{number}.parquet")
    for place_, name in ((tmp_path, "local"), ("s3://bucket/rows", "remote")):
        options = [
            "encode",
            "--quantizer",
            f"{checkpoint}/vq_model",
            "--data",
            f"{place_}/*.parquet",
        ]
        options += ["--id-column", "name", "--output", str(tmp_path / name), "--device", "cpu"]
        assert being_vl_command([*options, "--streaming", streaming, "--workers", "0"]) == 0
        found = CodeShards(tmp_path / name)
        assert found.image_ids() == names
        for own, expected in zip(found, CodeShards(tmp_path / "codes"), strict=True):
            np.testing.assert_array_equal(own, expected)


@needs_s3
def test_archives_by_braces_and_stars(bucket, tmp_path):
    make_images(tmp_path / "images", 3)
    picture = next((tmp_path / "images").rglob("*.png")).read_bytes()
    for number in (8, 9, 10):
        file = io.BytesIO()
        names = ("x.left.png", "x.right.png", "y.png", "z.json")
        write_tar(file, dict.fromkeys(names, picture), "w:gz")
        bucket.pipe(f"bucket/tars/t-{number:02d}.tar.gz", file.getvalue())
    for pattern in ("s3://bucket/tars/t-{08..10}.tar.gz", "s3://bucket/tars/t-*.tar.gz"):
        source = TarSource(pattern)
        assert source.num_parts == 3
        records = [(record.image_id, record.content) for record in source.records(2)]
        assert [name for name, _ in records] == [
            "t-10/x.left.png",
            "t-10/x.right.png",
            "t-10/y",
            "t-10/z",
        ]
        assert [content for _, content in records] == [picture] * 3 + [None]
    chosen = TarSource("s3://bucket/tars/t-{08,10}.tar.gz", image_key="left.png")
    found = [(record.image_id, record.content is None) for record in chosen.records(0)]
    assert found == [("t-08/x", False), ("t-08/y", True), ("t-08/z", True)]


@needs_s3
def test_odd_names_in_a_bucket_are_those_objects(bucket, tmp_path):
    make_images(tmp_path / "images", 1)
    picture = next((tmp_path / "images").rglob("*.png")).read_bytes()
    names = ["a::b.png", "a#1.png", "with space.png", "ü.png"]
    for number, name in enumerate(names):
        bucket.pipe(f"bucket/odd/{name}", picture + bytes(number))
    source = FolderSource("s3://bucket/odd", shard_size=10)
    read = {record.image_id: record.read() for record in source.records(0)}
    assert read == {name: picture + bytes(number) for number, name in enumerate(names)}
    with pytest.raises(ValueError, match="a URL must not hold '::'"):
        place("s3://bucket/a::file://b")


def test_a_local_name_that_looks_like_a_url_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a::b", "s3:x#y", "x#y"):
        write_atomic(name, name)
        assert place(name).read_text() == name
    make_images(tmp_path / "s3:" / "bucket", 2)
    assert FolderSource("s3://bucket", shard_size=4).num_images == 2


def test_what_there_is_to_encode_is_said_before_it_starts(tmp_path, capsys):
    make_images(tmp_path / "images", 5)
    (tmp_path / "images" / "notes.txt").write_text("no picture")
    (tmp_path / "images" / "a" / "000.png").rename(tmp_path / "images" / "a" / "000.JPG")
    options = ["encode", "--quantizer", "nowhere", "--output", str(tmp_path / "out"), "--dry-run"]
    assert being_vl_command([*options, "--images", str(tmp_path / "images")]) == 0
    said = capsys.readouterr().out.strip()
    assert said == "5 images (4 × .png, 1 × .jpg); left out 1: 1 × no image: .txt"
    assert not (tmp_path / "out").exists()
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for path in sorted((tmp_path / "images").rglob("*.*")):
            archive.add(path, f"{path.name.replace('.', '-')}{path.suffix}")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with tarfile.open(tmp_path / "w.tar", "a") as archive:
        archive.add(tmp_path / "bad.png", "bad.png")
    assert being_vl_command([*options, "--webdataset", str(tmp_path / "w.tar")]) == 0
    said = capsys.readouterr().out.strip()
    assert (
        said == "images in 1 parts (of 7 looked at: 5 × PNG, 1 × without an image, 1 × unreadable)"
    )


def test_braces_are_those_of_a_shell(tmp_path):
    names = [f"{word}-{number:03d}.tar" for word in ("train", "val") for number in range(9, 12)]
    for name in names:
        tarfile.open(tmp_path / name, "w").close()
    found = TarSource(f"{tmp_path}/{{train,val}}-{{009..011}}.tar")
    assert [path.name for path in found.paths] == names
    assert TarSource(f"{tmp_path}/val-*.tar").num_parts == 3
    odd = tmp_path / "{1,2}.tar"
    tarfile.open(odd, "w").close()
    assert TarSource(str(odd)).paths == [odd]
    with pytest.raises(ValueError, match=r"\{3..4\}.tar: no tar file matches"):
        TarSource(f"{tmp_path}/{{3..4}}.tar")


def test_jobs_of_an_array_share_the_parts_and_the_last_writes_the_manifest(tmp_path, capsys):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    make_images(tmp_path / "images", 10)
    assert being_vl_command(command(checkpoint, tmp_path / "images", tmp_path / "one")) == 0
    job = command(
        checkpoint, tmp_path / "images", tmp_path / "many", "--workers", "0", "--world", "2"
    )
    assert being_vl_command([*job, "--rank", "1"]) == 0
    assert "rank 1 of 2 is done; other ranks have shards to make" in capsys.readouterr().err
    assert not (tmp_path / "many" / "manifest.json").exists()
    assert being_vl_command([*job, "--rank", "0"]) == 0
    assert shard_bytes(tmp_path / "many") == shard_bytes(tmp_path / "one")
    assert being_vl_command([*job, "--rank", "2"]) == 2
    assert "--rank must be below --world, got 2 of 2" in capsys.readouterr().err


SCRIPTS = sorted((Path(__file__).parents[2] / "hub_configs" / "slurm").glob("*.sbatch"))


@pytest.mark.skipif(
    shutil.which("shellcheck") is None, reason="needs shellcheck; .ci/cluster installs it"
)
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_scripts_pass_shellcheck(script):
    run = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_slurm_scripts_name_options_that_there_are(script, tmp_path):
    """With commands of Slurm and torch that print what they are given, the line is one that being-vl reads."""
    (tmp_path / "bin").mkdir()
    for name, body in (
        ("srun", '"$@"'),
        ("scontrol", "echo node-1"),
        ("torchrun", 'echo "$@"'),
        ("being-vl", 'echo "$@"'),
    ):
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    job = {
        "ARRAY_TASK_ID": 7,
        "ARRAY_TASK_MIN": 4,
        "ARRAY_TASK_COUNT": 8,
        "JOB_ID": 5,
        "JOB_NUM_NODES": 2,
    }
    job |= {"JOB_NODELIST": "node-[1-2]", "GPUS_ON_NODE": 4, "CPUS_PER_TASK": 8}
    environment = {f"SLURM_{name}": str(value) for name, value in job.items()}
    environment["PATH"] = f"{tmp_path}/bin:{os.environ['PATH']}"
    arguments = (
        ["in put", "q", "out"] if "encode" in script.name else ["recipe.yaml", "--max_steps", "5"]
    )
    run = subprocess.run(
        ["bash", str(script), *arguments], capture_output=True, text=True, env=environment
    )
    assert run.returncode == 0, run.stderr
    line = run.stdout.strip()
    if "encode" in script.name:
        assert (
            line
            == "encode --images in put --quantizer q --output out --workers 8 --rank 3 --world 8"
        )
    else:
        assert (
            line.startswith("--nnodes 2 --nproc-per-node 4 ")
            and "--rdzv-endpoint node-1:29500" in line
        )
        assert line.endswith("-m being_vl train --config recipe.yaml --max_steps 5")
