"""Uploads and downloads through a Hub that fails: what arrives is whole, or nothing of it is seen."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stand_in.faults import Fault
from stand_in.server import HubServer
from stand_in.storage import read_folder

_ROOT = Path(__file__).parents[2]
SIZES = {
    "model-1.safetensors": 800_000,
    "model-2.safetensors": 600_000,
    "vq_model/model.safetensors": 100_000,
}
# Neither torch nor transformers is needed to send files.
PUSH = """
import sys, huggingface_hub.utils._http as http
http.time.sleep = lambda seconds: None  # back off without waiting
from being_vl.hub.commit import Target, commit_files, folder_files
commit_files(folder_files(sys.argv[1]), Target("tester/model", revision=None))
"""
LOAD = """
import sys, huggingface_hub.utils._http as http
http.time.sleep = lambda seconds: None
from huggingface_hub import snapshot_download
print(snapshot_download("tester/model", max_workers=1))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three weight files, and two small ones."""
    folder = tmp_path / "checkpoint"
    (folder / "vq_model").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in SIZES.items():
        (folder / name).write_bytes(rng.bytes(size))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# A card\n")
    return folder


def start(code: str, hub: HubServer, home: Path, *args: str) -> subprocess.Popen:
    env = {**os.environ, **hub.environment(home), "PYTHONPATH": str(_ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, hub: HubServer, home: Path, *args: str) -> tuple[int, str, str]:
    process = start(code, hub, home, *args)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


UPLOAD_FAULTS = {
    "503 in an upload": Fault("PUT", "/lfs/", status=503),
    "500 in a commit": Fault("POST", "/commit/", status=500),
    "429": Fault("POST", "/preupload/", times=2, status=429, headers={"Retry-After": "0"}),
    "cut in an upload": Fault("PUT", "/lfs/", times=2, cut_upload=100_000),
    "reply to a commit lost": Fault("POST", "/commit/", lose_reply=True),
}


@pytest.mark.parametrize("name", UPLOAD_FAULTS)
def test_a_push_gets_through(folder: Path, tmp_path: Path, name: str) -> None:
    with HubServer() as hub:
        hub.faults.append(UPLOAD_FAULTS[name])
        code, _, errors = run(PUSH, hub, tmp_path / "home", str(folder))
        assert code == 0, errors[-2000:]
        assert UPLOAD_FAULTS[name].times == 0  # it did happen
        assert hub.files("tester/model") == read_folder(folder)


def test_a_hub_that_stays_down_is_an_error_and_changes_nothing(
    folder: Path, tmp_path: Path
) -> None:
    with HubServer() as hub:
        hub.faults.append(Fault("POST", "/commit/", times=100, status=503))
        code, _, errors = run(PUSH, hub, tmp_path / "home", str(folder))
        assert code != 0 and "503" in errors
        assert hub.files("tester/model") == {}


def test_a_hub_that_is_not_there_is_an_os_error(folder: Path, tmp_path: Path) -> None:
    with HubServer() as hub:
        pass
    code, _, errors = run(PUSH, hub, tmp_path / "home", str(folder))
    assert code != 0 and f"ConnectionError: {hub.endpoint} cannot be reached" in errors


def test_a_download_that_is_cut_goes_on(folder: Path, tmp_path: Path) -> None:
    fault = Fault("GET", r"/resolve/.*model-1\.safetensors", cut_download=100_000)
    with HubServer() as hub:
        hub.add_repository("tester/model", folder)
        hub.faults.append(fault)
        code, out, errors = run(LOAD, hub, tmp_path / "home")
        assert code == 0, errors[-2000:]
        assert fault.times == 0
        assert read_folder(out.strip()) == read_folder(folder)


def test_a_killed_push_leaves_nothing_and_the_next_sends_what_is_missing(
    folder: Path, tmp_path: Path
) -> None:
    with HubServer() as hub:
        hub.bytes_per_second = 400_000
        process = start(PUSH, hub, tmp_path / "home", str(folder))
        deadline = time.monotonic() + 60
        while not hub.objects and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert hub.files("tester/model") == {}
        stored = set(hub.objects)
        assert stored == {
            hashlib.sha256((folder / "vq_model/model.safetensors").read_bytes()).hexdigest()
        }
        hub.bytes_per_second = None
        hub.uploads.clear()
        code, _, errors = run(PUSH, hub, tmp_path / "home", str(folder))
        assert code == 0, errors[-2000:]
        assert hub.files("tester/model") == read_folder(folder)
        assert not stored & {upload.oid for upload in hub.uploads}
        assert hub.bytes_received() == 1_400_000
        hub.uploads.clear()
        assert run(PUSH, hub, tmp_path / "home", str(folder))[0] == 0
        assert hub.uploads == [] and len(hub.repositories["model", "tester/model"].commits) == 2
