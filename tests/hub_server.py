"""A stand-in for the Hugging Face Hub on this machine: what huggingface_hub calls, and no more.

Repositories live in memory. `HF_ENDPOINT` must name the server before huggingface_hub is imported, so tests
use it from a process of their own; `HF_HUB_DISABLE_XET=1` keeps uploads on the LFS protocol.

    with HubServer() as hub:
        subprocess.run([...], env={**os.environ, **hub.environment(cache_folder)})
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

USER = "tester"
_LFS_SUFFIXES = {".safetensors", ".parquet", ".npy", ".bin"}
_LFS_SIZE = 1 << 20


class Repository:
    """Commits of one repository: each a snapshot, path → content."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.head = self.add({})

    def add(self, files: dict[str, bytes]) -> str:
        listing = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
        parent = getattr(self, "head", "")
        oid = hashlib.sha1(json.dumps([parent, len(self.commits), listing]).encode()).hexdigest()
        self.commits[oid] = files
        self.head = oid
        return oid

    def resolve(self, revision: str) -> str | None:
        if revision == "main":
            return self.head
        return revision if revision in self.commits else None


class HubServer:
    """The server; a context manager. `requests` holds (method, path) of all that was asked."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def environment(self, home: Any) -> dict[str, str]:
        """Variables for a process that shall talk to this server and cache under home."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_stand_in",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """The files of a repository now."""
        repository = self.repositories[repo_type, repo_id]
        return repository.commits[repository.head]

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    # (method, pattern of the path, name of the method that answers)
    routes = tuple(
        (method, re.compile(pattern + r"\Z"), name)
        for method, pattern, name in (
            ("GET", r"/api/whoami-v2", "whoami"),
            ("POST", r"/api/validate-yaml", "validate_yaml"),
            ("POST", r"/api/repos/create", "create"),
            ("DELETE", r"/api/repos/delete", "delete"),
            ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/preupload/([^/]+)", "preupload"),
            ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/commit/([^/]+)", "commit"),
            ("POST", r"/api/(\w+)s/([^/]+/[^/]+)/paths-info/([^/]+)", "paths_info"),
            ("GET", r"/api/(\w+)s/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", "tree"),
            ("GET", r"/api/(\w+)s/([^/]+/[^/]+)/revision/([^/]+)", "info"),
            ("GET", r"/api/(\w+)s/([^/]+/[^/]+)", "info"),
            (
                "POST",
                r"/(?:datasets/|spaces/)?[^/]+/[^/]+\.git/info/lfs/objects/batch",
                "lfs_batch",
            ),
            ("PUT", r"/lfs/(\w+)", "lfs_put"),
            ("POST", r"/lfs/verify", "lfs_verify"),
            ("GET", r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", "resolve"),
        )
    )

    def log_message(self, *_: Any) -> None:
        """Silent: pytest shows what matters."""

    def _dispatch(self) -> None:
        # The body is read first, whatever the answer: the connection goes on being used.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urlsplit(self.path)
        self.query = parse_qs(url.query)
        path = unquote(url.path)
        method = "GET" if self.command == "HEAD" else self.command
        with self.hub.lock:
            self.hub.requests.append((self.command, path))
            for wanted, pattern, name in self.routes:
                match = pattern.match(path)
                if wanted == method and match:
                    getattr(self, name)(*match.groups())
                    return
            self.fail(404, f"no route for {self.command} {path}")

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _dispatch

    # ---- answers

    def send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def reply(self, value: Any, status: int = 200) -> None:
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def fail(self, status: int, message: str, code: str = "") -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        self.send(json.dumps({"error": message}).encode(), status, headers)

    def snapshot(
        self, repo_type: str, repo_id: str, revision: str
    ) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None after having answered that there is none."""
        repository = self.hub.repositories.get((repo_type, repo_id))
        if repository is None:
            self.fail(404, "Repository not found", "RepoNotFound")
            return None
        oid = repository.resolve(revision)
        if oid is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return oid, repository.commits[oid]

    # ---- repositories

    def whoami(self) -> None:
        self.reply(
            {
                "type": "user",
                "name": USER,
                "fullname": USER,
                "orgs": [],
                "auth": {"type": "access_token"},
            }
        )

    def validate_yaml(self) -> None:
        self.reply({"errors": [], "warnings": []})

    def create(self) -> None:
        asked = json.loads(self.body)
        key = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        url = f"{self.hub.endpoint}/{key[1]}"
        if key in self.hub.repositories:
            self.reply({"error": "You already created this repo", "url": url}, 409)
            return
        self.hub.repositories[key] = Repository()
        self.reply({"url": url, "name": key[1], "id": key[1]})

    def delete(self) -> None:
        asked = json.loads(self.body)
        key = asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"
        if self.hub.repositories.pop(key, None) is None:
            self.fail(404, "Repository not found", "RepoNotFound")
            return
        self.reply({})

    def info(self, repo_type: str, repo_id: str, revision: str = "main") -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is not None:
            oid, files = found
            self.reply(
                {
                    "id": repo_id,
                    "modelId": repo_id,
                    "sha": oid,
                    "private": False,
                    "gated": False,
                    "disabled": False,
                    "tags": [],
                    "downloads": 0,
                    "likes": 0,
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )

    def tree(self, repo_type: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        files = {path: content for path, content in found[1].items() if path.startswith(prefix)}
        if folder and not files:
            self.fail(404, f"{folder} does not exist", "EntryNotFound")
            return
        entries = []
        folders = set()
        for path, content in sorted(files.items()):
            parts = path[len(prefix) :].split("/")
            folders.update(prefix + "/".join(parts[:depth]) for depth in range(1, len(parts)))
            if recursive or len(parts) == 1:
                entries.append(_file_entry(path, content))
        shown = [path for path in folders if recursive or "/" not in path[len(prefix) :]]
        self.reply(
            [
                *({"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(shown)),
                *entries,
            ]
        )

    def paths_info(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is not None:
            asked = json.loads(self.body)["paths"]
            self.reply([_file_entry(path, found[1][path]) for path in asked if path in found[1]])

    # ---- uploads

    def preupload(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            stored = found[1].get(file["path"])
            answers.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if _is_lfs(file["path"], file["size"]) else "regular",
                    "shouldIgnore": False,
                    "oid": None if stored is None else _file_entry(file["path"], stored)["oid"],
                }
            )
        self.reply({"files": answers})

    def lfs_batch(self) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.endpoint}/lfs/verify"},
                }
            objects.append(entry)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self.fail(400, f"content does not have the sha256 {oid}")
            return
        self.hub.objects[oid] = self.body
        self.reply({})

    def lfs_verify(self) -> None:
        asked = json.loads(self.body)
        stored = self.hub.objects.get(asked["oid"])
        if stored is None or len(stored) != asked["size"]:
            self.fail(404, f"no object {asked['oid']} of {asked['size']} bytes")
            return
        self.reply({})

    def commit(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        parent, files = found[0], dict(found[1])
        for line in filter(None, self.body.split(b"\n")):
            operation = json.loads(line)
            value = operation["value"]
            match operation["key"]:
                case "header":
                    if value.get("parentCommit") not in (None, parent):
                        self.fail(412, "A commit has happened since")
                        return
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        self.fail(400, f"no object {value['oid']} for {value['path']}")
                        return
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {
                        path: content
                        for path, content in files.items()
                        if not path.startswith(prefix)
                    }
                case other:
                    self.fail(400, f"unknown operation {other!r}")
                    return
        oid = self.hub.repositories[repo_type, repo_id].add(files)
        url = f"{self.hub.endpoint}/{repo_id}/commit/{oid}"
        self.reply({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    # ---- downloads

    def resolve(self, prefix: str | None, repo_id: str, revision: str, path: str) -> None:
        found = self.snapshot(prefix or "model", repo_id, revision)
        if found is None:
            return
        oid, files = found
        if path not in files:
            self.fail(404, f"{path} does not exist", "EntryNotFound")
            return
        content = files[path]
        entry = _file_entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": oid, "Accept-Ranges": "bytes"}
        if "lfs" in entry:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        asked = re.match(r"bytes=(\d+)-(\d*)\Z", self.headers.get("Range", ""))
        if asked is None:
            self.send(content, 200, headers)
            return
        start = int(asked[1])
        stop = min(int(asked[2]) + 1 if asked[2] else len(content), len(content))
        if start >= len(content):
            self.send(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
            return
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.send(content[start:stop], 206, headers)


def _is_lfs(path: str, size: int) -> bool:
    return PurePosixPath(path).suffix in _LFS_SUFFIXES or size > _LFS_SIZE


def _file_entry(path: str, content: bytes) -> dict[str, Any]:
    size = len(content)
    oid = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": size, "oid": oid}
    if _is_lfs(path, size):
        entry["lfs"] = {
            "oid": hashlib.sha256(content).hexdigest(),
            "size": size,
            "pointerSize": 134,
        }
    return entry
