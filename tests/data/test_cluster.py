"""`--engine ray`: the bytes of the local engine, whatever dies in between."""

from __future__ import annotations

import importlib.util
import random
import threading
import time

import psutil
import pytest
from data_fixtures import folder_bytes, make_checkpoint, make_codes, make_rows, write_rows
from encode_fixtures import make_images, make_processor, make_quantizer, shard_bytes

from being_vl.cli import main as being_vl_command

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs ray; .ci/cluster installs it"
)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of this machine, of one node with two CPUs."""
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 1 << 28}
    )
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def command(tmp_path):
    """The options of `encode` for 60 images in 15 shards, without --output."""
    make_images(tmp_path / "images", 60)
    make_quantizer().save_pretrained(tmp_path / "vq")
    make_processor().save_pretrained(tmp_path / "vq")
    options = {
        "images": tmp_path / "images",
        "quantizer": tmp_path / "vq",
        "device": "cpu",
        "shard-size": 4,
    }
    return [
        "encode",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]


def encode(command, output, *options):
    assert being_vl_command([*command, "--output", str(output), *options]) == 0
    return shard_bytes(output)


def actors():
    """The processes of actors, by the titles that Ray gives them."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "ray::_Actor" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


@pytest.mark.parametrize("format", ["parquet", "webdataset"])
def test_the_bytes_are_those_of_the_local_engine(cluster, command, tmp_path, format):
    command += ["--format", format]
    broken = tmp_path / "images" / "a" / "broken.png"
    broken.write_bytes(b"no picture")
    skip = ["--on-error", "skip", "--workers"]
    local = encode(command, tmp_path / "local", *skip, "0")
    assert encode(command, tmp_path / "ray", "--engine", "ray", *skip, "2") == local
    assert "broken.png" in (tmp_path / "ray" / "skipped.jsonl").read_text()


def test_an_error_of_an_actor_is_one_line(cluster, command, tmp_path, capsys):
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"no picture")
    assert being_vl_command([*command, "--output", str(tmp_path / "out"), "--engine", "ray"]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "a/broken.png: not a readable image" in last and "ray" not in last


@pytest.mark.parametrize("where", ["actors", "node"])
def test_what_dies_costs_only_time(where, cluster, command, tmp_path, monkeypatch):
    local = encode(command, tmp_path / "local", "--workers", "0")
    node = cluster.add_node(num_cpus=1, object_store_memory=1 << 27) if where == "node" else None
    cluster.wait_for_nodes()
    killed = []

    def kill():
        rng = random.Random(0)
        output = tmp_path / "ray"
        while not list(output.glob("codes-*")):
            time.sleep(0.02)
        if node is not None:
            cluster.remove_node(node, allow_graceful=False)
            killed.append(node)
        while node is None and len(killed) < 5 and not (output / "manifest.json").exists():
            living = [process for process in actors() if process.pid not in killed]
            if living:
                victim = rng.choice(living)
                killed.append(victim.pid)
                victim.kill()
            time.sleep(0.3)

    thread = threading.Thread(target=kill)
    thread.start()
    workers = "3" if node is not None else "2"
    found = encode(command, tmp_path / "ray", "--engine", "ray", "--workers", workers)
    thread.join()
    assert killed and found == local


def test_ids_are_those_of_the_local_engine(cluster, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint")
    names = sorted(make_codes(tmp_path / "codes"))
    data = write_rows(tmp_path / "samples.json", make_rows(names, 20))
    command = [
        "tokenize",
        "--checkpoint",
        str(checkpoint),
        "--data",
        str(data),
        "--shard-size",
        "3",
    ]
    command += ["--codes", str(tmp_path / "codes"), "--workers", "2"]
    assert being_vl_command([*command, "--output", str(tmp_path / "local"), "--workers", "0"]) == 0
    assert being_vl_command([*command, "--output", str(tmp_path / "ray"), "--engine", "ray"]) == 0
    local, ray = folder_bytes(tmp_path / "local"), folder_bytes(tmp_path / "ray")
    assert sum(name.endswith(".arrow") for name in local) == 7
    assert ray.keys() == local.keys()
    assert [name for name in local if local[name] != ray[name]] == ["tokenize.yaml"]
