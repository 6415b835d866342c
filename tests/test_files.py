"""Files are written whole or not at all, and read within limits."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from being_vl.files import (
    check_model_folder,
    new_file,
    new_folder,
    read_bytes,
    read_json,
    read_yaml,
    reading,
    record,
    tar_members,
    wait_for_everyone,
    write_atomic,
)

_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
BAD_JSON = {
    "not UTF-8": (b'"\xff"', "not valid JSON"),
    "twice": (b'{"a": 1, "b": 2, "a": 3}', "field 'a' appears twice"),
    "a constant": (b"[NaN]", "NaN is not a number of JSON"),
    "a number beyond floats": (b"[1e999]", "too large for a number"),
    "a number of many digits": (b"1" * 5000, "not valid JSON"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "many values": (b"[" + b"[]," * (3 << 20) + b"1]", "more than 1048576 values"),
    "half a pair": (rb'{"a": "\ud83d"}', "surrogates not allowed"),
    "empty": (b"", "not valid JSON"),
}
BAD_YAML = {
    "not UTF-8": (b"a: \xff", "not YAML"),
    "billion laughs": (_LAUGHS.encode(), "100000 values"),
    "an alias of itself": (b"a: &a [*a]", "alias 'a' of something that is not there yet"),
    "deep": (b"[" * 20_000, "not YAML"),
    "of many levels": (b"[" * 65 + b"]" * 65, "64 levels"),
    "an object": (b"!!python/object/apply:os.system ['true']", "not YAML"),
    "half a pair": (rb'a: "\ud83d"', "half of a surrogate pair"),
    "large": (b"#" * (1 << 20) + b"\n", "larger than 1048576 bytes"),
    "unfinished": (b"a: [", "not YAML"),
    "a number of 7,000 digits": (
        b"a: [0x" + b"f" * 6000 + b"]",
        "an integer of 6002 characters, '0xfff",
    ),
    "a key twice": (b"a: 1\nb: {c: 1,\n  c: 2}\n", r"line 3: the key 'c' stands there twice"),
    "a key twice at the top": (b"lr: 1\nlr: 2\n", r"line 2: the key 'lr' stands there twice"),
}


@pytest.mark.parametrize("name", BAD_JSON)
def test_json_that_is_refused(tmp_path: Path, name: str) -> None:
    raw, message = BAD_JSON[name]
    path = tmp_path / "a.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 300


def test_json_that_is_read(tmp_path: Path) -> None:
    value = {"a": [1, -2.5, None, True, "é\U0001f600"], "b": {}}
    for ascii_only in (True, False):  # a pair of surrogates in escapes is one character
        write_atomic(tmp_path / "a.json", json.dumps(value, ensure_ascii=ascii_only))
        assert read_json(tmp_path / "a.json") == value
    assert read_json(tmp_path / "none.json", optional=True) is None
    with pytest.raises(ValueError, match="larger than 4 bytes"):
        read_json(tmp_path / "a.json", 4)


@pytest.mark.parametrize("name", BAD_YAML)
def test_yaml_that_is_refused(tmp_path: Path, name: str) -> None:
    raw, message = BAD_YAML[name]
    path = tmp_path / "a.yaml"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 300


def test_yaml_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(
        "base: &base {lr: 2.0e-5, steps: 3}\nrun: {<<: *base, steps: 4}\nnames: [é, 1]\n"
    )
    read = read_yaml(path)
    assert read["run"] == {"lr": 2.0e-5, "steps": 4} and read["names"] == ["é", 1]
    assert read_yaml(tmp_path / "none.yaml", optional=True) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_pipes_and_devices_are_refused(tmp_path: Path, read) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match=f"{name}: not a regular file"):
            read(tmp_path / name)
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        read(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_that_takes_the_place_of_a_file_is_not_waited_for(
    tmp_path: Path, monkeypatch
) -> None:
    pipe, plain, look = tmp_path / "pipe", tmp_path / "plain", os.stat
    os.mkfifo(pipe)
    plain.touch()
    # What was there a moment ago was a file.
    monkeypatch.setattr(
        os,
        "stat",
        lambda name, *more, **options: look(plain if name == pipe else name, *more, **options),
    )
    refused = []

    def read() -> None:
        try:
            read_bytes(pipe, 9)
        except ValueError as error:
            refused.append(str(error))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(5)
    os.close(os.open(pipe, os.O_RDWR | os.O_NONBLOCK))  # ends the wait of one that waits
    assert refused == [f"{pipe}: not a regular file"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_hostile_files_take_little(tmp_path: Path) -> None:
    """Memory above what an empty file takes, and CPU seconds, of the worst that the limits let through."""
    marks = (1 << 20) - 10
    worst = {
        "lists.json": b"[" + b"[]," * (marks // 2) + b"1]",
        "objects.json": b"[" + b"{}," * (marks // 2) + b"1]",
        "fields.json": b"{" + b",".join(b'"%d":1.5' % i for i in range(marks // 2)) + b"}",
        "text.json": b'["' + b"a" * ((1 << 26) - 8) + b'"]',
        "laughs.yaml": _LAUGHS.encode(),
        "deep.yaml": b"[" * (1 << 20),
        "flat.yaml": b"[" + b"1," * 49_000 + b"1]",
        "keys.yaml": b"? " * (1 << 18),
    }
    code = (
        "import sys, time, yaml\nfrom being_vl.files import read_json, read_yaml\n"
        "def peak():\n    lines = open('/proc/self/status').read().splitlines()\n"
        "    return int(next(line for line in lines if line.startswith('VmHWM')).split()[1])\n"
        "before, start = peak(), time.process_time()\n"
        "try:\n    (read_json if sys.argv[1].endswith('json') else read_yaml)(sys.argv[1])\n"
        "except ValueError: pass\n"
        "print(peak() - before, time.process_time() - start)"
    )
    for name, raw in worst.items():
        (tmp_path / name).write_bytes(raw)
        run = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / name)], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        kilobytes, seconds = map(float, run.stdout.split())
        assert kilobytes < 300_000 and seconds < 4, (name, kilobytes, seconds)


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "a.txt"
    write_atomic(path, "one")
    with pytest.raises(RuntimeError), new_file(path) as aside:
        aside.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one" and os.listdir(path.parent) == ["a.txt"]
    with new_file(path) as aside:
        aside.write_text("two")
    assert read_bytes(path, 3) == b"two" and os.listdir(path.parent) == ["a.txt"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_folder(tmp_path / "a") as aside:
        (aside / "file").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with new_folder(tmp_path / "a") as aside:
        (aside / "file").write_text("whole")
    assert os.listdir(tmp_path) == ["a"] and (tmp_path / "a" / "file").read_text() == "whole"
    with (
        pytest.raises(ValueError, match="a exists and is not an empty folder"),
        new_folder(tmp_path / "a"),
    ):
        pass


@pytest.mark.parametrize("new", [new_file, new_folder])
def test_what_killed_writers_left_is_removed(tmp_path: Path, new) -> None:
    """Under the longest name that a file may have, too."""
    path = tmp_path / ("a" * 251 + ".txt")
    killed = f"with files.{new.__name__}({str(path)!r}) as p: p.exists() or p.touch(); os.kill(os.getpid(), 9)"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", f"import os; from being_vl import files\n{killed}"])
        (left,) = os.listdir(tmp_path)
        assert ".tmp" in left
    with new(path) as aside:
        aside.is_dir() or aside.touch()
    assert os.listdir(tmp_path) == [path.name]


def test_a_name_that_looks_like_a_leftover_of_another_is_none(tmp_path: Path) -> None:
    """While a.4194304-b.txt is written, no process of that number runs; a.txt is written beside it."""
    with new_file(tmp_path / "a.4194304-b.txt") as aside:
        aside.touch()
        write_atomic(tmp_path / "a.txt", "text")
        assert aside.exists()
    assert sorted(os.listdir(tmp_path)) == ["a.4194304-b.txt", "a.txt"]


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_file_damaged_anywhere_is_named(tmp_path: Path, mode: str) -> None:
    """Also in the middle of a member, which its reader reads long after the file was opened."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as archive:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}.png")
            member.size = 40_000
            archive.addfile(member, io.BytesIO(os.urandom(member.size)))
    whole = path.read_bytes()
    for at in range(600, len(whole), 9_000):
        for damaged in (whole[:at], whole[:at] + b"\xff" * 64 + whole[at + 64 :]):
            path.write_bytes(damaged)
            try:
                for _, content in tar_members(path):
                    content()
            except ValueError as error:
                assert f"{path}: " in str(error)


