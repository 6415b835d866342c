"""Google's store, the Hub and web servers, each by a server on this machine; `test_object_stores.py` has S3."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from data_fixtures import make_checkpoint, make_rows, write_rows
from encode_fixtures import make_images, shard_bytes
from stand_in.server import HubServer

from being_vl.cli import main as being_vl_command
from being_vl.data.quantizing import FolderSource, TarSource

needs_upath = pytest.mark.skipif(
    importlib.util.find_spec("upath") is None,
    reason="needs universal_pathlib; .ci/cluster installs it",
)
needs_gs = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("upath", "gcsfs", "gcp_storage_emulator"))),
    reason="needs gcsfs and gcp-storage-emulator; .ci/cluster installs them",
)


@pytest.fixture
def google(monkeypatch):
    """A client of a server with one bucket, `gs://bucket`."""
    # Read when gcsfs is imported: else it asks Google for the kind of each bucket, for a minute.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import gcsfs
    from gcp_storage_emulator.server import create_server

    server = create_server("127.0.0.1", 0, in_memory=True)
    server.start()
    address = f"http://127.0.0.1:{server._api._httpd.server_port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)
    client = gcsfs.GCSFileSystem(token="anon", project="test", endpoint_url=address)
    client.mkdir("bucket")
    yield client
    server.stop()


@pytest.fixture
def web(tmp_path):
    """The address of a server of `tmp_path`."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def encode(checkpoint, source, output):
    options = ["--quantizer", f"{checkpoint}/vq_model", "--output", str(output), *source]
    return ["encode", *options, "--device", "cpu", "--shard-size", "4", "--workers", "0"]


def tokenize(checkpoint, data, codes, output):
    options = ["--checkpoint", str(checkpoint), "--data", str(data), "--codes", str(codes)]
    return ["tokenize", *options, "--output", str(output), "--workers", "0"]


@needs_gs
def test_from_images_to_ids_in_a_bucket_of_google(google, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    data = write_rows(tmp_path / "samples.json", make_rows(make_images(tmp_path / "images", 6)))
    google.put(f"{tmp_path}/images", "bucket/images", recursive=True)
    for base in (str(tmp_path), "gs://bucket"):
        codes = f"{base}/codes"
        assert being_vl_command(encode(checkpoint, ["--images", f"{base}/images"], codes)) == 0
        assert being_vl_command(tokenize(checkpoint, data, codes, f"{base}/ids")) == 0
    google.get("bucket/codes", f"{tmp_path}/fetched", recursive=True)
    assert shard_bytes(tmp_path / "fetched") == shard_bytes(tmp_path / "codes")
    for path in (tmp_path / "ids").glob("*.arrow"):
        assert google.cat(f"bucket/ids/{path.name}") == path.read_bytes()


@needs_upath
def test_from_images_to_ids_on_the_hub(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = make_images(tmp_path / "images", 6)
    data = write_rows(tmp_path / "samples.json", make_rows(names))
    local = encode(checkpoint, ["--images", f"{tmp_path}/images"], tmp_path / "codes")
    assert being_vl_command(local) == 0
    assert being_vl_command(tokenize(checkpoint, data, tmp_path / "codes", tmp_path / "ids")) == 0
    pictures = {name: (tmp_path / "images" / name).read_bytes() for name in names}
    with HubServer() as hub:
        hub.add_repository("me/images", pictures, "dataset")
        hub.add_repository("me/made", {}, "dataset")
        codes = "hf://datasets/me/made/codes"
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        for command in (
            encode(checkpoint, ["--images", "hf://datasets/me/images"], codes),
            encode(checkpoint, ["--images", "hf://datasets/me/images"], codes),  # finds it done
            tokenize(checkpoint, data, codes, "hf://datasets/me/made/ids"),
        ):
            run = [sys.executable, "-m", "being_vl", *command]
            made = subprocess.run(run, env=environment, capture_output=True, text=True)
            assert made.returncode == 0, made.stderr[-2000:]
        found = hub.files("me/made", "dataset")
    for path in [*(tmp_path / "codes").glob("*.parquet"), *(tmp_path / "ids").glob("*.arrow")]:
        assert found[path.relative_to(tmp_path).as_posix()] == path.read_bytes()


@needs_upath
def test_images_and_tars_of_a_web_server(web, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = make_images(tmp_path / "images", 6)
    source = FolderSource(f"{web}/images", shard_size=4)
    assert [record.image_id for part in (0, 1) for record in source.records(part)] == names
    for record in source.records(0):
        assert record.read() == (tmp_path / "images" / record.image_id).read_bytes()
    for number in (0, 1):
        with tarfile.open(tmp_path / f"t-{number:02d}.tar", "w") as archive:
            for name in names[number * 3 : number * 3 + 3]:
                archive.add(tmp_path / "images" / name, name)
    for name, base in (("local", tmp_path), ("remote", web)):
        pattern = ["--webdataset", f"{base}/t-{{00..01}}.tar"]
        assert being_vl_command(encode(checkpoint, pattern, tmp_path / name)) == 0
    assert shard_bytes(tmp_path / "remote") == shard_bytes(tmp_path / "local")
    with pytest.raises(FileNotFoundError, match=r"t-09\.tar"):
        next(TarSource(f"{web}/t-09.tar").records(0))
