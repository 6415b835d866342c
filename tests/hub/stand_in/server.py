"""A stand-in for the Hugging Face Hub on this machine: what huggingface_hub and datasets call, and no more.

Repositories live in memory. `HF_ENDPOINT` must name the server before huggingface_hub is imported, so tests
use it from a process of their own; `HF_HUB_DISABLE_XET=1` keeps uploads on the LFS protocol.

    with HubServer() as hub:
        hub.add_repository("lmms-lab/POPE", folder, "dataset")
        hub.faults.append(Fault("PUT", "/lfs/", status=503))
        subprocess.run([...], env={**os.environ, **hub.environment(cache_folder)})

`PYTHONPATH=tests/hub python -m stand_in.server --dataset NAME=FOLDER …` serves folders until it is interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

from .api import HubApi
from .faults import Fault
from .http import TOKEN, Upload
from .storage import Repository, read_folder


class HubServer:
    """The server; a context manager.

    Attributes:
        requests: (method, path) of all that was asked.
        uploads: what came over LFS, whole or not.
        faults: what will go wrong; spent ones stay in the list.
        bytes_arrived: of uploads, those under way included.
        busy: requests being answered.
        bytes_per_second: how fast uploads are read; None for as fast as they come.
    """

    def __init__(self, port: int = 0) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads: list[Upload] = []
        self.faults: list[Fault] = []
        self.bytes_arrived = 0
        self.busy = 0
        self.bytes_per_second: int | None = None
        self.lock = threading.RLock()
        handler = type("Handler", (HubApi,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Any) -> dict[str, str]:
        """Variables for a process that shall talk to this server and cache under home."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }

    def add_repository(
        self, repo_id: str, files: dict[str, bytes] | str | Path, repo_type: str = "model"
    ) -> None:
        """A repository that is there from the start: path → content, or a folder to read."""
        content = files if isinstance(files, dict) else read_folder(files)
        repository = Repository()
        repository.add(dict(content), message="fixture")
        self.repositories[repo_type, repo_id] = repository

    def files(
        self, repo_id: str, repo_type: str = "model", revision: str = "main"
    ) -> dict[str, bytes]:
        """The files of a repository now, path → content."""
        repository = self.repositories[repo_type, repo_id]
        return dict(repository.commits[repository.refs[revision]])

    def bytes_received(self) -> int:
        """Bytes of LFS objects that arrived, whole objects or not."""
        return sum(upload.received for upload in self.uploads)

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def main() -> None:
    """Serve folders as repositories, and print the variables that a client needs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--home", default=".hub_cache", help="cache folder of the clients")
    for kind in ("model", "dataset"):
        parser.add_argument(f"--{kind}", action="append", default=[], metavar="NAME=FOLDER")
    args = parser.parse_args()
    with HubServer(args.port) as hub:
        for kind in ("model", "dataset"):
            for entry in getattr(args, kind):
                name, _, folder = entry.partition("=")
                hub.add_repository(name, folder, kind)
        for name, value in hub.environment(args.home).items():
            print(f"export {name}={shlex.quote(value)}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