def test_a_million_lists_are_read_without_collections(tmp_path: Path) -> None:
    """Each collection would walk over what torch and transformers keep."""
    path = tmp_path / "lists.json"
    path.write_bytes(b"[" + b"[]," * 500_000 + b"1]")
    kept = [[number] for number in range(1_000_000)]
    started = time.process_time()
    assert len(read_json(path)) == 500_001
    raw = time.process_time()
    assert raw - started < 0.5 and len(kept) == 1_000_000


@dataclass
class Row:
    name: str
    steps: dict[str, int]
    losses: list[float]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 1}, "name must be str, got 1"),
        ({"steps": {"a": "1"}}, r"steps\.a must be int, got '1'"),
        ({"steps": {"a": True}}, r"steps\.a must be int"),
        ({"losses": [1, None]}, "losses must be list"),
        ({"losses": [1, 10**400]}, "losses must be list"),
        ({"more": 1}, "must have the fields name, steps, losses"),
    ],
)
def test_records_have_the_types_that_they_say(change: dict, message: str) -> None:
    fields = {"name": "a", "steps": {"b": 1}, "losses": [1, 2.5]}
    assert record(Row, fields) == Row(**fields)
    with pytest.raises(ValueError, match=message):
        record(Row, {**fields, **change})


def test_ids_that_generation_would_stumble_over_are_named(tmp_path: Path) -> None:
    path = tmp_path / "generation_config.json"
    for content in ({"eos_token_id": 1, "pad_token_id": None}, {"eos_token_id": [1, 2]}):
        path.write_text(json.dumps(content))
        check_model_folder(tmp_path)
    for wrong in ({}, "1", [None, "x"], [None], 1.5, True, 10**30):
        path.write_text(json.dumps({"eos_token_id": wrong}))
        with pytest.raises(
            ValueError, match=r"generation_config\.json: eos_token_id must be an id"
        ):
            check_model_folder(tmp_path)


