"""The stand-in for the Hub answers as the real one does, where clients look."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from stand_in.faults import Fault
from stand_in.http import TOKEN
from stand_in.server import HubServer

WEIGHTS = bytes(range(256)) * 8


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    """A server with one repository: a small file, a folder, and weights that went through LFS."""
    with HubServer() as hub:
        ask(hub, "POST", "/api/repos/create", {"name": "model"})
        oid = hashlib.sha256(WEIGHTS).hexdigest()
        batch = {"operation": "upload", "objects": [{"oid": oid, "size": len(WEIGHTS)}]}
        answer = ask(hub, "POST", "/tester/model.git/info/lfs/objects/batch", batch)[2]
        href = json.loads(answer)["objects"][0]["actions"]["upload"]["href"].removeprefix(
            hub.endpoint
        )
        ask(hub, "PUT", href, WEIGHTS)
        commit(
            hub,
            ("file", {"path": "README.md", "content": base64.b64encode(b"# Hello").decode()}),
            ("file", {"path": "sub/a.txt", "content": base64.b64encode(b"a").decode()}),
            ("lfsFile", {"path": "model.safetensors", "algo": "sha256", "oid": oid}),
        )
        yield hub


def ask(hub, method, path, body=None, headers=None) -> tuple[int, dict[str, str], bytes]:
    content = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
    request = Request(hub.endpoint + path, content, headers, method=method)
    try:
        with urlopen(request) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except HTTPError as error:
        return error.code, dict(error.headers), error.read()


def commit(hub, *operations, parent=None) -> tuple[int, dict[str, str], bytes]:
    header = ("header", {"summary": "a commit", "description": "", "parentCommit": parent})
    lines = [json.dumps({"key": key, "value": value}) for key, value in (header, *operations)]
    return ask(hub, "POST", "/api/models/tester/model/commit/main", "\n".join(lines).encode())


def test_files_have_an_etag_and_their_commit(hub: HubServer) -> None:
    status, headers, content = ask(hub, "HEAD", "/tester/model/resolve/main/model.safetensors")
    assert (status, content) == (200, b"")
    assert headers["X-Linked-Etag"].strip('"') == hashlib.sha256(WEIGHTS).hexdigest()
    assert headers["X-Linked-Size"] == headers["Content-Length"] == str(len(WEIGHTS))
    sha = json.loads(ask(hub, "GET", "/api/models/tester/model")[2])["sha"]
    assert headers["X-Repo-Commit"] == sha
    status, headers, content = ask(hub, "GET", f"/tester/model/resolve/{sha}/README.md")
    blob = hashlib.sha1(b"blob 7\0# Hello").hexdigest()  # as git names it
    assert (status, content, headers["ETag"].strip('"')) == (200, b"# Hello", blob)


def test_ranges(hub: HubServer) -> None:
    path = "/tester/model/resolve/main/model.safetensors"
    status, headers, content = ask(hub, "GET", path, headers={"Range": "bytes=5-9"})
    assert (status, content) == (206, WEIGHTS[5:10])
    assert headers["Content-Range"] == f"bytes 5-9/{len(WEIGHTS)}"
    assert ask(hub, "GET", path, headers={"Range": "bytes=2000-"})[2] == WEIGHTS[2000:]
    assert ask(hub, "GET", path, headers={"Range": "bytes=9999-"})[0] == 416


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/tester/none", "RepoNotFound"),
        ("/tester/model/resolve/main/none.txt", "EntryNotFound"),
        ("/tester/model/resolve/v9/README.md", "RevisionNotFound"),
        ("/api/models/tester/model/tree/main/none", "EntryNotFound"),
    ],
)
def test_what_is_not_there(hub: HubServer, path: str, code: str) -> None:
    status, headers, _ = ask(hub, "GET", path)
    assert (status, headers["X-Error-Code"]) == (404, code)


def test_trees(hub: HubServer) -> None:
    def paths(query: str) -> list[str]:
        entries = json.loads(ask(hub, "GET", f"/api/models/tester/model/tree/main{query}")[2])
        return sorted(entry["path"] for entry in entries)

    assert paths("") == ["README.md", "model.safetensors", "sub"]
    assert paths("?recursive=true") == ["README.md", "model.safetensors", "sub", "sub/a.txt"]
    assert paths("/sub") == ["sub/a.txt"]


def test_a_commit_on_another_parent_is_refused(hub: HubServer) -> None:
    before = hub.files("tester/model")
    deletion = ("deletedFile", {"path": "README.md"})
    assert commit(hub, deletion, parent="0" * 40)[0] == 412
    missing = ("lfsFile", {"path": "b.safetensors", "algo": "sha256", "oid": "0" * 64})
    assert commit(hub, deletion, missing)[0] == 400
    assert hub.files("tester/model") == before


def test_uploads_that_are_damaged_or_known(hub: HubServer) -> None:
    assert ask(hub, "PUT", f"/lfs/{'0' * 64}", b"other")[0] == 400
    known = {"oid": hashlib.sha256(WEIGHTS).hexdigest(), "size": len(WEIGHTS)}
    batch = {"operation": "upload", "objects": [known]}
    answer = ask(hub, "POST", "/tester/model.git/info/lfs/objects/batch", batch)[2]
    assert json.loads(answer)["objects"] == [known]  # no actions: nothing to send
    assert ask(hub, "POST", "/api/repos/create", {"name": "model"})[0] == 409


def test_data_sets_are_served_under_their_names(hub: HubServer) -> None:
    hub.add_repository("lmms-lab/POPE", {"data/test-0.parquet": b"PAR1"}, "dataset")
    tree = json.loads(ask(hub, "GET", "/api/datasets/lmms-lab/POPE/tree/main/data")[2])
    assert [entry["path"] for entry in tree] == ["data/test-0.parquet"]
    path = "/datasets/lmms-lab/POPE/resolve/main/data/test-0.parquet"
    assert ask(hub, "GET", path)[2] == b"PAR1"
    assert ask(hub, "GET", "/api/models/lmms-lab/POPE")[0] == 404


def test_branches_and_private_repositories(hub: HubServer) -> None:
    ask(hub, "POST", "/api/repos/create", {"name": "secret", "private": True})
    assert ask(hub, "GET", "/api/models/tester/secret")[0] == 200
    anonymous = {"Authorization": "Bearer nobody"}
    assert ask(hub, "GET", "/api/models/tester/secret", headers=anonymous)[0] == 404
    created = ask(hub, "POST", "/api/repos/create", {"name": "other"}, headers=anonymous)
    assert created[0] == 401
    assert ask(hub, "POST", "/api/models/tester/secret/branch/v1")[0] == 201
    assert ask(hub, "POST", "/api/models/tester/secret/branch/v1")[0] == 409
    assert ask(hub, "GET", "/api/models/tester/secret/revision/v1")[0] == 200


def test_cards_are_checked(hub: HubServer) -> None:
    def answer(card: str) -> tuple[int, bytes]:
        asked = {"repoType": "model", "content": card}
        status, _, content = ask(hub, "POST", "/api/validate-yaml", asked)
        return status, content

    assert answer("---\nlicense: mit\n---\n# A card\n")[0] == 200
    status, content = answer("---\nlicense: mine\n---\n# A card\n")
    assert status == 400 and b"license" in content


def test_a_fault_happens_as_often_as_asked(hub: HubServer) -> None:
    fault = Fault("GET", "README", times=2, status=503)
    hub.faults.append(fault)
    path = "/tester/model/resolve/main/README.md"
    assert [ask(hub, "GET", path)[0] for _ in range(3)] == [503, 503, 200]
    hub.faults.remove(fault)
