"""What the stand-in Hub answers: repositories, uploads, downloads."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs

from .http import TOKEN, HubRequest
from .storage import Repository, file_entry, is_lfs, tree_entries
from .validation import card_errors

USER = "tester"
_REPO = r"([^/]+(?:/[^/]+)?)"


class HubApi(HubRequest):
    """The calls of huggingface_hub and datasets, and no more."""

    open_to_all = frozenset(("lfs_put", "paths_info", "validate_yaml"))
    routes = tuple(
        (method, re.compile(pattern + r"\Z"), name)
        for method, pattern, name in (
            ("GET", r"/api/whoami-v2", "whoami"),
            ("POST", r"/api/validate-yaml", "validate_yaml"),
            ("POST", r"/api/repos/create", "create"),
            ("DELETE", r"/api/repos/delete", "delete"),
            ("POST", rf"/api/(\w+)s/{_REPO}/branch/([^/]+)", "create_branch"),
            ("POST", rf"/api/(\w+)s/{_REPO}/preupload/([^/]+)", "preupload"),
            ("POST", rf"/api/(\w+)s/{_REPO}/commit/([^/]+)", "commit"),
            ("POST", rf"/api/(\w+)s/{_REPO}/paths-info/([^/]+)", "paths_info"),
            ("GET", rf"/api/(\w+)s/{_REPO}/tree/([^/]+)(?:/(.+))?", "tree"),
            ("GET", rf"/api/(\w+)s/{_REPO}/commits/([^/]+)", "list_commits"),
            ("GET", rf"/api/(\w+)s/{_REPO}/refs", "list_refs"),
            ("GET", rf"/api/(\w+)s/{_REPO}/revision/([^/]+)", "info"),
            ("GET", rf"/api/(\w+)s/{_REPO}", "info"),
            ("POST", rf"/(?:(dataset|space)s/)?{_REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
            ("PUT", r"/lfs/(\w+)", "lfs_put"),
            ("POST", r"/lfs/verify", "lfs_verify"),
            ("GET", rf"/(?:(dataset|space)s/)?{_REPO}/resolve/([^/]+)/(.+)", "resolve"),
        )
    )

    def repository(self, repo_type: str, repo_id: str) -> Repository | None:
        """The repository; None after having answered that there is none, or none for this client."""
        found = self.hub.repositories.get((repo_type, repo_id))
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if found is None or (found.private and not allowed):
            self.fail(404, "Repository not found", "RepoNotFound")
            return None
        return found

    def snapshot(
        self, repo_type: str, repo_id: str, revision: str
    ) -> tuple[str, dict[str, bytes]] | None:
        """The commit and its files; None after having answered that there is none."""
        repository = self.repository(repo_type, repo_id)
        if repository is None:
            return None
        oid = repository.resolve(revision)
        if oid is None:
            self.fail(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return oid, repository.commits[oid]

    # ---- repositories

    def whoami(self) -> None:
        answer = {"type": "user", "name": USER, "fullname": USER, "orgs": []}
        self.reply({**answer, "auth": {"type": "access_token"}})

    def validate_yaml(self) -> None:
        asked = json.loads(self.body)
        errors = card_errors(asked["content"], asked["repoType"])
        if errors:
            self.send("\n".join(errors).encode(), 400, {"Content-Type": "text/plain"})
            return
        self.reply({"errors": [], "warnings": []})

    def _asked_repository(self) -> tuple[str, str]:
        asked = json.loads(self.body)
        return asked.get("type") or "model", f"{asked.get('organization') or USER}/{asked['name']}"

    def create(self) -> None:
        key = self._asked_repository()
        prefix = "" if key[0] == "model" else f"{key[0]}s/"
        url = f"{self.hub.endpoint}/{prefix}{key[1]}"
        with self.hub.lock:
            if key in self.hub.repositories:
                self.reply({"error": "You already created this repo", "url": url}, 409)
                return
            asked = json.loads(self.body)
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            self.hub.repositories[key] = Repository(private)
        self.reply({"url": url, "name": key[1], "id": key[1]})

    def delete(self) -> None:
        with self.hub.lock:
            if self.hub.repositories.pop(self._asked_repository(), None) is None:
                self.fail(404, "Repository not found", "RepoNotFound")
                return
        self.reply({})

    def create_branch(self, repo_type: str, repo_id: str, branch: str) -> None:
        repository = self.repository(repo_type, repo_id)
        if repository is None:
            return
        start = (json.loads(self.body) if self.body else {}).get("startingPoint") or "main"
        with self.hub.lock:
            if branch in repository.refs:
                self.fail(409, "Reference already exists")
                return
            oid = repository.resolve(start)
            if oid is None:
                self.fail(404, f"Invalid rev id: {start}", "RevisionNotFound")
                return
            repository.refs[branch] = oid
        self.reply({}, 201)

    def info(self, repo_type: str, repo_id: str, revision: str = "main") -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        oid, files = found
        self.reply(
            {
                "id": repo_id,
                "modelId": repo_id,
                "sha": oid,
                "private": self.hub.repositories[repo_type, repo_id].private,
                "gated": False,
                "disabled": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )

    def list_commits(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        messages = self.hub.repositories[repo_type, repo_id].messages
        commits = [
            {
                "id": oid,
                "title": message,
                "message": "",
                "authors": [],
                "date": "2025-01-01T00:00:00Z",
            }
            for oid, message in reversed(messages.items())
        ]
        self.reply(commits)

    def list_refs(self, repo_type: str, repo_id: str) -> None:
        repository = self.repository(repo_type, repo_id)
        if repository is not None:
            branches = [
                {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
                for name, oid in repository.refs.items()
            ]
            self.reply({"branches": branches, "tags": [], "converts": []})

    def tree(self, repo_type: str, repo_id: str, revision: str, folder: str | None = None) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
        entries = tree_entries(found[1], folder or "", recursive)
        if folder and not entries:
            self.fail(404, f"{folder} does not exist", "EntryNotFound")
            return
        self.reply(entries)

    def paths_info(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is not None:
            # JSON from huggingface_hub ≥ 1, a form from what calls it by hand.
            text = self.body.decode()
            paths = json.loads(text)["paths"] if text[:1] == "{" else parse_qs(text)["paths"]
            self.reply([file_entry(path, found[1][path]) for path in paths if path in found[1]])

    # ---- uploads

    def preupload(self, repo_type: str, repo_id: str, revision: str) -> None:
        found = self.snapshot(repo_type, repo_id, revision)
        if found is None:
            return
        answers = []
        for file in json.loads(self.body)["files"]:
            stored = found[1].get(file["path"])
            entry = None if stored is None else file_entry(file["path"], stored)
            oid = None if entry is None else entry.get("lfs", entry)["oid"]
            mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
            answers.append(
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}
            )
        self.reply({"files": answers})

    def lfs_batch(self, prefix: str | None, repo_id: str) -> None:
        if self.repository(prefix or "model", repo_id) is None:
            return
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
        with self.hub.lock:
            found = self.snapshot(repo_type, repo_id, revision)
            if found is None:
                return
            operations = [json.loads(line) for line in self.body.split(b"\n") if line]
            header = next(op["value"] for op in operations if op["key"] == "header")
            if header.get("parentCommit") not in (None, found[0]):
                self.fail(412, "A commit has happened since")
                return
            try:
                files = self._changed(dict(found[1]), operations)
            except ValueError as error:
                self.fail(400, str(error))
                return
            repository = self.hub.repositories[repo_type, repo_id]
            request = None
            if self.query.get("create_pr", ["0"])[0] == "1":
                request = sum(ref.startswith("refs/pr/") for ref in repository.refs) + 1
                revision = f"refs/pr/{request}"
            oid = repository.add(files, revision, header["summary"])
        url = f"{self.hub.endpoint}/{repo_id}"
        answer = {"success": True, "commitOid": oid, "commitUrl": f"{url}/commit/{oid}"}
        if request is not None:
            answer["pullRequestUrl"] = f"{url}/discussions/{request}"
        self.reply({**answer, "hookOutput": ""})

    def _changed(self, files: dict[str, bytes], operations: list[dict]) -> dict[str, bytes]:
        """The snapshot after a commit's operations.

        Raises:
            ValueError: an object is not there, or the operation is unknown.
        """
        for operation in operations:
            value = operation["value"]
            match operation["key"]:
                case "header":
                    pass
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    if value["oid"] not in self.hub.objects:
                        raise ValueError(f"no object {value['oid']} for {value['path']}")
                    files[value["path"]] = self.hub.objects[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"], None)
                case "deletedFolder":
                    prefix = value["path"].rstrip("/") + "/"
                    files = {
                        path: data for path, data in files.items() if not path.startswith(prefix)
                    }
                case other:
                    raise ValueError(f"unknown operation {other!r}")
        return files

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
        entry = file_entry(path, content)
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