@pytest.mark.parametrize(
    ("file", "name", "right", "wrong", "must"),
    [
        ("tokenizer_config.json", "model_max_length", (4096, 10**30, None), [1], "int or float"),
        ("config.json", "model_type", ("llama", None), ["llama"], "str"),
        ("generation_config.json", "output_hidden_states", (True, None), "yes", "bool"),
        ("config.json", "num_hidden_layers", (0, 80), 10**400, "at most 10000"),
    ],
)
def test_fields_that_other_libraries_would_stumble_over_are_named(
    tmp_path: Path, file: str, name: str, right: tuple, wrong: object, must: str
) -> None:
    path = tmp_path / file
    for value in right:
        path.write_text(json.dumps({name: value}))
        check_model_folder(tmp_path)
    path.write_text(json.dumps({name: wrong}))
    with pytest.raises(ValueError, match=f"{file}: {name} must be {must}, got .{{1,60}}$"):
        check_model_folder(tmp_path)


def test_the_file_that_was_read_is_found_in_spite_of_half_made_paths(tmp_path: Path) -> None:
    """`Path(1)` fails inside pathlib, whose frame holds a path without a text."""
    with pytest.raises(ValueError, match=f"{tmp_path}: cannot be read"), reading(tmp_path):
        Path("a", 1)  # type: ignore[arg-type]


def test_a_full_disk_is_named_by_the_file_that_stays(tmp_path):
    """The errors of safetensors and torch, which are no OSError, and Python's, which names no file."""
    weights = {"a": torch.zeros(1000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        for name, write, reason in (
            ("model.safetensors", lambda path: save_file(weights, path), "I/O error"),
            ("text.json", lambda path: path.write_text("x" * 1000), "File too large"),
            ("optimizer.pt", lambda path: torch.save(weights, path), "only a part of the file was"),
        ):
            said = f"{tmp_path}/out/{name}: cannot be written, .* bytes are free: .*{reason}"
            with pytest.raises(OSError, match=said):
                with new_folder(tmp_path / "out") as aside:
                    write(aside / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("device, waited", [("cpu", []), ("cuda", ["asked"])])
def test_processes_on_a_cpu_wait_without_a_gpu(tmp_path: Path, device: str, waited: list) -> None:
    """accelerate's own barrier asks for GPU number `rank`, which a machine with fewer does not have."""
    asked: list[str] = []
    state = SimpleNamespace(
        device=torch.device(device), wait_for_everyone=lambda: asked.append("asked")
    )
    dist.init_process_group(
        "gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1)
    )
    try:
        wait_for_everyone(state)
    finally:
        dist.destroy_process_group()
    assert asked == waited
